"""Probabilities from scores: a logistic calibrator fitted on one half of the groups and used on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from latent_rewards.evaluation.table import Table


class Calibrated(NamedTuple):
    """Rows used, and for each the probability and the outcome (0 or 1)."""

    rows: np.ndarray
    probabilities: np.ndarray
    outcomes: np.ndarray


def cross_fitted(table: Table, kind: str, groups: np.ndarray) -> Calibrated | None:
    """Calibrated probabilities, each from a calibrator that did not see the row or its group.

    A pair asks which of two responses is better, shown in a fixed random order, from the difference of the scores. A
    rating asks whether gold lies in the upper half of its scale, from the score.

    Returns:
        None for lists, and where one half has fewer than two rows of either outcome.

    Source: Platt 1999.
    """
    if kind == "list":
        return None
    flip = np.random.default_rng(1).integers(0, 2, len(table)).astype(bool)
    if kind == "pair":
        gap = table.scores[:, 0] - table.scores[:, 1]
        x, y = np.where(flip, -gap, gap), (~flip).astype(float)
    else:
        gold = table.gold[:, 0]
        low, high = table.gold_range or (np.nanmin(gold), np.nanmax(gold))
        x, y = table.scores[:, 0], (gold > (low + high) / 2).astype(float)
    rows = np.flatnonzero(~np.isnan(x))
    x, y = x[rows], y[rows]
    half = _halves(groups[rows])
    probabilities = np.full(len(rows), np.nan)
    for side in (False, True):
        fitted = _fit(x[half == side], y[half == side], intercept=kind != "pair")
        if fitted is None:
            return None
        probabilities[half != side] = fitted(x[half != side])
    return Calibrated(rows, probabilities, y)


def _halves(groups: np.ndarray) -> np.ndarray:
    unique, index = np.unique(groups, return_inverse=True)
    side = np.arange(len(unique)) % 2 == 0
    return np.random.default_rng(2).permutation(side)[index]


def _fit(x: np.ndarray, y: np.ndarray, *, intercept: bool) -> Callable[[np.ndarray], np.ndarray] | None:
    from sklearn.linear_model import LogisticRegression

    if min((y == 0).sum(), (y == 1).sum()) < 2:
        return None
    centre, spread = (x.mean() if intercept else 0.0), x.std() or 1.0
    model = LogisticRegression(C=1e4, fit_intercept=intercept).fit(((x - centre) / spread)[:, None], y)
    return lambda new: model.predict_proba(((new - centre) / spread)[:, None])[:, 1]
