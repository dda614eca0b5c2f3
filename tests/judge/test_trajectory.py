"""Turns and tool calls as the judge reads them, and the slots that are made from a completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latent_rewards import HFJudge, JudgePrompt, Need
from latent_rewards.judge.prompts import Segment
from latent_rewards.judge.reading import Request

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
STEPS: list[dict[str, Any]] = [
    {"role": "assistant", "content": "<think>Where?</think>\n\nI look it up.", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "12 C"},
    {"role": "assistant", "content": "It is 12 C in Bern.", "reasoning_content": "Done."},
]
TRANSCRIPT = (
    "Assistant:\nI look it up.\nTool calls:\n"
    '[{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Bern\\"}"}}]'
    "\n\nTool result (weather):\n12 C\n\nAssistant:\nIt is 12 C in Bern."
)
BODY = "Task: {{ prompt }}\nCourse: {{ trajectory }}\nAnswer: {{ final_answer }}\nGood?"


def made(folder: Path, body: str, more: str = "") -> JudgePrompt:
    path = folder / "mine.yaml"
    lines = "".join(f"  {line}\n" for line in body.split("\n"))
    path.write_text(f'kind: label\nbody: |\n{lines}labels: {{"yes": 1, "no": 0}}\n{more}')
    return JudgePrompt.load(path)


def text_of(prompt: JudgePrompt, completion: Any) -> str:
    turns = prompt.render({"prompt": "P", "completion": completion}).turns
    return "".join(s.text for s in turns[-1].segments)


def body_of(value: Any) -> str:
    """What stands for the completion in the shipped prompt."""
    text = text_of(JudgePrompt.load("weighted"), value)
    return text.partition("### Reply\n")[2].partition("\n\n### Question")[0]


def test_the_transcript() -> None:
    assert body_of(STEPS) == TRANSCRIPT
    segments = JudgePrompt.load("weighted").render({"prompt": "P", "completion": STEPS}).turns[-1].segments
    ours = "".join(s.text for s in segments if s.slot is None)
    assert "Bern" not in ours and "weather" not in ours and "Tool result" in ours


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"role": "assistant", "content": ""}], ""),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant"}], ""),
        ([], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
         'Assistant:\n\nTool calls:\n[{"name": "f"}]'),
        ([{"role": "assistant", "content": "a", "tool_calls": []}], "a"),
        ([{"role": "tool", "content": ""}, {"role": "assistant", "content": ""}], "Tool result:\n\n\nAssistant:\n"),
        ([{"role": "tool", "content": '{"x": 1}'}], 'Tool result:\n{"x": 1}'),
        ([{"role": "function", "name": "f", "content": "1"}, {"role": "assistant", "content": "2"}],
         "Other (f):\n1\n\nAssistant:\n2"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "more"},
          {"role": "assistant", "content": "b"}], "Assistant:\na\n\nUser:\nmore\n\nAssistant:\nb"),
        ([{"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [{"name": "f"}]}],
         'Assistant:\n\nTool calls:\n[{"name": "f"}]'),
    ],
)  # fmt: skip
def test_forms(value: Any, text: str) -> None:
    assert body_of(value) == text


def test_slots_made_from_the_completion(tmp_path: Path) -> None:
    prompt = made(tmp_path, BODY)
    assert prompt.slots == ("completion", "prompt")
    assert text_of(prompt, STEPS) == f"Task: P\nCourse: {TRANSCRIPT}\nAnswer: It is 12 C in Bern.\nGood?"
    assert text_of(prompt, "<think>x</think>Warm.") == "Task: P\nCourse: Assistant:\nWarm.\nAnswer: Warm.\nGood?"
    assert text_of(prompt, STEPS[:1]).endswith("Answer: I look it up.\nGood?")
    assert text_of(prompt, STEPS[:2]).endswith("Answer: I look it up.\nGood?")
    silent = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert text_of(prompt, silent).endswith("Answer: \nGood?")
    with pytest.raises(ValueError, match="needs 'completion'"):
        prompt.render({"prompt": "P", "trajectory": "x", "final_answer": "y"})


def test_thoughts_in_them(tmp_path: Path) -> None:
    kept = made(tmp_path, BODY, "reasoning: keep\n")
    text = text_of(kept, STEPS)
    assert "Assistant:\n<think>Where?</think>\n\nI look it up.\nTool calls:" in text
    assert "<think>\nDone.\n</think>\n\nIt is 12 C" in text and text.endswith("\nAnswer: It is 12 C in Bern.\nGood?")
    assert "Course: Assistant:\nDone.\n\nWhere?\n" not in text
    only = made(tmp_path, "{{ prompt }} {{ completion }} ?", "reasoning: only\n")
    assert text_of(only, STEPS) == "P Where?\n\nDone. ?"


@pytest.mark.parametrize(
    "body",
    ["{{ prompt }} {{ trajectory }} {{ trajectory }}", "{{ trajectory }} {{ prompt }}",
     "{{ final_answer }} {{ prompt }} {{ completion }}", "{{ prompt }} {{ completion }} {{ completion }}",
     "{{ prompt }} {% if extra %}{{ trajectory }}{% endif %}"],
)  # fmt: skip
def test_each_once_and_after_the_prompt(tmp_path: Path, body: str) -> None:
    with pytest.raises(ValueError, match="must come once"):
        made(tmp_path, body)


def test_the_first_view_is_what_is_cut(tmp_path: Path) -> None:
    segments = made(tmp_path, BODY).render({"prompt": "P", "completion": "Warm."}).turns[-1].segments
    assert [s for s in segments if s.slot] == [
        Segment("P", "prompt"), Segment("Warm.", "completion"), Segment("Warm.", "final_answer"),
    ]  # fmt: skip


def test_too_long_trajectories_keep_their_answer(make_judge: Any, tmp_path: Path) -> None:
    prompt = made(tmp_path, BODY)
    judge: HFJudge = make_judge("llama", "digits", max_length=400, on_overflow="truncate")
    long = [*STEPS[:1], {"role": "tool", "content": "12 C and " * 400}, *STEPS[2:]]
    (encoded,), reasons = judge._encode(prompt, [{"prompt": "P", "completion": long}])
    text = judge.encoder.tokenizer.decode(encoded.ids)
    assert reasons == [None] and "Answer: It is 12 C in Bern." in text and "Good?" in text


def test_a_judge_reads_it(make_judge: Any) -> None:
    prompt = JudgePrompt.load("trajectory")
    rows = [{"prompt": "How warm is Bern?", "completion": c} for c in (STEPS, "12 C.", STEPS[:2])]
    (reading,) = make_judge("llama", "digits").read([Request(prompt, rows, Need(labels=True))])
    assert reading.reasons == (None, None, None) and reading.label_logprobs is not None
    assert reading.label_logprobs.isfinite().all() and len({float(x) for x in reading.label_logprobs[:, 0]}) == 3
