import gzip
import json
import os
from pathlib import Path

import pytest

from latent_rewards.evaluation import benchmarks
from latent_rewards.evaluation.benchmarks import BENCHMARKS, local, remote
from latent_rewards.evaluation.benchmarks.rows import collect

DATA = os.environ.get("LATENT_REWARDS_DATA")


def judge_prompt(prompt, response):
    return (
        "###Task Description:\nRate.\n\n###The instruction to evaluate:\n"
        f"{prompt}\n\n###Response to evaluate:\n{response}\n\n###Reference Answer (Score 5):\nbest\n\n"
        "###Score Rubrics:\n[Is it good?]\n\n###Feedback: "
    )


def turns(*texts):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]


RUBRIC = {"criteria": "Good?"} | {f"score{i}_description": f"level {i}" for i in range(1, 6)}
# One raw row of ours per public set, in its own format, and what must come out: responses, gold, subset.
FIXTURES = {
    "hub/autoj": [
        ({"prompt": "q", "response 1": "a", "response 2": "b", "label": 1, "scenario": "s"}, ("b", "a"), (1, 0), "s"),
        ({"prompt": "q", "response 1": "a", "response 2": "b", "label": 0}, ("a", "b"), (1, 0), ""),
    ],
    "hub/hhh": [
        ({"chosen_instruction": judge_prompt("q", "a"), "rejected_instruction": judge_prompt("q", "b")},
         ("a", "b"), (1, 0), ""),
    ],
    "hub/judgebench": [
        ({"pair_id": "1", "question": "q", "response_A": "a", "response_B": "b", "label": "B>A",
          "source": "mmlu-pro-math"}, ("b", "a"), (1, 0), "mmlu"),
    ],
    "hub/lfqa": [
        ({"question": "q", "answer_a": "a", "answer_b": "b", "overall_preference": -1}, ("a", "b"), (1, 0), ""),
        ({"question": "q", "answer_a": "a", "answer_b": "b", "overall_preference": 1}, ("b", "a"), (1, 0), ""),
    ],
    "hub/mtbench": [
        ({"winner": "model_b", "turn": 2, "conversation_a": turns("q", "x", "r", "a"),
          "conversation_b": turns("q", "y", "r", "b")}, ("b", "a"), (1, 0), "turn 2"),
        ({"winner": "model_a", "turn": 1, "conversation_a": turns("q", "x", "r", "a"),
          "conversation_b": turns("q", "y", "r", "b")}, ("x", "y"), (1, 0), "turn 1"),
    ],
    "hub/preferencebench": [
        ({"orig_instruction": "q", "orig_response_A": "a", "orig_response_B": "b", "orig_preference": "B",
          "orig_criteria": "Good?"}, ("b", "a"), (1, 0), ""),
    ],
    "hub/rewardbench": [
        ({"id": 3, "prompt": "q", "chosen": "a", "rejected": "b", "subset": "math-prm", "chosen_model": "m"},
         ("a", "b"), (1, 0), "math-prm"),
    ],
    "hub/rewardbench2": [
        ({"id": "1", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Focus"},
         ("a", "b", "c", "d"), (1, 0, 0, 0), "Focus"),
    ],
    "hub/tulu": [
        ({"id": "1", "source": "s", "chosen": turns("q", "a"), "rejected": turns("q", "b")}, ("a", "b"), (1, 0), "s"),
    ],
    "hub/ultrafeedback": [
        ({"prompt_id": "1", "prompt": "q", "chosen": turns("q", "a"), "rejected": turns("q", "b"),
          "score_chosen": 8.0, "score_rejected": 4.0}, ("a", "b"), (1, 0), ""),
    ],
    "hub/ultrafeedback_rejected": [
        ({"prompt_id": "1", "prompt": "q", "chosen": turns("q", "a"), "rejected": turns("q", "b"),
          "score_chosen": 8.0, "score_rejected": 4.0}, ("b",), (4,), ""),
    ],
    "hub/flask": [
        ({"instruction": judge_prompt("q", "a"), "human_score": [3, 4], "gpt4_score": [1]}, ("a",), (3.5,), ""),
    ],
    "hub/mtbench_ratings": [
        ({"instruction": judge_prompt("q", "a"), "category": "writing", "gpt4_score": [3, 2, 3]},
         ("a",), (8 / 3,), "writing"),
    ],
    "hub/vicuna": [({"instruction": judge_prompt("q", "a"), "gpt4_score": [5, 5, 5]}, ("a",), (5,), "")],
    "hub/biggen": [
        ({"input": "q", "system_prompt": "be kind", "response": "a", "human_score": 4, "score_rubric": RUBRIC,
          "capability": "planning"}, ("a",), (4,), "planning"),
    ],
    "hub/helpsteer2": [({"prompt": "q", "response": "a", "helpfulness": 3, "verbosity": 1}, ("a",), (3,), "")],
    "hub/helpsteer": [({"prompt": "q", "response": "a", "helpfulness": 3, "verbosity": 1}, ("a",), (3,), "")],
}  # fmt: skip
TIES = {
    "hub/autoj": {"prompt": "q", "response 1": "a", "response 2": "b", "label": 2},
    "hub/lfqa": {"question": "q", "answer_a": "a", "answer_b": "b", "overall_preference": 0},
    "hub/mtbench": {"winner": "tie", "turn": 1, "conversation_a": turns("q", "x"), "conversation_b": turns("q", "y")},
    "hub/ultrafeedback": {
        "chosen": turns("q", "a"),
        "rejected": turns("q", "b"),
        "score_chosen": 4,
        "score_rejected": 4,
    },
}


def served(monkeypatch, rows):
    """Public sets give these rows instead of asking the network."""
    numbered = [("file", i, row) for i, row in enumerate(rows, 1)]
    monkeypatch.setattr(remote.Hub, "resolved", lambda self: self.at("c0ffee"))
    monkeypatch.setattr(remote.Hub, "rows", lambda self: iter(numbered))
    monkeypatch.setattr(remote.GitHub, "rows", lambda self: iter(numbered))


def test_every_public_set_has_a_fixture():
    assert set(BENCHMARKS) - {"open_ended"} == set(FIXTURES)


@pytest.mark.parametrize("name", FIXTURES)
def test_field_mapping(name, monkeypatch):
    served(monkeypatch, [row for row, *_ in FIXTURES[name]] + ([TIES[name]] if name in TIES else []) + [{"x": 1}])
    found = benchmarks.load(name)
    assert [(i.responses, i.gold, i.subset) for i in found.items] == [tuple(e) for _, *e in FIXTURES[name]]
    assert sum(found.left_out.values()) == (name in TIES)
    assert [b.row for b in found.bad] == [len(FIXTURES[name]) + (name in TIES) + 1] and "field" in found.bad[0].reason
    assert "@c0ffee" in found.source or "/blob/" in found.source
    for item in found.items:
        assert item.prompt == "q" or item.prompt[-1]["content"] in ("q", "r")
    if found.kind == "rating":
        assert found.gold_range is not None and found.gold_range[0] <= min(i.gold[0] for i in found.items)


def test_rubric_and_reference_become_columns(monkeypatch):
    served(monkeypatch, [FIXTURES["hub/vicuna"][0][0]])
    assert benchmarks.load("hub/vicuna").items[0].columns == {
        "reference": "best", "rubric": "[Is it good?]", "criteria": "[Is it good?]",
    }  # fmt: skip


def test_the_second_turn_keeps_the_first_as_its_prompt(monkeypatch):
    served(monkeypatch, [FIXTURES["hub/mtbench"][0][0]])
    assert [m["content"] for m in benchmarks.load("hub/mtbench").items[0].prompt] == ["q", "y", "r"]


def test_a_revision_can_be_given(monkeypatch):
    served(monkeypatch, [FIXTURES["hub/lfqa"][0][0]])
    assert "/blob/abc/" in benchmarks.load("hub/lfqa@abc").source
    assert len(remote.Hub("a/b", ("x",), revision="1").at(None).revision) == 1


def test_the_built_in_set():
    found = benchmarks.load("open_ended")
    assert (found.kind, len(found.items), found.bad, found.gold_range) == ("list", 96, (), (1, 4))
    assert len({i.subset for i in found.items}) > 3


BAD = [
    ({"prompt": "q", "chosen": "a"}, "missing field rejected"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty prompt"),
    ({"prompt": "q", "chosen": " ", "rejected": "b"}, "empty response"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
    ({"prompt": "q", "chosen": "a", "rejected": 3}, "rejected is int, not text or messages"),
    ({"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"}, "last message"),
    ({"prompt": [], "chosen": "a", "rejected": "b"}, "messages"),
    ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "prompt: a message has no 'content'"),
    ([1, 2], "no JSON object but list"),
    ("no json", "not JSON"),
]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_bad_rows_are_listed_by_file_and_row(tmp_path, ending):
    path = tmp_path / f"mine{ending}"
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    lines = [
        json.dumps(good),
        *(row if isinstance(row, str) else json.dumps(row) for row, _ in BAD),
        "",
        json.dumps(good),
    ]
    (gzip.open if ending.endswith("gz") else open)(path, "wt").write("\n".join(lines))
    found = benchmarks.load(path)
    assert (found.name, found.kind, len(found.items)) == ("mine", "pair", 2)
    assert [b.row for b in found.bad] == list(range(2, len(BAD) + 2))
    assert {b.file for b in found.bad} == {str(path)}
    for bad, (_, reason) in zip(found.bad, BAD, strict=True):
        assert reason in bad.reason


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "q", "responses": ["a", "b"], "gold": [1]}, "2 responses but 1 gold"),
        ({"prompt": "q", "responses": ["a", "b"], "gold": [1, float("nan")]}, "gold is nan"),
        ({"prompt": "q", "responses": ["a", "b"], "gold": [1, "x"]}, "gold is 'x', not a number"),
        ({"prompt": "q", "responses": ["a"], "gold": [1]}, "two responses"),
        ({"prompt": "q", "response": "a", "score": float("inf")}, "score is inf"),
        ({"prompt": "q", "response": "a", "score": None}, "missing field score"),
        ({"prompt": "q", "response": "a", "score": 1, "scale": [1]}, "not enough values"),
    ],
)
def test_bad_lists_and_ratings(row, reason):
    kind = "list" if "responses" in row else "rating"
    good = {"prompt": "q", "responses": ["a", "b"], "gold": [0, 1]} if kind == "list" else {
        "prompt": "q", "response": "a", "score": 1}  # fmt: skip
    found = collect("x", [("f", 1, good), ("f", 2, row)], kind=kind)
    assert len(found.items) == 1 and reason in found.bad[0].reason


