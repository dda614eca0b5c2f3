"""Which completions of a prompt to keep, from their scores: pure functions on arrays, NaN marks a missing score.

A candidate without a score is never selected. Equal scores are told apart by an explicit rule (`Ties`), the same in
every function, so that the same scores give the same selection everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict, Unpack

import numpy as np

Ties = Literal["first", "shortest", "random"]
Pairing = Literal["worst", "middling"]
Combination = Literal["mean", "z", "rank", "worst"]


class Rule(TypedDict, total=False):
    """Of equal scores, as in `order`."""

    ties: Ties
    lengths: Sequence[int] | None
    key: str


class Pair(NamedTuple):
    """Positions of a chosen and a rejected completion, and how far their scores are apart."""

    chosen: int
    rejected: int
    margin: float


def order(
    scores: np.ndarray, *, ties: Ties = "first", lengths: Sequence[int] | None = None, key: str = ""
) -> np.ndarray:
    """Positions of the scored candidates, best first.

    Args:
        scores: (N,) NaN where there is no score.
        ties: of equal scores the one that stands first, the shortest (then first), or one drawn by `key`.
        lengths: (N,) characters, for "shortest".
        key: what a random order depends on, such as a seed and the prompt's id; nothing else enters.

    Returns:
        (M,) positions, M <= N scored ones.

    Raises:
        ValueError: unknown rule, or "shortest" without lengths.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if ties == "first":
        second = np.zeros(len(scores))
    elif ties == "random":
        second = draws(key, len(scores))
    elif ties == "shortest" and lengths is not None:
        second = np.asarray(lengths, dtype=np.float64)
    else:
        raise ValueError(f"ties must be 'first', 'shortest' (with lengths) or 'random', got {ties!r}")
    ranked = np.lexsort((np.arange(len(scores)), second, -scores))
    return ranked[~np.isnan(scores[ranked])]


def top_k(scores: np.ndarray, k: int = 1, **rule: Unpack[Rule]) -> np.ndarray:
    """Positions of the k best, best first; fewer where fewer are scored. `rule` as in `order`."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return order(scores, **rule)[:k]


def above(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Positions whose score is at least the threshold, in their own order."""
    return np.flatnonzero(np.asarray(scores, dtype=np.float64) >= threshold)


