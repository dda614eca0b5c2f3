"""How many completions to draw: what Best-of-n is worth for every n, from prompts with gold, and which n to take.

A reward that is wrong in some direction is exploited harder the more completions it picks from, so the largest N is not
always the best (Bayesian linear analysis of inference-time scaling with a judge; design notes, section 4).

Every curve here is exact on the data: the mean over all subsets of n of the M completions at hand. As these are
independent draws of one policy, that mean is unbiased for fresh draws, and no re-sampling noise is added.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latent_rewards.stats.bootstrap import Estimate, difference, mean_estimate
from latent_rewards.stats.ranking import expected_gold_of_best

logger = logging.getLogger(__name__)

_STEP = 0.25  # of the trapezoid rule in ln t: its error falls as exp(-pi^2 / step), below float64 here


def expected_gold(scores: np.ndarray, gold: np.ndarray, temperature: float = 0.0) -> np.ndarray:
    """Expected gold of what is selected from n completions, n = 1..M, over all subsets of n of the M at hand.

    Args:
        scores: (M,) of one prompt; higher is better.
        gold: (M,).
        temperature: of softmax selection, in units of the score; 0 takes the best, ties shared. Infinity is a uniform
            draw.

    Returns:
        (M,) expected gold; the first entry is the mean gold whatever the temperature.

    Raises:
        ValueError: a NaN, or a negative temperature.
    """
    scores, gold = np.asarray(scores, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if np.isnan(scores).any() or np.isnan(gold).any():
        raise ValueError("every completion needs a score and gold; leave out prompts that lack one")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if temperature == 0:
        return expected_gold_of_best(scores, gold)
    if math.isinf(temperature):
        return np.full(len(gold), gold.mean())
    return _soft_best_of_n(scores, gold, temperature)


def _soft_best_of_n(scores: np.ndarray, gold: np.ndarray, temperature: float) -> np.ndarray:
    """E_S [sum_S w g / sum_S w] over subsets S of n, w = exp(s / T).

    1 / Z = integral of exp(-t Z) dt turns the mean over subsets into elementary symmetric polynomials of exp(-t w_i),
    here as means over subsets, so that nothing overflows; the integral is taken over ln t.
    """
    m = len(scores)
    log_w = (scores - scores.max()) / temperature
    # A subset contributes where t is about 1 / (its largest w), and dies off exponentially on both sides.
    low, high = (np.floor(-log_w / _STEP).astype(int)[:, None] + int(c / _STEP) for c in (-math.log(m) - 40.0, 6.0))
    x = np.unique(low + np.arange(int((high - low)[0, 0]) + 1)) * _STEP
    e = np.zeros((m + 1, len(x)))  # mean over subsets of k of the product of exp(-t w)
    d = np.zeros((m + 1, len(x)))  # the same product times the sum of t w g over the subset
    e[0] = 1.0
    for j in range(m):
        tw = np.exp(np.minimum(x + log_w[j], 50.0))
        y, z = np.exp(-tw), tw * gold[j]
        for k in range(j + 1, 0, -1):
            take = k / (j + 1)
            d[k] = (1 - take) * d[k] + take * y * (d[k - 1] + z * e[k - 1])
            e[k] = (1 - take) * e[k] + take * y * e[k - 1]
    return d[1:].sum(1) * _STEP


def oracle_gold(gold: np.ndarray) -> np.ndarray:
    """(M,) expected gold of the best of n by gold itself: the most that any selection can reach."""
    return expected_gold_of_best(np.asarray(gold, dtype=np.float64), np.asarray(gold, dtype=np.float64))


@dataclass(frozen=True)
class ChoiceOfN:
    """What to draw and how to select, and what that rests on.

    Attributes:
        n: completions to draw.
        temperature: of softmax selection, in units of the score; 0 takes the best.
        gold: expected gold of this choice, on the prompts it was made on.
        held_out_gold: the same for choices made on other prompts (cross-fitted): free of the optimism of choosing.
        oracle: expected gold of the best of N by gold.
        regret: `oracle` minus `held_out_gold`.
        curves: temperature -> (N,) expected gold for n = 1..N.
        turns_down: whether taking the best of all N is worse than the best of fewer, beyond doubt (95 %, paired over
            prompts).
        drop: how much worse, with its interval: gold at the best n, chosen on other prompts, minus gold at N; both at
            temperature 0.
    """

    n: int
    temperature: float
    gold: float
    held_out_gold: float
    oracle: float
    regret: float
    curves: dict[float, np.ndarray]
    turns_down: bool
    drop: Estimate


def choose_n(
    scores: Sequence[np.ndarray],
    gold: Sequence[np.ndarray],
    *,
    temperatures: Sequence[float] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> ChoiceOfN:
    """Choose n and the temperature on prompts with gold.

    Args:
        scores: P arrays of the scores of a prompt's completions.
        gold: P arrays of their gold.
        temperatures: to try, in units of the score; default 0 and 1/4, 1/2, 1, 2 standard deviations within a prompt.
        folds: of the cross-fitted estimate.
        seed: of folds and bootstrap.

    Returns:
        The choice. N is the smallest number of scored completions of a prompt. Logs a warning when the curve turns
        down. A smaller n wins a tie.

    Raises:
        ValueError: fewer than two prompts have scores and gold throughout.
    """
    kept = _complete(scores, gold)
    n_max = min(len(s) for s, _ in kept)
    grid = sorted({0.0, *(_default_temperatures(kept) if temperatures is None else map(float, temperatures))})
    curves = np.array([[expected_gold(s, g, t)[:n_max] for s, g in kept] for t in grid])  # (T, P, N)
    best = _argbest(curves.mean(1))
    fold = np.random.default_rng(seed).permutation(len(kept)) % min(folds, len(kept))
    held = _held_out(curves, fold)
    oracle = float(np.mean([oracle_gold(g)[n_max - 1] for _, g in kept]))
    groups = np.arange(len(kept))
    best_n = mean_estimate(_held_out(curves[:1], fold), groups, seed=seed)
    drop = difference(best_n, mean_estimate(curves[0, :, -1], groups, seed=seed))
    out = ChoiceOfN(
        n=best[1] + 1, temperature=grid[best[0]], gold=float(curves[best[0], :, best[1]].mean()),
        held_out_gold=float(held.mean()), oracle=oracle, regret=oracle - float(held.mean()),
        curves={t: c.mean(0) for t, c in zip(grid, curves, strict=True)}, turns_down=bool(drop.low > 0), drop=drop,
    )  # fmt: skip
    if out.turns_down:
        logger.warning(
            "best of %d is worse than best of %d by %.3g gold [%.3g, %.3g]: the reward is exploited; draw fewer",
            n_max, int(out.curves[0.0].argmax()) + 1, drop.value, drop.low, drop.high,
        )  # fmt: skip
    return out


def _complete(scores: Sequence[np.ndarray], gold: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(np.asarray(s, float), np.asarray(g, float)) for s, g in zip(scores, gold, strict=True)]
    kept = [(s, g) for s, g in pairs if len(s) and not (np.isnan(s).any() or np.isnan(g).any())]
    if len(kept) < 2:
        raise ValueError(f"choosing n needs two prompts with scores and gold throughout; {len(kept)} of {len(pairs)}")
    return kept


def _default_temperatures(kept: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    spread = math.sqrt(np.mean([s.var() for s, _ in kept]))
    return [spread * c for c in (0.25, 0.5, 1.0, 2.0)] if spread > 0 else []


def _argbest(mean_curves: np.ndarray) -> tuple[int, int]:
    """Temperature and n (both as indices) of the highest entry of (T, N); the smallest n, then the first, on a tie."""
    t, n = np.nonzero(mean_curves >= mean_curves.max() - 1e-12)
    first = np.lexsort((t, n))[0]
    return int(t[first]), int(n[first])


def _held_out(curves: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(P,) gold of each prompt at the temperature and n that are best on the prompts of the other folds."""
    out = np.empty(len(fold))
    for f in range(fold.max() + 1):
        t, n = _argbest(curves[:, fold != f].mean(1))
        out[fold == f] = curves[t, fold == f, n]
    return out
