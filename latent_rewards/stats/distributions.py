"""How scores are spread, and how well probabilities hold: compression and calibration, in pure numpy."""

from __future__ import annotations

import math

import numpy as np


def row_means(values: np.ndarray) -> np.ndarray:
    """(N,) mean of the known values of each row of (N, M); NaN where a row has none."""
    known = ~np.isnan(values)
    return np.where(known.any(1), np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(1), 1), np.nan)


def modal_share(scores: np.ndarray) -> float:
    """Share of the scores that equal the most frequent one: how compressed a scale is."""
    known = scores[~np.isnan(scores)]
    return float(np.unique(known, return_counts=True)[1].max() / len(known)) if len(known) else math.nan


def tie_rate(scores: np.ndarray) -> float:
    """Chance that two scores drawn from all of the benchmark are equal."""
    known = scores[~np.isnan(scores)]
    counts = np.unique(known, return_counts=True)[1].astype(float)
    pairs = len(known) * (len(known) - 1)
    return float((counts * (counts - 1)).sum() / pairs) if pairs else math.nan


def unit(values: np.ndarray, bounds: tuple[float, float] | None) -> np.ndarray:
    """Values mapped to [0, 1] from their scale; from what is observed when the scale is unbounded."""
    known = values[~np.isnan(values)]
    low, high = bounds or ((known.min(), known.max()) if len(known) else (0.0, 1.0))
    return (values - low) / (high - low) if high > low else np.where(np.isnan(values), np.nan, 0.5)


def histogram(values: np.ndarray, bounds: tuple[float, float] | None, bins: int = 10) -> np.ndarray:
    """Counts over equal bins of [0, 1] after `unit`; NaN is left out, what lies outside falls in the end bins."""
    known = np.clip(unit(values[~np.isnan(values)], bounds), 0.0, 1.0)
    return np.bincount(np.minimum((known * bins).astype(int), bins - 1), minlength=bins).astype(float)


def brier(probabilities: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """(N,) squared difference of probability and outcome."""
    return (probabilities - outcomes) ** 2


def reliability(probabilities: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean probability, share of positives and count of each non-empty bin of [0, 1]."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    return [
        (float(probabilities[index == b].mean()), float(outcomes[index == b].mean()), int((index == b).sum()))
        for b in range(bins)
        if (index == b).any()
    ]


def expected_calibration_error(probabilities: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> float:
    """Mean gap between probability and share of positives over the bins, weighted by their counts."""
    rows = reliability(probabilities, outcomes, bins)
    return sum(n * abs(p - y) for p, y, n in rows) / sum(n for *_, n in rows) if rows else math.nan