def test_a_file_without_a_usable_row_fails_with_its_first_bad_rows():
    with pytest.raises(
        ValueError, match=r"no usable row .2 bad: f row 1: columns \[\] are no layout(?s:.)*UltraFeedback"
    ):
        collect("x", [("f", 1, {}), ("f", 2, {})])


def test_parquet_equals_jsonl(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"id": str(i), "prompt": f"q{i}", "responses": ["a", "b"], "gold": [1.0, 0.0]} for i in range(5)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert benchmarks.load(tmp_path / "x.parquet").items == benchmarks.load(tmp_path / "x.jsonl").items


def test_names_under_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_REWARDS_DATA", str(tmp_path))
    for folder in ("pairwise", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}')
    (tmp_path / "other" / "b.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}')
    assert local.names() == ["other/a", "other/b", "pairwise/a"]
    assert benchmarks.load("b").name == "b" and benchmarks.load("pairwise/a").name == "pairwise/a"
    with pytest.raises(ValueError, match="ambiguous"):
        benchmarks.load("a")
    with pytest.raises(FileNotFoundError, match="other/b"):
        benchmarks.load("zzz")
    with pytest.raises(FileNotFoundError, match="no benchmark file"):
        benchmarks.load(tmp_path / "no.jsonl")


def test_a_limit_is_a_fixed_sample_not_the_head():
    rows = [("f", i, {"id": str(i), "prompt": f"q{i}", "chosen": "a", "rejected": "b"}) for i in range(100)]
    whole = collect("x", rows)
    some = whole.sample(10)
    assert len(some.items) == 10 and some.limited == 90 and some.items != whole.items[:10]
    assert [i.id for i in some.items] == [i.id for i in whole.sample(10).items]
    assert {i.id for i in some.items} <= {i.id for i in whole.sample(20).items}
    assert whole.sample(None) is whole and whole.sample(100) is whole


def test_same_prompt_same_group():
    rows = [("f", i, {"prompt": p, "chosen": "a", "rejected": "b"}) for i, p in enumerate(["q", "r", "q"])]
    groups = [i.group for i in collect("x", rows).items]
    assert groups[0] == groups[2] != groups[1]


@pytest.mark.skipif(not DATA, reason="needs LATENT_REWARDS_DATA")
def test_every_shared_file_loads_without_a_bad_row():
    for name in ("pairwise/autoj", "pairwise/hhh_alignment", "single/vicuna_eval", "single/topical_chat",
                 "listwise/topical_chat", "pairwise/faireval"):  # fmt: skip
        found = benchmarks.load(name)
        assert found.bad == () and len(found.items) > 50, name
    assert len(benchmarks.load("pairwise/autoj").items) == 981
    assert Path(benchmarks.load("pairwise/autoj").source).is_file()


def test_long_texts_are_left_out_and_counted(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p" * 10, "chosen": "c" * n, "rejected": "r"} for n in (10, 20, 21, 500)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    b = benchmarks.load(path, max_chars=30)
    assert [len(i.responses[0]) for i in b.items] == [10, 20] and b.left_out == {"longer than 30 characters": 2}
    assert len(benchmarks.load(path, 1, max_chars=30).items) == 1
    assert [len(benchmarks.load(f"{path}#{n}", 3).items) for n in (2, 9)] == [2, 3]
    with pytest.raises(ValueError, match="must be a number"):
        benchmarks.load(f"{path}#few")
    with pytest.raises(ValueError, match="no item of at most 5 characters"):
        benchmarks.load(path, max_chars=5)


def test_another_field_as_the_rating_and_few_items_of_a_prompt(tmp_path):
    rows = [
        {"id": str(i), "prompt": f"p{i // 4}", "response": f"r{i}", "score": 1.0, "scale": [1, 5],
         "aspects": {"coherence": i % 5 + 1}}
        for i in range(12)
    ]  # fmt: skip
    path = tmp_path / "rated.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "aspects": {}}])))
    b = benchmarks.load(f"{path}:aspects.coherence")
    assert [i.gold for i in b.items] == [(i % 5 + 1.0,) for i in range(12)] and b.gold_range == (1, 5)
    assert [r.reason for r in b.bad] == ["no field 'aspects.coherence'"] and b.name.endswith(":aspects.coherence")
    few = benchmarks.load(f"{path}:aspects.coherence", per_prompt=1)
    assert len({i.group for i in few.items}) == len(few.items) == 3
    assert few.left_out == {"more than 1 of a prompt": 9}
    assert few.items == benchmarks.load(f"{path}:aspects.coherence", per_prompt=1).items
    assert benchmarks.load(f"{path}:aspects.coherence#5").limited == 7
    with pytest.raises(FileNotFoundError):
        benchmarks.load("nowhere:score")


def test_lists_of_two_are_pairs() -> None:
    rows = [
        {"prompt": "a", "responses": ["worse", "better"], "gold": [2, 7.5], "scale": [0, 10]},
        {"prompt": "b", "responses": ["good", "bad"], "gold": [3, 1]},
        {"prompt": "c", "responses": ["one", "other"], "gold": [4, 4]},
    ]
    found = collect("x", [("f", n, row) for n, row in enumerate(rows, 1)])
    assert found.kind == "pair" and found.gold_range is None
    assert [i.responses for i in found.items] == [("better", "worse"), ("good", "bad")]
    assert {i.gold for i in found.items} == {(1.0, 0.0)}
    assert found.left_out == {"both responses rated alike": 1}
    longer = collect("x", [*(("f", n, row) for n, row in enumerate(rows, 1)), ("f", 4, rows[0] | {
        "responses": ["p", "q", "r"], "gold": [1, 2, 3],
    })])  # fmt: skip
    assert longer.kind == "list" and len(longer.items) == 4 and longer.items[0].responses == ("worse", "better")
    assert collect("x", [("f", 1, rows[0])], kind="list").kind == "list"
    assert collect("x", [("f", 3, rows[2])]).kind == "list", "nothing but ties"


@pytest.mark.parametrize(("row", "said"), [
    ({"prompt": "q", "chosen": "a", "rejected": float("nan")}, "rejected is float, not text or messages"),
    ({"chosen": [{"from": "human", "value": "q"}], "rejected": [{"from": "human", "value": "q"}]},
     "chosen: messages need 'role' and 'content', there are ['from', 'value']"),
    ({"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"}, "chosen: a message has no 'content'"),
    ({"instruction": "q", "completions": "text"}, "completions is str, without gold beside it: it must be a list of"),
    ({"instruction": "q", "completions": ["a", "b"]}, "completions is list of str, without gold beside it"),
])  # fmt: skip
def test_what_is_wrong_with_a_row_is_said_of_its_column(row: dict[str, object], said: str) -> None:
    good = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    (bad,) = collect("x", [("f", 1, row), ("f", 2, good)]).bad
    assert bad.row == 1 and said in bad.reason


def test_most_rows_say_what_a_file_holds() -> None:
    rated, pair = {"prompt": "p", "response": "r", "score": 3}, {"prompt": "p", "chosen": "good", "rejected": "bad"}
    found = collect("x", [("f", 1, rated), ("f", 2, pair), ("f", 3, pair | {"prompt": "q"})])
    assert found.kind == "pair" and [b.row for b in found.bad] == [1] and len(found.items) == 2
