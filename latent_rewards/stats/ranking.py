"""What one ranked list is worth: discounted gain, and the gold of the best of n."""

from __future__ import annotations

import functools
import math

import numpy as np


def expected_gold_of_best(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Expected gold of the best-scored of n responses drawn without replacement, n = 1..M, exact.

    With scores sorted downwards the i-th of M (from 0) is the best of n with probability C(M-1-i, n-1) / C(M, n); tied
    responses share the gold of their tie.

    Args:
        scores: (M,) of one list.
        gold: (M,).

    Returns:
        (M,) expected gold for n = 1..M.
    """
    m = len(scores)
    order = np.argsort(-scores, kind="stable")
    shared = _tie_means(scores[order], gold[order])
    return _best_probabilities(m) @ shared


@functools.cache
def _best_probabilities(m: int) -> np.ndarray:
    return np.array([[math.comb(m - 1 - i, n - 1) / math.comb(m, n) for i in range(m)] for n in range(1, m + 1)])


def dcg(scores: np.ndarray, gains: np.ndarray) -> float:
    """Discounted cumulative gain of the order by score, averaged over the orders of ties."""
    order = np.argsort(-scores, kind="stable")
    shared = _tie_means(scores[order], gains[order])
    return float((shared / np.log2(np.arange(2, len(scores) + 2))).sum())


def _tie_means(sorted_scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each value replaced by the mean over the run of equal scores it stands in."""
    run = np.cumsum(np.r_[True, np.diff(sorted_scores) != 0]) - 1
    return (np.bincount(run, values) / np.bincount(run))[run]
