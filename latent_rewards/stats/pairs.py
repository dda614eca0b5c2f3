"""How good a score is on pairs, and how much of it is length. Pure numpy."""

from __future__ import annotations

import numpy as np

from latent_rewards.stats.bootstrap import mean_estimate
from latent_rewards.stats.correlation import spearman

# Two lengths are matched when they differ by at most this share of the longer one. Evaluations have thousands of pairs
# and can be strict; a probe's test split has hundreds, of which the strict rule would leave too few for an interval.
# Committed results rest on both.
EVALUATION_LENGTH_TOLERANCE = 0.1
PROBE_LENGTH_TOLERANCE = 0.2


def pair_indices(
    label: np.ndarray, pair: np.ndarray, *, most: int = 64, seed: int = 42
) -> tuple[np.ndarray, np.ndarray]:
    """All (better, worse) index pairs among examples that share a pair number >= 0.

    Args:
        label: (N,) higher is better.
        pair: (N,) pair numbers.
        most: most index pairs of one pair number (a long list has many); the rest is left out at random.
        seed: of that choice.

    Returns:
        (P,) indices of the better and (P,) of the worse example.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(pair, kind="stable")
    order = order[pair[order] >= 0]
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    first, second = order[starts[sizes == 2]], order[starts[sizes == 2] + 1]
    up = label[first] > label[second]
    apart = up | (label[second] > label[first])
    better, worse = [np.where(up, first, second)[apart]], [np.where(up, second, first)[apart]]
    for start, size in zip(starts[sizes > 2], sizes[sizes > 2], strict=True):
        rows = order[start : start + size]
        i, j = np.nonzero(label[rows][:, None] > label[rows][None, :])
        if len(i) > most:
            keep = rng.choice(len(i), most, replace=False)
            i, j = i[keep], j[keep]
        better.append(rows[i])
        worse.append(rows[j])
    left, right = np.concatenate(better), np.concatenate(worse)
    by_pair = np.argsort(pair[left], kind="stable")
    return left[by_pair], right[by_pair]


def wins(score: np.ndarray, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """(P,) 1 where the better example scores higher, 0.5 for a tie, NaN where a score is missing."""
    gap = score[better] - score[worse]
    return np.where(np.isnan(gap), np.nan, (np.sign(gap) + 1) / 2)


def length_matched(a: np.ndarray, b: np.ndarray, *, tolerance: float) -> np.ndarray:
    """(P,) whether two lengths differ by at most `tolerance` of the longer one; see the constants above."""
    return np.abs(a - b) <= tolerance * np.maximum(a, b)


def length_correlation(score: np.ndarray, length: np.ndarray, group: np.ndarray | None = None) -> float:
    """Spearman correlation of score and length; with `group` of their differences from the group's mean.

    NaN scores are left out; NaN where nothing varies.
    """
    keep = ~np.isnan(score)
    s, n = score[keep].astype(float), np.log1p(length[keep].astype(float))
    if group is not None:
        _, index = np.unique(group[keep], return_inverse=True)
        counts = np.bincount(index)
        s = s - (np.bincount(index, s) / counts)[index]
        n = n - (np.bincount(index, n) / counts)[index]
        inside = counts[index] > 1
        s, n = s[inside], n[inside]
    return spearman(s, n) if len(s) >= 3 else float("nan")


def pair_report(
    score: np.ndarray, label: np.ndarray, pair: np.ndarray, group: np.ndarray, length: np.ndarray
) -> dict[str, object]:
    """Everything a probe is judged by on pairs.

    Args:
        score: (N,) scores, NaN where missing.
        label: (N,) higher is better.
        pair: (N,) pair numbers.
        group: (N,) prompt groups.
        length: (N,) characters.

    Returns:
        n, accuracy, length baseline and accuracy on length-matched pairs (each with 95 % interval, and n of the
        matched), balanced (mean of the accuracies where the better one is longer and where it is shorter), and the
        within-prompt Spearman correlation of score and length.
    """
    better, worse = pair_indices(label, pair)
    won, g = wins(score, better, worse), group[better]
    base = wins(length.astype(float), better, worse)
    matched = length_matched(length[better], length[worse], tolerance=PROBE_LENGTH_TOLERANCE)
    longer, shorter = won[base == 1], won[base == 0]
    both = [float(np.nanmean(x)) for x in (longer, shorter) if (~np.isnan(x)).any()]
    return {
        "n": int((~np.isnan(won)).sum()),
        "accuracy": mean_estimate(won, g)[:3],
        "length_baseline": mean_estimate(base, g)[:3],
        "n_matched": int((~np.isnan(won[matched])).sum()),
        "matched": mean_estimate(won[matched], g[matched])[:3],
        "balanced": float(np.mean(both)) if len(both) == 2 else float("nan"),
        "length_correlation": length_correlation(score, length, group),
    }
