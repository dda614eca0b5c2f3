"""Best-of-n curves against brute force over all subsets, and the choice of n on rewards that are right and wrong."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_rewards.best_of_n.choice_of_n import choose_n, expected_gold, oracle_gold
from latent_rewards.best_of_n.selection import softmax_probabilities

cases = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=7).map(
    lambda rows: (np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float))
)


def brute_force(scores: np.ndarray, gold: np.ndarray, temperature: float) -> list[float]:
    """Mean over every subset of n: the best one (ties shared), or the softmax mean."""
    curve = []
    for n in range(1, len(scores) + 1):
        values = []
        for subset in map(list, itertools.combinations(range(len(scores)), n)):
            s, g = scores[subset], gold[subset]
            p = (s == s.max()) / (s == s.max()).sum() if temperature == 0 else softmax_probabilities(s, temperature)
            values.append(float(p @ g))
        curve.append(float(np.mean(values)))
    return curve


@settings(deadline=None, max_examples=60)
@given(cases, st.sampled_from([0.0, 1e-3, 0.3, 1.0, 40.0]))
def test_curves_are_the_mean_over_all_subsets(case: tuple[np.ndarray, np.ndarray], temperature: float) -> None:
    scores, gold = case
    got = expected_gold(scores, gold, temperature)
    np.testing.assert_allclose(got, brute_force(scores, gold, temperature), rtol=1e-9, atol=1e-11)


def test_real_valued_scores_and_larger_sets() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 300.0):
        scores, gold = rng.normal(size=11) * scale, rng.normal(size=11)
        for t in (0.0, 0.5, 2.0):
            np.testing.assert_allclose(
                expected_gold(scores, gold, t), brute_force(scores, gold, t), rtol=1e-9, atol=1e-10
            )


def test_limits() -> None:
    scores, gold = np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0, 5.0])
    # Best of 1: the mean, 2. Of 2: pairs (3,1), (3,2), (1,2) pick gold 1, 1, 5. Of 3: gold 1.
    np.testing.assert_allclose(expected_gold(scores, gold), [2.0, 7 / 3, 1.0])
    np.testing.assert_allclose(expected_gold(scores, gold, math.inf), [2.0] * 3)
    np.testing.assert_allclose(expected_gold(scores, gold, 1e9), [2.0] * 3, rtol=1e-6)
    np.testing.assert_allclose(expected_gold(scores, gold, 1e-4), [2.0, 7 / 3, 1.0])
    np.testing.assert_allclose(oracle_gold(gold), [2.0, (1 + 5 + 5) / 3, 5.0])
    with pytest.raises(ValueError, match="needs a score"):
        expected_gold(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="temperature"):
        expected_gold(scores, gold, -1.0)


def test_unbiased_for_fresh_draws() -> None:
    """Over many draws of M = 5 the estimate of best-of-2 averages to the truth for two independent draws."""
    rng = np.random.default_rng(1)
    values = np.array([0.0, 1.0, 2.0])  # score = gold, uniform: E max of two = (0*1 + 1*3 + 2*5) / 9
    found = [expected_gold(x, x)[1] for x in rng.choice(values, size=(4000, 5))]
    assert abs(np.mean(found) - 13 / 9) < 3 * np.std(found) / math.sqrt(4000)


def prompts(kind: str, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    gold = [rng.normal(size=8) for _ in range(200)]
    if kind == "right":
        return [g + 0.1 * rng.normal(size=8) for g in gold], gold
    if kind == "noise":
        return [rng.normal(size=8) for _ in gold], gold
    # Right about most completions, fooled by a rare one that is worst: the more are drawn, the more likely it is there.
    traps = [rng.random(8) < 0.12 for _ in gold]
    return [np.where(t, 9.0, g) for g, t in zip(gold, traps, strict=True)], [
        np.where(t, -4.0, g) for g, t in zip(gold, traps, strict=True)
    ]


def test_a_right_reward_wants_all(caplog: pytest.LogCaptureFixture) -> None:
    found = choose_n(*prompts("right", np.random.default_rng(0)))
    assert (found.n, found.temperature) == (8, 0.0) and not found.turns_down and not caplog.records
    assert 0 <= found.regret < 0.05 and found.held_out_gold == pytest.approx(found.gold)


def test_an_exploited_reward_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = choose_n(*prompts("exploited", np.random.default_rng(0)))
    assert found.turns_down and found.drop.low > 0 and "draw fewer" in caplog.text
    assert found.n < 8 or found.temperature > 0
    assert found.gold > found.curves[0.0][-1] and found.regret == pytest.approx(found.oracle - found.held_out_gold)


def test_noise_alone_raises_no_alarm() -> None:
    alarms = [choose_n(*prompts("noise", np.random.default_rng(i)), temperatures=[0.0]).turns_down for i in range(20)]
    assert sum(alarms) <= 2


def test_prompts_without_gold_are_left_out() -> None:
    scores = [np.array([1.0, 2.0]), np.array([1.0, np.nan]), np.array([2.0, 1.0, 0.0])]
    gold = [np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0, 0.0])]
    found = choose_n(scores, gold)
    assert len(found.curves[0.0]) == 2, "N is what every prompt has"
    with pytest.raises(ValueError, match="1 of 2"):
        choose_n(scores[:2], gold[:2])
