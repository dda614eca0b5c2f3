"""One prompt and its completions, however a file lays them out: the same examples, items and scores everywhere."""

from __future__ import annotations

import json

import pytest

from latent_rewards.evaluation import benchmarks
from latent_rewards.judge.transcripts import hold_prompts, split, split_column
from latent_rewards.probes.examples import Example, gather, pair_examples, read_examples, sources


def u(text):
    return {"role": "user", "content": text}


def a(text, **more):
    return {"role": "assistant", "content": text, **more}


S = {"role": "system", "content": "Be brief."}
TURNS = [u("Hi."), a("Hello."), u("Name a prime.")]
HH = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Name a prime.\n\nAssistant: "

# Layouts of one pair: prompt "Name a prime.", chosen "7", rejected "8".
SINGLE = {
    "text": {"prompt": "Name a prime.", "chosen": "7", "rejected": "8"},
    "conversational": {"prompt": [u("Name a prime.")], "chosen": [a("7")], "rejected": [a("8")]},
    "one mapping": {"prompt": u("Name a prime."), "chosen": a("7"), "rejected": a("8")},
    "text and dialogues": {"prompt": "Name a prime.", "chosen": [u("Name a prime."), a("7")],
                           "rejected": [u("Name a prime."), a("8")]},
    "messages and dialogues": {"prompt": [u("Name a prime.")], "chosen": [u("Name a prime."), a("7")],
                               "rejected": [u("Name a prime. "), a("8")]},
    "dialogues": {"chosen": [u("Name a prime."), a("7")], "rejected": [u("Name a prime."), a("8")]},
    "null prompt": {"prompt": None, "chosen": [u("Name a prime."), a("7")], "rejected": [u("Name a prime."), a("8")]},
    "blank prompt": {"prompt": " ", "chosen": [u("Name a prime."), a("7")], "rejected": [u("Name a prime."), a("8")]},
    "columnar": {"chosen": [u("Name a prime."), a("7", tool_calls=None)],
                 "rejected": [u("Name a prime."), a("8", tool_calls=None)]},
    "one dialogue": {"prompt": "Name a prime.", "chosen": [u("Name a prime."), a("7")], "rejected": "8"},
    "parts": {"chosen": [u([{"type": "text", "text": "Name a prime."}]), a("7")],
              "rejected": [u("Name a prime."), a([{"type": "text", "text": "8"}])]},
    "HH": {"chosen": "\n\nHuman: Name a prime.\n\nAssistant: 7",
           "rejected": "\n\nHuman: Name a prime.\n\nAssistant: 8"},
    "HH with its prompt": {"prompt": "\n\nHuman: Name a prime.\n\nAssistant:",
                           "chosen": "\n\nHuman: Name a prime.\n\nAssistant: 7",
                           "rejected": "\n\nHuman: Name a prime.\n\nAssistant: 8"},
}  # fmt: skip
MULTI = {
    "messages": {"prompt": TURNS, "chosen": "7", "rejected": "8"},
    "conversational": {"prompt": TURNS, "chosen": [a("7")], "rejected": [a("8")]},
    "dialogues": {"chosen": [*TURNS, a("7")], "rejected": [*TURNS, a("8")]},
    "messages and dialogues": {"prompt": TURNS, "chosen": [*TURNS, a("7")], "rejected": [*TURNS, a("8")]},
    "last question": {"prompt": "Name a prime.", "chosen": [*TURNS, a("7")], "rejected": [*TURNS, a("8")]},
    "first question": {"prompt": "Hi.", "chosen": [*TURNS, a("7")], "rejected": [*TURNS, a("8")]},
    "first message": {"prompt": [u("Hi.")], "chosen": [*TURNS, a("7")], "rejected": [*TURNS, a("8")]},
    "HH": {"chosen": HH + "7", "rejected": HH + "8"},
    "HH prompt": {"prompt": HH, "chosen": [*TURNS, a("7")], "rejected": [*TURNS, a("8")]},
}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [*((r, "Name a prime.") for r in SINGLE.values()), *((r, TURNS) for r in MULTI.values())],
    ids=[*SINGLE, *(f"multi-turn {n}" for n in MULTI)],
)
def test_every_layout_of_a_pair_means_the_same_everywhere(tmp_path, row, prompt):
    expected = [Example(prompt, "7", 1.0, 0, "x"), Example(prompt, "8", 0.0, 0, "x")]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    assert read_examples(path) == pair_examples([row], "x") == expected
    item = benchmarks.load(path).items[0]
    assert (item.prompt, item.responses, item.gold) == (prompt, ("7", "8"), (1.0, 0.0))
    for column, text in (("chosen", "7"), ("rejected", "8")):
        assert split_column(row, "prompt", column) == (prompt, text)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": ["x", "y"], "gold": [2, 1]},
        {"prompt": "q", "completions": [[a("x")], [a("y")]], "score": [2, 1]},
        {"prompt": "q", "answers": [[u("q"), a("x")], [u("q"), a("y")]], "ratings": ["2", "1.0"]},
        {"completions": [[u("q"), a("x")], [u("q"), a("y")]], "scores": [2, 1]},
        {"responses": ["\n\nHuman: q\n\nAssistant: x", "\n\nHuman: q\n\nAssistant: y"], "gold": [2, 1]},
    ],
)
def test_lists(tmp_path, row):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    assert read_examples(path) == [Example("q", "x", 2.0, 0, "x"), Example("q", "y", 1.0, 0, "x")]
    item = benchmarks.load(path).items[0]
    assert (item.prompt, item.responses, item.gold) == ("q", ("x", "y"), (1.0, 0.0)), "two responses are a pair"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "x", "score": 4},
        {"prompt": "q", "completion": "x", "score": "4"},
        {"prompt": [u("q")], "answer": [u("q"), a("x")], "rating": 4},
        {"completion": [u("q"), a("x")], "score": 4},
    ],
)
def test_ratings(tmp_path, row):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    assert read_examples(path) == [Example("q", "x", 4.0, -1, "x")]
    assert benchmarks.load(path).items[0].responses == ("x",)


