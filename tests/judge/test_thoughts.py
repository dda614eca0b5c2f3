"""What a policy thinks is told apart from what it answers; what holds no thought stays as it is, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
from contracts import FakeJudge, Logs, trl_kwargs
from hypothesis import given
from hypothesis import strategies as st

from latent_rewards import GuardedReward, JudgePrompt, LikertReward, Need, ProbabilityWeightedReward, Request
from latent_rewards.judge.prompts import to_text
from latent_rewards.judge.thoughts import TAGS, UNFINISHED, Split, set_aside, split
from latent_rewards.serving.schemas import PromptSpec

HARMONY = "<|channel|>analysis<|message|>a<|end|><|start|>assistant"
CODE = "Use tags:\n```html\n<think>\nx\n</think>\n```\nDone."
TABLE: list[tuple[str, str, str, bool]] = [
    # reply, answer, thought, finished
    ("Paris.", "Paris.", "", True),
    ("<think>\nFrance... Paris.\n</think>\n\nParis.", "Paris.", "France... Paris.", True),
    ("<think>a</think>Paris.", "Paris.", "a", True),
    ("<think></think>\n\nParis.", "Paris.", "", True),
    ("<think>\n\n</think>\n\nParis.\n", "Paris.\n", "", True),
    ("\n <think>a</think> Paris.", "Paris.", "a", True),
    ("France... Paris.\n</think>\n\nParis.", "Paris.", "France... Paris.", True),
    ("reasoning.</think>Paris.", "Paris.", "reasoning.", True),
    ("<THINK>a</Think>Paris.", "Paris.", "a", True),
    ("<think>a", "", "a", False),
    ("<think>", "", "", False),
    ("<think>a</thinking>b", "", "a</thinking>b", False),
    ("<think>a <think>b</think> c</think>Paris.", "Paris.", "a <think>b</think> c", True),
    ("<think>a</think><think>b</think>Paris.", "Paris.", "a\n\nb", True),
    ("<think>a</think>\nParis.\n<think>b</think>\nSure.", "Paris.\n\nSure.", "a\n\nb", True),
    ("Paris.\n<think>am I sure?", "", "am I sure?", False),
    ("<think>a</think>", "", "a", True),
    ("The <think> tag opens a thought.", "The <think> tag opens a thought.", "", True),
    ("Write <think>x</think> around it.", "Write <think>x</think> around it.", "", True),
    (CODE, CODE, "", True),
    ("`</think>` closes it.", "`</think>` closes it.", "", True),
    (f"<think>a ```</think>{CODE}", CODE, "a ```", True),
    ("<think>`</think>` is a tag</think>Yes.", "` is a tag</think>Yes.", "`", True),
    ("<thinking>a</thinking>\nParis.", "Paris.", "a", True),
    ("<thought>\na\n</thought>\n\nParis.", "Paris.", "a", True),
    ("<reasoning>a</reasoning><answer>Paris.</answer>", "<answer>Paris.</answer>", "a", True),
    ("[THINK]a[/THINK]Paris.", "Paris.", "a", True),
    ("<seed:think>a</seed:think>Paris.", "Paris.", "a", True),
    ("<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\nParis.", "Paris.", "a", True),
    ("◁think▷a◁/think▷Paris.", "Paris.", "a", True),
    (f"{HARMONY}<|channel|>final<|message|>Paris.<|return|>", "Paris.", "a", True),
    ("<|channel|>analysis<|message|>a", "", "a", False),
    ("<|channel|>commentary to=f<|constrain|>json<|message|>{}<|call|>", "", "{}", False),
    ("analysisWe need Paris.assistantfinalParis.", "Paris.", "We need Paris.", True),
    ("analysis shows growth", "analysis shows growth", "", True),
    ("<think>\n好的，首都是巴黎。\n</think>\n\n巴黎。", "巴黎。", "好的，首都是巴黎。", True),
    ("x < y and <thin king", "x < y and <thin king", "", True),
    ("", "", "", True),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "answer", "thought", "finished"), TABLE)
def test_replies(reply: str, answer: str, thought: str, finished: bool) -> None:
    assert split(reply) == Split(answer, thought, finished)
    again = split(answer)
    assert (again.answer == answer and again.finished) or "</think>" in answer, "an answer holds no thought"


def test_other_tags_by_setting() -> None:
    assert split("<plan>a</plan>Paris.") == Split("<plan>a</plan>Paris.", "")
    assert split("<plan>a</plan>Paris.", [("<plan>", "</plan>")]) == Split("Paris.", "a")
    assert len(TAGS) >= 8


@given(st.text(alphabet=st.characters(blacklist_characters="<[◁"), max_size=300))
def test_a_text_without_tags_stays_bit_for_bit(text: str) -> None:
    if not text.startswith("analysis"):
        assert split(text) == Split(text, "") and set_aside(text, "strip")[0] is text


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ANSWER, THOUGHT, PARIS = said("assistant", "Paris."), "France.", {"type": "text", "text": "Paris."}
MESSAGES: list[tuple[Any, str, str, bool]] = [
    # completion, text of "strip", text of "only", finished
    ([ANSWER], "Paris.", "", True),
    ([said("assistant", "<think>France.</think>Paris.")], "Paris.", THOUGHT, True),
    ([said("assistant", "Paris.", reasoning_content=THOUGHT)], "Paris.", THOUGHT, True),
    ([said("assistant", "Paris.", reasoning=THOUGHT)], "Paris.", THOUGHT, True),
    ([said("assistant", "Paris.", thinking=THOUGHT)], "Paris.", THOUGHT, True),
    (said("assistant", "Paris.", thinking=THOUGHT), "Paris.", THOUGHT, True),
    ([said("assistant", [{"type": "thinking", "thinking": THOUGHT}, PARIS])], "Paris.", THOUGHT, True),
    ([said("assistant", [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, PARIS])], "Paris.",
     THOUGHT, True),
    ([said("assistant", "", reasoning_content=THOUGHT)], "", THOUGHT, False),
    ([said("assistant", None, reasoning_content=THOUGHT)], "", THOUGHT, False),
    ([said("assistant", "<think>France.")], "", THOUGHT, False),
    ([said("assistant", "<think>a</think>Which?"), said("user", "F"), said("assistant", "<think>b")], "", "", False),
    ([said("assistant", "<think>a</think>Which?"), said("user", "<think>x</think>"), ANSWER],
     "Assistant:\nWhich?\n\nUser:\n<think>x</think>\n\nAssistant:\nParis.", "", True),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "answer", "thought", "finished"), MESSAGES)
def test_messages(completion: Any, answer: str, thought: str, finished: bool) -> None:
    made, done = set_aside(completion, "strip")
    assert done == finished
    if finished:
        assert to_text(made) == answer
    if len(completion) == 1 or not isinstance(completion, list):
        assert to_text(set_aside(completion, "only")[0]) == thought
        kept = to_text(set_aside(completion, "keep")[0])
        assert THOUGHT in kept or not thought


def shown(row: dict[str, Any], **how: Any) -> tuple[str, str | None]:
    dialogue = JudgePrompt.load("weighted").with_thoughts(**how).render({"prompt": "p", **row})
    return "".join(s.text for s in dialogue.turns[-1].segments if s.slot == "completion"), dialogue.problem


def test_what_the_judge_is_shown() -> None:
    reply = "<think>France.</think>Paris."
    assert shown({"completion": reply}) == ("Paris.", None)
    assert shown({"completion": reply}, reasoning="keep") == (reply, None)
    assert shown({"completion": reply}, reasoning="only") == ("France.", None)
    assert shown({"completion": "<think>a"}) == ("<think>a", UNFINISHED)
    assert shown({"completion": "<think>a"}, keep_unfinished=True) == ("<think>a", None)
    assert shown({"completion": "<plan>a</plan>b"}, tags=[("<plan>", "</plan>")]) == ("b", None)


def test_prompts_that_show_tags_stay_and_earlier_turns_do_not() -> None:
    material = "What does <think>x</think> mean?\n<think>\ny"
    weighted = JudgePrompt.load("weighted")
    for prompt in (material, [said("user", material)]):
        segments = weighted.render({"prompt": prompt, "completion": "c"}).turns[-1].segments
        assert "".join(s.text for s in segments if s.slot == "prompt") == material
    chat = [
        said("user", "hi"),
        said("assistant", "<think>a</think>Hello.", reasoning_content="b"),
        said("user", "more"),
    ]
    segments = weighted.render({"prompt": chat, "completion": "c"}).turns[-1].segments
    assert [s.text for s in segments if s.slot == "prompt"] == ["hi", "Hello.", "more"]


def test_rewards(make_judge: Any) -> None:
    judge = make_judge("llama")
    replies = ["<think>long ago</think>Paris.", "<think>never", "Paris."]
    prompts = ["p"] * 3
    scores, reasons = ProbabilityWeightedReward(judge).score_with_reasons(prompts, replies)
    assert scores[0] == pytest.approx(scores[2]) and math.isnan(scores[1]) and reasons[1] == UNFINISHED
    floored = ProbabilityWeightedReward(judge, unfinished=-1.0, scale=2.0)
    assert floored.score(prompts, replies).tolist() == pytest.approx([2 * scores[0], -1.0, 2 * scores[2]])
    kept = ProbabilityWeightedReward(judge, unfinished="keep").score(prompts, replies)
    assert kept[0] == pytest.approx(scores[0]) and math.isfinite(kept[1])
    whole = ProbabilityWeightedReward(judge, reasoning="keep").score(prompts, replies)
    assert abs(whole[0] - scores[0]) > 1e-3 and whole[2] == pytest.approx(scores[2]) and math.isfinite(whole[1])
    logs = Logs()
    out = ProbabilityWeightedReward(judge, name="w")(prompts, replies, **trl_kwargs(3, logs))
    assert out[1] is None and logs.metrics["w/unfinished"] == pytest.approx(1 / 3)
    (empty,) = judge.read(
        [Request(JudgePrompt.load("weighted"), [{"prompt": "p", "completion": ""}], Need(labels=True))]
    )
    assert bool(empty.label_logprobs.isfinite().all()), "an empty reply is read; one without an answer is not"
    options = {"prompts": ["p"], "completions": [[said("assistant", "", reasoning_content="a")]]}
    assert math.isnan(ProbabilityWeightedReward(judge).score(*options.values())[0])
    fingerprints = {
        ProbabilityWeightedReward(judge, **how).fingerprint
        for how in (
            {},
            {"reasoning": "keep"},
            {"unfinished": "keep"},
            {"unfinished": 0},
            {"thought_tags": [("a", "b")]},
        )
    }
    assert len(fingerprints) == 5 and ProbabilityWeightedReward(judge, reasoning="strip").fingerprint in fingerprints


def test_sampled_and_composite_rewards() -> None:
    judge = FakeJudge()
    assert LikertReward(judge, reasoning="keep").prompt.reasoning == "keep"
    with pytest.raises(ValueError, match="to the ProbabilityWeightedReward in it, which is what reads"):
        GuardedReward(ProbabilityWeightedReward(judge), reasoning="keep")
    assert GuardedReward(ProbabilityWeightedReward(judge, reasoning="keep")).prompt.reasoning == "keep"


def test_prompts_keep_their_hash_and_travel() -> None:
    plain = JudgePrompt.load("weighted")
    assert plain.with_thoughts("strip").hash == plain.hash
    other = plain.with_thoughts("only", [("<a>", "</a>")], keep_unfinished=True)
    assert other.hash != plain.hash and PromptSpec.of(other).build().hash == other.hash
    with pytest.raises(ValueError, match="'reasoning' must be"):
        plain.with_thoughts("drop")  # type: ignore[arg-type]
