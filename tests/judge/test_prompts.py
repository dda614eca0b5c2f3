from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts import check_prompt
from hypothesis import given
from hypothesis import strategies as st

from latent_rewards import JudgePrompt
from latent_rewards.judge.prompts import Segment, prompt_folder, to_segments, to_text

FILES = sorted(prompt_folder().rglob("*.yaml"))
GOOD = {
    "kind": "label",
    "body": '"Task: {{ prompt }} Reply: {{ completion }} Good?"',
    "labels": '{"yes": 1, "no": 0}',
}


def write(folder: Path, **changes: str | None) -> Path:
    path = folder / "mine.yaml"
    keys = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    path.write_text("".join(f"{k}: {v}\n" for k, v in keys.items()), encoding="utf-8")
    return path


def test_every_file_is_found() -> None:
    assert len(FILES) >= 9
    names = {p.stem for p in FILES}
    assert {"weighted", "verifier", "likert5", "likert10", "four_rubric", "rubric", "answerability"} <= names
    assert len({JudgePrompt.load(p).hash for p in FILES}) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_contract(path: Path) -> None:
    check_prompt(path)


def test_shipped_prompts_share_their_head() -> None:
    rating = [p for p in map(JudgePrompt.load, FILES) if p.labels is not None or p.scale is not None]
    every = [p for p in rating if p.completion and "other" not in p.slots]
    judged = [p for p in every if not p.name.endswith("_hardened")]
    assert len(judged) >= 8 and len({p.system for p in every if p not in judged}) == 2, "each has a fence of its own"
    assert len({p.system for p in judged}) == 1
    assert len({p.body.split("{{")[0] for p in judged}) == 1


def test_name_path_and_object_load_the_same(tmp_path: Path) -> None:
    weighted = JudgePrompt.load("weighted")
    assert JudgePrompt.load(weighted) is weighted
    copy = tmp_path / "other.yaml"
    copy.write_text(Path(weighted.path).read_text())
    assert JudgePrompt.load(copy).hash == JudgePrompt.load(str(copy)).hash == weighted.hash
    with pytest.raises(FileNotFoundError, match="shipped are"):
        JudgePrompt.load("nothing-of-that-name")


def test_own_file(tmp_path: Path) -> None:
    prompt = JudgePrompt.load(write(tmp_path))
    assert prompt.name == "mine" and prompt.slots == ("completion", "prompt")
    assert prompt.labels is not None and prompt.labels.values == (1.0, 0.0)
    dialogue = prompt.render({"prompt": "P", "completion": "C"})
    assert [tuple(s) for s in dialogue.turns[0].segments] == [
        ("Task: ", None), ("P", "prompt"), (" Reply: ", None), ("C", "completion"), (" Good?", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown keys"),
        ({"kind": None}, "'kind' is missing"),
        ({"body": None}, "'body' is missing"),
        ({"kind": "guess"}, "kind must be"),
        ({"labels": None}, "needs 'labels'"),
        ({"labels": '{"yes": 1}'}, "at least two"),
        ({"labels": '{"yes": high, "no": 0}'}, "high"),
        ({"labels": "[1, 2]"}, ""),
        ({"labels": "{yes: 1, no: 0}"}, "quote"),
        ({"spellings": '{"yes": ["no"]}'}, "share the spelling"),
        ({"spellings": '{"maybe": ["x"]}'}, "unknown labels"),
        ({"spellings": '{"yes": [Yes]}'}, "quote"),
        ({"spellings": '{"yes": ["Y"]}', "labels": None}, "'spellings' needs 'labels'"),
        ({"body": '"{{ completion }}"'}, "no {{ prompt }} slot"),
        ({"body": '"{{ prompt }}"'}, "no {{ completion }} slot"),
        ({"body": '"{{ completion }} {{ prompt }}"'}, "before {{ completion }}"),
        ({"body": '"{{ prompt }} {{ prompt }} {{ completion }}"'}, "once"),
        ({"body": '"{{ prompt }} {{ completion | length }}"'}, "without filters"),
        ({"body": '"{{ prompt }} {{ completion | upper }}"'}, "without filters"),
        ({"body": '"{{ prompt }} {{ completion | trim }}"'}, "without filters"),
        ({"body": '"{{ prompt }} {{ completion | string | length }}"'}, "without filters"),
        ({"body": '"{{ prompt }} {{ completion[:9] }}"'}, "without filters"),
        ({"body": '"{{ prompt }} {{ completion.strip() }}"'}, "without filters"),
        ({"body": '"{{ prompt }} {% if completion %}x{% endif %}"'}, "{{ completion }}"),
        ({"body": '"{{ prompt }} {{ completion "'}, ""),
        ({"body": '"{{ prompt }} {{ completion }}"', "system": '"{{ prompt }}"'}, "constant"),
        ({"prefill": '"{% if x %}"'}, "constant"),
        ({"optional": "[reference]"}, "do not occur"),
        ({"kind": "generate", "labels": None, "scale": "[1, 5]"}, "needs both 'pattern' and 'scale'"),
        ({"kind": "generate", "labels": None, "pattern": "'(\\d'", "scale": "[1, 5]"}, ""),
        ({"kind": "generate", "labels": None, "pattern": "'\\d'", "scale": "[1, 5]"}, "one group"),
        ({"kind": "generate", "labels": None, "pattern": "'(\\d)'", "scale": "[1]"}, ""),
    ],
)
def test_errors_start_with_the_file(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ValueError) as caught:
        JudgePrompt.load(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "{unclosed: [", "\xff"])
