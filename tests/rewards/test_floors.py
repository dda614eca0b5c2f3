"""A floor for replies that end inside their thought: inside another reward it is what it is alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latent_rewards import (
    ContrastiveReward,
    EnsembleReward,
    GuardedReward,
    HFJudge,
    LikertReward,
    PairwiseReward,
    ProbabilityWeightedReward,
    VerifierReward,
    build_reward,
)
from latent_rewards.evaluation import scorers
from latent_rewards.evaluation.readings import Readings
from latent_rewards.files.cache import Cache
from latent_rewards.rewards.calibrated import CalibratedReward, Calibration
from latent_rewards.rewards.reasoned import ReasonedReward

TASK = "Name a prime above ten."
WHOLE = "Eleven is prime."
CUT = "<think>\nTen is even, and"
PROMPTS, COMPLETIONS = [TASK] * 3, [WHOLE, CUT, "Eleven."]
FLOOR = -2.5


@pytest.fixture(scope="module")
def judge(make_judge: Any) -> HFJudge:
    """A tiny random judge."""
    return make_judge("llama", "digits")


@pytest.fixture
def member(judge: HFJudge) -> ProbabilityWeightedReward:
    return ProbabilityWeightedReward(judge, unfinished=FLOOR)


@pytest.mark.parametrize("against", ["task", "shuffled"])
def test_a_floor_is_not_contrasted_away(member: Any, judge: HFJudge, against: Any) -> None:
    plain = ContrastiveReward(ProbabilityWeightedReward(judge), against=against).score(PROMPTS, COMPLETIONS)
    got = ContrastiveReward(member, against=against)
    scores = got.score(PROMPTS, COMPLETIONS)
    assert np.isnan(plain[1]) and scores[1] == FLOOR
    np.testing.assert_array_equal(scores[[0, 2]], plain[[0, 2]])
    assert got.bounds == (-10, 10)
    assert ContrastiveReward(ProbabilityWeightedReward(judge, unfinished=-99.0)).bounds == (-99, 10)


def test_an_ensemble_standardises_the_floor_like_any_score_of_that_member(member: Any, judge: HFJudge) -> None:
    verifier = VerifierReward(judge, unfinished=0.25)
    both = EnsembleReward([member, verifier], how="mean", location=[5, 0.5], scales=[2, 0.1])
    assert both.score(PROMPTS, COMPLETIONS)[1] == pytest.approx(((FLOOR - 5) / 2 + (0.25 - 0.5) / 0.1) / 2)
    without = EnsembleReward([member, VerifierReward(judge)]).score(PROMPTS, COMPLETIONS)
    assert np.isnan(without[1]), "one member has no score, so there is none"
    outer = EnsembleReward([member, VerifierReward(judge)], unfinished=-7.0).score(PROMPTS, COMPLETIONS)
    assert outer[1] == -7.0 and not np.isnan(outer).any()


def test_a_guard_and_a_gate_leave_the_floor_alone(member: Any, judge: HFJudge) -> None:
    gate = VerifierReward(judge)
    for options in ({}, {"gate": gate, "gate_below": 2.0}, {"gate": gate, "gate_below": 2.0, "gate_slope": 1.0}):
        got = GuardedReward(member, floor=-50.0, **options).score(PROMPTS, COMPLETIONS)
        assert got[1] == FLOOR and got[0] != FLOOR
    assert np.isnan(GuardedReward(ProbabilityWeightedReward(judge)).score(PROMPTS, COMPLETIONS)[1])


def test_calibrated_reasoned_and_compared(member: Any, judge: HFJudge) -> None:
    line = Calibration("affine", np.array([2.0, 1.0]), np.zeros(0))
    got = CalibratedReward(member, line).score(PROMPTS, COMPLETIONS)
    assert got[1] == 2 * FLOOR + 1 and np.isfinite(got).all()
    inner = ProbabilityWeightedReward(judge, prompt="weighted_reasoned", unfinished=FLOOR)
    thought = ReasonedReward(inner, max_new_tokens=4).score(PROMPTS, COMPLETIONS)
    assert thought[1] == FLOOR and np.isfinite(thought).all()
    compared = PairwiseReward(judge, unfinished=FLOOR)
    alone = compared.score(PROMPTS, COMPLETIONS)
    both = EnsembleReward([compared, VerifierReward(judge, unfinished=0.0)], how="mean")
    assert alone[1] == FLOOR and both.score(PROMPTS, COMPLETIONS)[1] == pytest.approx(FLOOR / 2)


def test_from_yaml_a_member_has_a_floor_of_its_own(judge: HFJudge) -> None:
    of = [{"reward": "weighted", "unfinished": FLOOR}, {"reward": "verifier", "unfinished": 0.5}]
    got = build_reward("ensemble", judge, of=of).score(PROMPTS, COMPLETIONS)
    assert got[1] == FLOOR
    got = build_reward("contrastive", judge, of={"reward": "verifier", "unfinished": FLOOR})
    assert got.score(PROMPTS, COMPLETIONS)[1] == FLOOR


@pytest.mark.parametrize("guided", [False, True])
def test_likert_columns_of_an_evaluation_have_the_floor(make_judge: Any, tmp_path: Any, guided: bool) -> None:
    judge = make_judge("llama", "digits")
    options = {"guided": True} if guided else {"max_new_tokens": 2}
    reward: Any = build_reward("likert5", judge, n_samples=3, unfinished=FLOOR, scale=2.0, **options)
    rows = [{"prompt": TASK, "completion": c} for c in COMPLETIONS]
    readings = Readings(judge, Cache(tmp_path))
    if isinstance(reward, LikertReward):
        list(readings.fill_answers(reward, rows))
        list(readings.fill_answers(reward, rows, greedy=True))
    else:
        list(readings.fill([(r.prompt, r.need) for r in reward.requests(rows)], rows))
    columns = scorers.columns("rating", reward, readings, rows, greedy=True)
    assert set(columns) == {f"rating/{k}" for k in ("one", "mean", "mode", "greedy")}
    assert all(column.scores[1] == FLOOR for column in columns.values())
    np.testing.assert_array_equal(columns["rating/mean"].scores, reward.score(PROMPTS, COMPLETIONS))
