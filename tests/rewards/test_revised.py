"""A reply read beside the judge's own revision of it: what is shown, what is kept, and what becomes of no revision."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import UNREADABLE, FakeJudge, Logs, check_reward, trl_kwargs

from latent_rewards import HFJudge, JudgePrompt, LikelihoodReward, LikertReward, ProbabilityWeightedReward, build_reward
from latent_rewards.judge.hf import Row
from latent_rewards.rewards.guarded import GuardedReward
from latent_rewards.rewards.revised import UNREVISED, RevisedReward

PROMPTS, COMPLETIONS = ["What is 2 + 2?", "Say hi", "What is 2 + 2?"], ["4", "hi there", "4"]


class Writer(FakeJudge):
    """Writes the reply in capitals; counts the replies that it was asked to revise."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def generate(self, prompt: JudgePrompt, rows: Sequence[Row], **options: Any) -> list[list[str | None]]:
        assert prompt.name == "revise" and options["temperature"] == 0.0 and options["n"] == 1
        assert options["max_new_tokens"] == 256
        self.written += [str(row["completion"]) for row in rows]
        said = {"none": None, "blank": " \n", "cut": "<think>so"}
        return [[said.get(str(row["completion"]), f"<think>hm</think>\n{row['completion']}".upper())] for row in rows]


def make(judge: Any, **options: Any) -> RevisedReward:
    return RevisedReward(ProbabilityWeightedReward(judge, prompt="weighted_reference"), **options)


def test_score_is_the_inner_reward_given_the_revision(folder: str) -> None:
    judge = HFJudge(folder, dtype="float32", device="cpu", max_length=2000)
    reward = make(judge, max_new_tokens=8)
    rows = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    texts = judge.generate(JudgePrompt.load("revise"), rows[:2], n=1, temperature=0.0, max_new_tokens=8, seed=0)
    revised = [text.strip() for (text,) in texts if text]
    inner = ProbabilityWeightedReward(judge, prompt="weighted_reference")
    want = inner.score(PROMPTS, COMPLETIONS, reference=[*revised, revised[0]])
    np.testing.assert_allclose(reward.score(PROMPTS, COMPLETIONS), want, atol=1e-5)
    assert not np.isclose(want, inner.score(PROMPTS, COMPLETIONS)).any(), "a reference counts"
    assert reward.references(rows) == [*revised, revised[0]]


def test_a_reply_is_revised_once_and_a_given_reference_is_used() -> None:
    judge = Writer()
    reward = make(judge, at_once=1)
    first = reward.score(PROMPTS, COMPLETIONS)
    assert judge.written == ["4", "hi there"] and first[0] == first[2]
    mixed = reward.score(PROMPTS, COMPLETIONS, reference=["four", None, " "])
    assert judge.written == ["4", "hi there"], "kept by content"
    inner = ProbabilityWeightedReward(judge, prompt="weighted_reference")
    np.testing.assert_array_equal(
        mixed, inner.score(PROMPTS, COMPLETIONS, reference=["four", "HI THERE", "4"]), "thoughts are set aside"
    )
    again = pickle.loads(pickle.dumps(reward))
    assert again.score(PROMPTS, COMPLETIONS).tolist() == first.tolist() and again.judge.written == judge.written
    logs = Logs()
    reward(prompts=PROMPTS, completions=COMPLETIONS, reference=["four", None, None], **trl_kwargs(3, logs))
    assert logs.metrics["weighted-weighted_reference-revised/given"] == pytest.approx(1 / 3)
    assert logs.extra["weighted-weighted_reference-revised/reference"] == ["four", "HI THERE", "4"]


def test_revisions_are_kept_in_a_folder(tmp_path: Path) -> None:
    judges = Writer(), Writer(), Writer()
    judges[2].fingerprint = "another"
    scores = [make(judge, cache=tmp_path / "kept").score(PROMPTS, COMPLETIONS) for judge in judges]
    assert scores[0].tolist() == scores[1].tolist()
    assert [len(judge.written) for judge in judges] == [2, 0, 2], "of this judge alone"
    other = make(judges[1], cache=tmp_path / "kept", revise_prompt=JudgePrompt.load("likert10"))
    assert other.fingerprint != make(judges[1]).fingerprint


def test_no_revision_is_no_score() -> None:
    reward = make(Writer())
    replies = ["fine", "none", "blank", "cut"]
    scores, reasons = reward.score_with_reasons(["Go"] * 4, replies)
    assert np.isnan(scores).tolist() == [False, True, True, True] and reasons[1:] == [UNREVISED] * 3
    given = reward.score(["Go"] * 4, replies, reference=["so"] * 4)
    assert not np.isnan(given).any(), "none is needed"


def test_contract_and_composition() -> None:
    judge = FakeJudge(answers=["Better."])
    check_reward(build_reward("revised", judge))
    reward = make(judge, scale=2.0, clip=(0.0, 15.0))
    assert reward.bounds == (0.0, 15.0) and set(reward.required) == {"prompt", "completion"}
    guarded = GuardedReward(make(judge))
    scores = guarded.score(["Say it."] * 2, ["Fine, it is said.", ""])
    assert scores[1] == 0.0 and np.isfinite(scores[0])
    assert np.isnan(make(judge).score(["Say it."], [UNREADABLE])).all()


def test_what_cannot_be_is_told() -> None:
    judge = FakeJudge()
    for inner in (ProbabilityWeightedReward(judge), LikelihoodReward(judge, of="reference")):
        with pytest.raises(ValueError, match=r"shows no {{ reference }}; use prompt='weighted_reference'"):
            RevisedReward(inner)
    with pytest.raises(ValueError, match="revisions need kind 'generate'"):
        make(judge, revise_prompt="weighted")
    with pytest.raises(ValueError, match="must be at least 1"):
        make(judge, max_new_tokens=0)
    with pytest.raises(ValueError, match="'revise' has no 'pattern' and 'scale'"):
        LikertReward(judge, prompt="revise")
    judge.capabilities = frozenset({"labels"})
    with pytest.raises(ValueError, match="cannot generate, which revisions need"):
        make(judge)