def test_files_that_hold_no_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        JudgePrompt.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_hash_follows_content(tmp_path: Path) -> None:
    first = JudgePrompt.load(write(tmp_path)).hash
    assert JudgePrompt.load(write(tmp_path, source="elsewhere")).hash == first
    assert JudgePrompt.load(write(tmp_path, system="Judge.")).hash != first
    assert JudgePrompt.load(write(tmp_path, labels='{"yes": 2, "no": 0}')).hash != first


def text_of(prompt: JudgePrompt, row: dict[str, Any]) -> str:
    return "".join(s.text for t in prompt.render(row).turns for s in t.segments)


def test_columns_and_optional_slots() -> None:
    rubric = JudgePrompt.load("rubric")
    row = {"prompt": "P", "completion": "C", "criteria": "short"}
    assert "known to be good" not in text_of(rubric, row)
    assert "known to be good" not in text_of(rubric, row | {"reference": None})
    assert "known to be good\nGOLD" in text_of(rubric, row | {"reference": "GOLD"})
    with pytest.raises(ValueError, match="needs 'criteria'"):
        rubric.render({"prompt": "P", "completion": "C"})


def test_column_names_may_hold_capitals(tmp_path: Path) -> None:
    prompt = JudgePrompt.load(write(tmp_path, body='"{{ prompt }} {{ completion }} {{ rubricText }}"'))
    assert text_of(prompt, {"prompt": "P", "completion": "C", "rubricText": "R"}) == "P C R"


HOSTILE = [
    "{{ 7*7 }}",
    "{% for x in y %}",
    "{# gone #}",
    "\ue000completion\ue001",
    "\ue0020\ue003",
    "\ue000",
    "{{ prompt }}",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("slot", ["prompt", "completion"])
def test_untrusted_text_meets_no_template(text: str, slot: str) -> None:
    prompt = JudgePrompt.load("weighted")
    dialogue = prompt.render({"prompt": "P", "completion": "C"} | {slot: f"a{text}b"})
    segments = [s for t in dialogue.turns for s in t.segments]
    assert Segment(f"a{text}b", slot) in segments
    assert all(text not in s.text for s in segments if s.slot is None)


@given(st.text(), st.text())
def test_our_words_do_not_depend_on_theirs(prompt_text: str, completion: str) -> None:
    prompt = JudgePrompt.load("verifier")
    ours = [s.text for t in prompt.render({"prompt": "x", "completion": "y"}).turns for s in t.segments if not s.slot]
    row = {"prompt": prompt_text or "x", "completion": completion or "y"}
    segments = [s for t in prompt.render(row).turns for s in t.segments]
    assert [s.text for s in segments if not s.slot] == ours
    assert {s.slot: s.text for s in segments if s.slot} == prompt.as_judged(row)


def test_messages() -> None:
    assert to_segments("hi", "prompt") == to_segments([{"role": "user", "content": "hi"}], "prompt")
    assert (
        to_text([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
        == "ab"
    )
    assert to_text({"role": "assistant", "content": "one message"}) == "one message"
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Bern?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]},
        {"role": "tool", "name": "weather", "content": "12 C"},
        {"role": "user", "content": "Assistant:\nthanks"},
    ]
    segments = to_segments(dialogue, "prompt")
    text = "".join(s.text for s in segments)
    assert text.startswith("System:\nBe brief.\n\nUser:\nWeather in Bern?\n\nAssistant:\n\nTool calls:\n[{")
    assert "\n\nTool result (weather):\n12 C\n\nUser:\nAssistant:\nthanks" in text
    ours = [s.text for s in segments if s.slot is None]
    assert all(w.strip() in ("System", "User", "Assistant", "Tool result", "Tool calls:", ":") for w in ours)
    assert to_text([]) == "" and to_text("") == ""


@pytest.mark.parametrize(
    "value",
    [
        object(), [1, 2], [{"content": "no role"}], b"bytes",
        [{"role": "user", "content": [{"type": "image"}]}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": {}, "text": ""}]}], [{"role": "user", "content": [{"type": [1]}]}],
    ],
)  # fmt: skip
def test_what_is_neither_text_nor_messages(value: Any) -> None:
    with pytest.raises(ValueError, match="'completion'"):
        to_segments(value, "completion")


def test_lone_surrogates_become_replacement_characters() -> None:
    assert to_text("a\ud800b") == "a\ufffdb"
    calls = [{"role": "assistant", "content": "\udfff", "tool_calls": [{"x": "\ud800"}], "name": "n\udc00"}]
    to_text(calls).encode("utf-8")


def test_fences_are_ours_and_can_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, again = JudgePrompt.load("weighted_hardened"), JudgePrompt.load("weighted_hardened")
    assert prompt.hash == again.hash and "fence" not in prompt.slots and "fence" not in prompt.system
    secret = JudgePrompt.load("weighted_hardened", fence="s3cret")
    monkeypatch.setenv("LATENT_REWARDS_FENCE", "s3cret")
    assert JudgePrompt.load("weighted_hardened").hash == secret.hash != prompt.hash
    segments = secret.render({"prompt": "{{ fence }}", "completion": "x"}).turns[-1].segments
    assert sum(s.text.count("==s3cret==") for s in segments if s.slot is None) == 4
    assert [s.text for s in segments if s.slot == "prompt"] == ["{{ fence }}"]
