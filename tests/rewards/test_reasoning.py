"""Thoughts in completions, end to end: every reward scores the answer, and a reply that gives none has no score."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import FakeJudge, Logs, options_for, trl_kwargs

from latent_rewards import (
    ContrastiveReward,
    EnsembleReward,
    GuardedReward,
    HFJudge,
    JudgePrompt,
    LikertReward,
    ProbabilityWeightedReward,
    VerifierReward,
    build_reward,
)
from latent_rewards.judge.thoughts import NO_THOUGHT, UNFINISHED
from latent_rewards.judge.transcripts import split_column
from latent_rewards.probes.probe import prompt_yaml
from latent_rewards.rewards.build import REWARDS

TASK = "Name a prime above ten."
ANSWER = "Eleven is prime."
THOUGHT = "Ten is even. Eleven is divided by one and itself alone."
WHOLE = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
CUT = "<think>\nTen is even, and"


@pytest.fixture(scope="module")
def judge(make_judge: Any) -> HFJudge:
    """A tiny random judge."""
    return make_judge("llama", "digits")


def said(content: object, **fields: object) -> list[dict[str, object]]:
    return [{"role": "assistant", "content": content, **fields}]


SAME = {
    "text": WHOLE,
    "begun by the template": f"{THOUGHT}\n</think>\n\n{ANSWER}",
    "message": said(WHOLE),
    "reasoning_content": said(ANSWER, reasoning_content=THOUGHT),
    "two fields": said(ANSWER, reasoning=THOUGHT, reasoning_content=THOUGHT),
    "thinking": said(ANSWER, thinking=THOUGHT),
    "an empty field": said(ANSWER, reasoning_content=""),
    "parts": said([{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}]),
    "Mistral's parts": said(
        [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, {"type": "text", "text": ANSWER}]
    ),
    "text parts": said([{"type": "text", "text": "<think>x</think>"}, {"type": "text", "text": ANSWER}]),
    "one message": said(WHOLE)[0],
}


def text_of(prompt: JudgePrompt, row: Mapping[str, Any]) -> str:
    return "".join(s.text for t in prompt.render(row).turns for s in t.segments)


def seen(completion: object, **how: Any) -> str:
    """What stands in the slot of the completion."""
    segments = (
        JudgePrompt.load("weighted").with_thoughts(**how).render({"prompt": "P", "completion": completion}).turns[-1]
    )
    return "".join(s.text for s in segments.segments[3:-1])


@pytest.mark.parametrize("completion", SAME.values(), ids=SAME)
def test_the_judge_reads_the_answer_alone(completion: Any) -> None:
    prompt = JudgePrompt.load("weighted")
    assert prompt.render({"prompt": TASK, "completion": completion}) == prompt.render(
        {"prompt": TASK, "completion": ANSWER}
    )


def test_kept_and_only() -> None:
    assert seen(WHOLE, reasoning="keep") == WHOLE == seen(said(ANSWER, reasoning_content=THOUGHT), reasoning="keep")
    assert seen(WHOLE, reasoning="only").strip() == THOUGHT
    assert seen(said(ANSWER, reasoning_content=THOUGHT), reasoning="only") == THOUGHT
    several = "<think>a</think>First.\n<think>b</think>Second."
    assert seen(several, reasoning="only") == "a\n\nb" and seen(several) == "First.\nSecond."
    only = JudgePrompt.load("weighted").with_thoughts("only")
    assert only.render({"prompt": "P", "completion": ANSWER}).problem == NO_THOUGHT
    assert only.render({"prompt": "P", "completion": WHOLE}).problem is None


UNANSWERED = {
    "text": CUT,
    "message": said(CUT),
    "a field, and no content": said("", reasoning_content=THOUGHT),
    "a field, and null": said(None, thinking=THOUGHT),
    "the last of several": [*said("<think>a</think>Let me see."), {"role": "tool", "content": "11"}, *said(CUT)],
}


@pytest.mark.parametrize("completion", UNANSWERED.values(), ids=UNANSWERED)
def test_a_reply_that_ends_inside_its_thought(completion: Any) -> None:
    prompt = JudgePrompt.load("weighted")
    row = {"prompt": "P", "completion": completion}
    assert prompt.render(row).problem == UNFINISHED and prompt.ends_in_thought(completion)
    assert prompt.with_thoughts("only").render(row).problem == UNFINISHED
    kept = prompt.with_thoughts(keep_unfinished=True)
    assert kept.render(row).problem is None and "<think>\nTen is even" in text_of(kept, row)


def test_no_answer_is_missing_where_a_tool_is_called() -> None:
    call = said("", reasoning_content=THOUGHT, tool_calls=[{"function": {"name": "look"}}])
    assert JudgePrompt.load("weighted").render({"prompt": "P", "completion": call}).problem is None
    assert "look" in seen(call) and THOUGHT not in seen(call)


def test_earlier_turns() -> None:
    talk = [{"role": "user", "content": "<think>mine</think>"}, *said("<think>a</think>One."),
            {"role": "user", "content": "More?"}]  # fmt: skip
    prompt = JudgePrompt.load("weighted")
    row = {"prompt": talk, "completion": ANSWER}
    text = text_of(prompt, row)
    assert "<think>mine</think>" in text and "Assistant:\nOne." in text and "<think>a" not in text
    assert "<think>a</think>One." in text_of(prompt.with_thoughts("keep"), row)
    assert "<think>x</think>" in text_of(prompt, {"prompt": "Explain\n<think>x</think>", "completion": ANSWER})
    cut = [*talk[:1], *said(CUT), *talk[2:]]
    assert prompt.render({"prompt": cut, "completion": ANSWER}).problem is None


def test_a_completion_that_is_known_to_begin_inside_the_thought() -> None:
    prompt = JudgePrompt.load("weighted").with_thoughts(opened=True)
    assert prompt.render({"prompt": "P", "completion": ANSWER}).problem == UNFINISHED
    assert seen(f"{THOUGHT}</think>{ANSWER}", opened=True) == ANSWER
    assert seen(said(ANSWER, reasoning_content=THOUGHT), opened=True) == ANSWER


def test_both_replies_of_a_pair() -> None:
    pair = JudgePrompt.load("pairwise")
    row = {"prompt": "P", "completion": WHOLE, "other": WHOLE}
    assert text_of(pair, row) == text_of(pair, {"prompt": "P", "completion": ANSWER, "other": ANSWER})
    assert pair.render({**row, "other": CUT}).problem == UNFINISHED


def test_hash_and_file(tmp_path: Path) -> None:
    prompt = JudgePrompt.load("weighted")
    assert prompt.with_thoughts("strip") is prompt
    changed = [prompt.with_thoughts("keep"), prompt.with_thoughts("only"), prompt.with_thoughts(keep_unfinished=True),
               prompt.with_thoughts(opened=True)]  # fmt: skip
    assert len({p.hash for p in [prompt, *changed]}) == 5
    for p in changed:
        (tmp_path / "mine.yaml").write_text(prompt_yaml(p))
        assert JudgePrompt.load(tmp_path / "mine.yaml").hash == p.hash
    with pytest.raises(ValueError, match="reasoning must be one of"):
        prompt.with_thoughts("drop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line", ["reasoning: drop", "unfinished: 0.5", "opened: 3", "thought_tags: <a>", "thought_tags: [[<a>]]",
             "thought_tags: [[<a>, <a>]]"],
)  # fmt: skip
def test_bad_settings_name_the_file(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(prompt_yaml(JudgePrompt.load("weighted")) + line + "\n")
    with pytest.raises(ValueError, match=str(path)):
        JudgePrompt.load(path)


def test_own_tags_of_a_prompt_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(prompt_yaml(JudgePrompt.load("weighted")) + 'thought_tags: [["<plan>", "</plan>"]]\n')
    prompt = JudgePrompt.load(path)
    assert text_of(prompt, {"prompt": "P", "completion": f"<plan>x</plan>{ANSWER}"}).count("plan") == 0
    assert text_of(prompt, {"prompt": "P", "completion": WHOLE}).count("think") == 0


def test_rows_whose_completion_holds_the_prompt_keep_their_thought() -> None:
    talk = [{"role": "user", "content": TASK}, *said("", reasoning_content=THOUGHT)]
    prompt, completion = split_column({"completion": talk}, "prompt", "completion")
    assert prompt == TASK and JudgePrompt.load("weighted").ends_in_thought(completion)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_reward_scores_the_answer(judge: HFJudge, name: str) -> None:
    options = options_for(name, judge) | ({"max_new_tokens": 4} if name.startswith("likert") else {})
    reward = build_reward(name, judge, **options)
    scores, reasons = reward.score_with_reasons([TASK] * 3, [WHOLE, ANSWER, CUT])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)  # read as one text; a probe's head rounds by row
    assert np.isnan(scores[2]) and reasons[2] == UNFINISHED
    floored = build_reward(name, judge, **options, unfinished=-1.5, scale=2.0, shift=1.0)
    assert floored.score([TASK] * 2, [CUT, ANSWER])[0] == -1.5
    if bounds := floored.bounds:
        assert bounds[0] <= -1.5 <= bounds[1]


def test_the_log_counts_them() -> None:
    logs, reward = Logs(), ProbabilityWeightedReward(FakeJudge(), name="mine")
    reward(prompts=["a"] * 4, completions=[CUT, said(CUT), ANSWER, WHOLE], **trl_kwargs(4, logs))
    assert logs.metrics["mine/unfinished"] == 0.5


def test_a_trainer_gets_none_or_the_floor(judge: HFJudge) -> None:
    rows = {"prompts": [TASK] * 2, "completions": [CUT, ANSWER]}
    out = VerifierReward(judge)(**rows, **trl_kwargs(2))
    assert out[0] is None and out[1] is not None
    assert VerifierReward(judge, unfinished=-1.0, clip=(0.0, 1.0))(**rows, **trl_kwargs(2)) == [-1.0, out[1]]
    kept = VerifierReward(judge, unfinished="keep")(**rows, **trl_kwargs(2))
    assert kept[0] is not None and kept[1] == pytest.approx(out[1], abs=1e-4)


MODES = [{}, {"reasoning": "keep"}, {"reasoning": "only"}, {"opened": True}, {"unfinished": "keep"}]


@pytest.mark.parametrize("how", MODES, ids=str)
@pytest.mark.parametrize("name", ["guarded", "contrastive"])
def test_rewards_that_change_the_text_change_what_is_judged(judge: HFJudge, name: str, how: dict[str, Any]) -> None:
    more = {"gate": "verifier", "gate_below": 0.5, "gate_slope": 1.0, "relevance": 0.5} if name == "guarded" else {
        "against": "shuffled"}  # fmt: skip
    shown = {"keep": WHOLE, "only": f"\n{THOUGHT}\n"}.get(str(how.get("reasoning")), ANSWER)
    plain = {"reasoning": "keep", "unfinished": "keep"}
    want = build_reward(name, judge, **more, **plain).score([TASK], [shown])
    for completion in (WHOLE, said(WHOLE)):
        found = build_reward(name, judge, **more, **how).score([TASK], [completion])
        np.testing.assert_allclose(found, want, atol=2e-3)


def test_guards_do_not_see_thoughts() -> None:
    judge = FakeJudge()
    reward = GuardedReward(ProbabilityWeightedReward(judge), floor=-9.0)
    harmony = f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}"
    blank = "<think>This is a very good thought.</think> \n"
    scores = reward.score([TASK] * 3, [harmony, blank, ANSWER])
    assert scores[0] > -9 and scores[1] == -9 and scores[2] > -9


def test_a_reward_made_of_others_treats_thoughts_as_they_do() -> None:
    judge = FakeJudge()
    inner = ProbabilityWeightedReward(judge, reasoning="keep")
    makers = [lambda **o: GuardedReward(inner, **o), lambda **o: ContrastiveReward(inner, **o),
              lambda **o: EnsembleReward([inner, inner], **o)]  # fmt: skip
    for make in makers:
        assert make().prompt.reasoning == "keep"
        for wrong in ({"reasoning": "only"}, {"opened": True}, {"unfinished": "keep"}):
            with pytest.raises(ValueError, match="which is what reads"):
                make(**wrong)
    members = [{"reward": "weighted", "reasoning": "only"}, "verifier"]
    made = build_reward("ensemble", judge, of=members, reasoning="keep", unfinished=0.0)
    assert isinstance(made, EnsembleReward) and [r.prompt.reasoning for r in made.rewards] == ["only", "keep"]
    assert made.floor_unfinished == 0.0 and [r.floor_unfinished for r in made.rewards] == [None, None]


def test_options_are_in_facts_and_travel(judge: HFJudge) -> None:
    options = ({}, {"reasoning": "keep"}, {"unfinished": 0.0}, {"unfinished": "keep"}, {"opened": True})
    made = [VerifierReward(FakeJudge(), **o) for o in options]  # type: ignore[arg-type]
    assert len({r.fingerprint for r in made}) == 5
    again = pickle.loads(pickle.dumps(made[2]))
    assert again.fingerprint == made[2].fingerprint
    assert LikertReward(judge, reasoning="only").prompt.reasoning == "only"
    with pytest.raises(ValueError, match="unfinished must be"):
        VerifierReward(judge, unfinished="floor")  # type: ignore[arg-type]