def fraction_count(n: int, fraction: float) -> int:
    """How many of n a fraction keeps: rounded up, so that something is kept of anything.

    Raises:
        ValueError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction lies in (0, 1], got {fraction}")
    return math.ceil(round(fraction * n, 9))


def top_fraction(scores: np.ndarray, fraction: float, **rule: Unpack[Rule]) -> np.ndarray:
    """Positions of the best ceil(fraction * M) of the M scored ones, best first. `rule` as in `order`."""
    ranked = order(scores, **rule)
    return ranked[: fraction_count(len(ranked), fraction)]


def softmax_probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Chance of each candidate under softmax selection: p_i proportional to exp(s_i / T).

    Args:
        scores: (N,) NaN gets probability 0.
        temperature: T > 0, in units of the score; towards 0 it is the best one, towards infinity a uniform draw.

    Returns:
        (N,) summing to 1; all 0 where nothing is scored.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; for the best one use top_k")
    scores = np.asarray(scores, dtype=np.float64)
    known = ~np.isnan(scores)
    out = np.zeros(len(scores))
    if known.any():
        weights = np.exp((scores[known] - scores[known].max()) / temperature)
        out[known] = weights / weights.sum()
    return out


def softmax_choice(scores: np.ndarray, temperature: float, *, key: str) -> int | None:
    """One position drawn by `softmax_probabilities`; the draw depends on `key` alone. None where nothing is scored."""
    p = softmax_probabilities(scores, temperature)
    if not p.any():
        return None
    total = np.cumsum(p)
    return int(np.searchsorted(total, draws(key, 1)[0] * total[-1], side="right"))


def preference_pair(
    scores: np.ndarray, *, against: Pairing = "worst", margin: float = 0.0, **rule: Unpack[Rule]
) -> Pair | None:
    """The best candidate as chosen, and the worst or the middling one as rejected.

    Args:
        scores: (N,) NaN where there is no score.
        against: "worst", or "middling": the lower median by rank, an anchor that tells more candidates apart than the
            extremes do.
        margin: smallest difference of the two scores.
        **rule: as in `order`.

    Returns:
        The pair, or None where fewer than two are scored, the two scores are equal, or closer than the margin.

    Raises:
        ValueError: unknown pairing or a negative margin.
    """
    if against not in ("worst", "middling") or margin < 0:
        raise ValueError(f"need against 'worst' or 'middling' and margin >= 0, got {against!r} and {margin}")
    ranked = order(scores, **rule)
    if len(ranked) < 2:
        return None
    other = ranked[-1] if against == "worst" else ranked[len(ranked) // 2]
    gap = float(scores[ranked[0]] - scores[other])
    return Pair(int(ranked[0]), int(other), gap) if gap > 0 and gap >= margin else None


def standardise(scores: np.ndarray, mean: np.ndarray | None = None, std: np.ndarray | None = None) -> np.ndarray:
    """Z-scores of R rewards.

    Args:
        scores: (R, N) NaN where there is none.
        mean: (R,) to subtract; default that of these scores.
        std: (R,) to divide by; default that of these scores. A reward without spread becomes 0: it has no say.

    Returns:
        (R, N).
    """
    scores = np.asarray(scores, dtype=np.float64)
    known = ~np.isnan(scores)
    count = np.maximum(known.sum(1), 1)
    if mean is None:
        mean = np.where(known, scores, 0).sum(1) / count
    centred = scores - np.asarray(mean)[:, None]
    if std is None:
        std = np.sqrt(np.where(known, centred**2, 0).sum(1) / count)
    scale = np.asarray(std)[:, None]
    return np.where(scale > 0, centred / np.where(scale > 0, scale, 1), np.where(known, 0.0, np.nan))


def ranks(scores: np.ndarray) -> np.ndarray:
    """(N,) rank from the bottom in [0, 1], ties averaged; NaN stays NaN, a single scored candidate gets 0.5."""
    scores = np.asarray(scores, dtype=np.float64)
    out = np.full(len(scores), np.nan)
    known = np.flatnonzero(~np.isnan(scores))
    if len(known) < 2:
        out[known] = 0.5
        return out
    _, index, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    out[known] = (last - (counts + 1) / 2)[index] / (len(known) - 1)
    return out


def combine(
    scores: np.ndarray,
    how: Combination = "mean",
    *,
    weights: Sequence[float] | None = None,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
) -> np.ndarray:
    """One score per candidate from R rewards.

    "mean" averages the scores as they are (rewards of one scale, such as aspects), "z" their z-scores, "rank" their
    ranks among these candidates; "worst" is the lowest z-score: good only where every reward says so.

    Args:
        scores: (R, N) NaN where there is none.
        how: see above.
        weights: (R,) weights of the mean, any positive sum; not for "worst".
        mean: (R,) for z-scores over more candidates than these, see `standardise`.
        std: (R,) likewise.

    Returns:
        (N,) NaN where any reward has no score.

    Raises:
        ValueError: unknown combination, or weights that do not fit.
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if how not in ("mean", "z", "rank", "worst"):
        raise ValueError(f"how must be 'mean', 'z', 'rank' or 'worst', got {how!r}")
    if weights is not None and (how == "worst" or len(weights) != len(scores) or not sum(weights) > 0):
        raise ValueError(f"{how!r} of {len(scores)} rewards cannot take the weights {list(weights)}")
    if how == "rank":
        scores = np.stack([ranks(row) for row in scores])
    elif how in ("z", "worst"):
        scores = standardise(scores, mean, std)
    if how == "worst":
        return scores.min(0)
    w = np.full(len(scores), 1.0) if weights is None else np.asarray(weights, dtype=np.float64)
    return (w / w.sum()) @ scores


def draws(key: str, n: int) -> np.ndarray:
    """(n,) uniform numbers in [0, 1) that depend on `key` alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).random(n)