def test_text_that_only_looks_like_a_dialogue_stays_as_it_is():
    for text in ("Human: what?", "He wrote:\n\nHuman: hi\n\nAssistant: hello", "a\n\nAssistant: b"):
        assert split("q", [text, text + "!"]) == ("q", [text, text + "!"])
    pair = ["\n\nHuman: hi\n\nAssistant: 1", "\n\nHuman: ho\n\nAssistant: 2"]
    assert split("q", pair) == ("q", pair) and split(None, pair) == (None, pair)  # they do not agree
    same = ["\n\nHuman: hi\n\nAssistant: 1", "\n\nHuman: hi\n\nAssistant: 2"]
    assert split("Write a dialogue.", same) == ("Write a dialogue.", same)  # the prompt says otherwise
    asked = ["\n\nHuman: hi\n\nAssistant: 1\n\nHuman: and?"] * 2
    assert split("q", asked) == ("q", asked)


def test_tool_turns_system_texts_and_shared_beginnings():
    call = a(None, tool_calls=[{"function": {"name": "f"}}])
    tool = {"role": "tool", "content": "3"}
    assert split(None, [[u("q"), call, tool, a("x")], [u("q"), call, tool, a("y")]]) == (
        [u("q"), call, tool], ["x", "y"]
    )  # fmt: skip
    prompt, (first, second) = split(None, [[u("q"), call, tool, a("x")], [u("q"), a("y")]])
    assert (prompt, first, second) == ("q", [call, tool, a("x")], "y")
    assert split([u("q")], [[u("q"), call, tool, a("x")]]) == ("q", [[call, tool, a("x")]])
    assert split("q", [[S, u("q"), a("x")]]) == ([S, u("q")], ["x"])
    assert split([S, u("q")], [[u("q"), a("x")]]) == ([S, u("q")], ["x"])
    assert split(None, [[u("q"), a("It is x")], [u("q"), a("It is x"), a("or y")]]) == (
        "q", ["It is x", [a("It is x"), a("or y")]]
    )  # fmt: skip
    assert split(None, [[u("q"), a("x")], [u("q"), a("x")]]) == ("q", ["x", "x"])
    assert hold_prompts([{"c": [[u("q"), a("x")]]}], "c") and not hold_prompts([{"c": [[a("x")]]}, {}], "c")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": [u("q"), a("x")], "rejected": [u("q"), a("y")]}, "not begin with the row's prompt"),
        ({"prompt": [u("p")], "chosen": [u("q"), a("x")], "rejected": [u("q"), a("y")]}, "does not begin with"),
        ({"prompt": [S, u("q")], "chosen": [{**S, "content": "Rhyme."}, u("q"), a("x")], "rejected": "y"}, "begin"),
        ({"chosen": [u("q"), a("x")], "rejected": [u("r"), a("y")]}, "differ before the last user's turn"),
        ({"chosen": [u("q"), a("1"), u("r"), a("x")], "rejected": [u("q"), a("2"), u("r"), a("y")]}, "differ before"),
        ({"chosen": [u("q"), a("x"), u("more")], "rejected": [u("q"), a("y")]}, "ends with a turn of 'user'"),
        ({"prompt": "q", "chosen": [u("q")], "rejected": [u("q"), a("y")]}, "ends with a turn of 'user'"),
        ({"chosen": [a("x")], "rejected": [a("y")]}, "missing field prompt"),
        ({"chosen": [u("q"), a("x")], "rejected": [u("q"), a("x")]}, "chosen equals rejected"),
        ({"prompt": "q", "chosen": [u("q"), a("x")], "rejected": "x"}, "chosen equals rejected"),
        ({"prompt": "q", "chosen": ["x"], "rejected": ["y"]}, "must be text or a list of messages"),
        ({"prompt": [S], "chosen": "x", "rejected": "y"}, "the last message a user's"),
        ({"chosen": [u([{"type": "image"}]), a("x")], "rejected": [u("q"), a("y")]}, "'image' part"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_told_apart_are_left_out_with_a_reason(tmp_path, caplog, row, reason):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(SINGLE["text"]) + "\n" + json.dumps(row))
    bad = []
    assert len(read_examples(path, bad=bad)) == 2
    assert [(b.file, b.row) for b in bad] == [(str(path), 2)] and reason in bad[0].reason
    assert "left out 1 bad row: row 2: " in caplog.text
    assert benchmarks.load(path).bad == tuple(bad)
    with pytest.raises(ValueError, match="row 1: "):
        pair_examples([SINGLE["text"], row])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": "N/A"}, "score is 'N/A', not a number"),
        ({"score": None}, "missing field score"),
        ({"score": float("nan")}, "score is nan"),
        ({"score": [4]}, r"score is [4], not a number"),
        ({"prompt": None}, "missing field prompt"),
        ({"prompt": "\n"}, "empty prompt"),
        ({"response": 3}, "response is int, not text or messages"),
        ("no json", "line 3 is not JSON"),
        ([1], "no JSON object"),
    ],
)
def test_one_bad_rating_is_left_out_and_named(tmp_path, change, reason):
    rows = [{"prompt": f"q{i}", "response": "", "score": i} for i in range(6)]
    lines = [json.dumps(r) for r in rows]
    lines[2] = json.dumps({**rows[2], **change}) if isinstance(change, dict) else (
        change if isinstance(change, str) else json.dumps(change))  # fmt: skip
    path, whole = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    path.write_text("\n".join(lines))
    whole.write_text(json.dumps(rows[0]))
    bad = []
    found = gather([path, whole], bad=bad)
    assert [e.label for e in found] == [0, 1, 3, 4, 5, 0]  # an empty response is a text like others
    assert [b.row for b in bad] == [3] and reason in bad[0].reason
    assert sources([path, whole], bad) == [f"{path} (left out 1 bad row: row 3: {bad[0].reason})", str(whole)]


def test_a_parquet_file_gives_the_examples_of_its_jsonl(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [MULTI["dialogues"], {"chosen": [u("q"), a("x")], "rejected": [u("r"), a("y")]}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    bad = []
    assert read_examples(tmp_path / "x.parquet", bad=bad) == read_examples(tmp_path / "x.jsonl")
    assert [b.row for b in bad] == [2]
