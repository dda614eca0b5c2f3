"""Correlations with ties, over SciPy's ranks; NaN where either side is constant."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import kendalltau, rankdata


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two (N,) arrays; NaN when either is constant."""
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    dx, dy = x - x.mean(), y - y.mean()
    return float(np.clip((dx @ dy) / math.sqrt((dx @ dx) * (dy @ dy)), -1.0, 1.0))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman rank correlation of two (N,) arrays; NaN when either is constant."""
    return pearson(rankdata(x), rankdata(y))


def kendall_tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b of two (N,) arrays; NaN when either is constant."""
    # Otherwise the exact p-value, which nobody asked for, is computed too.
    if len(x) == 2:  # of which scipy's p-value divides by zero
        sign = float(np.sign(x[1] - x[0]) * np.sign(y[1] - y[0]))
        return sign or math.nan
    return float(kendalltau(x, y, method="asymptotic").statistic) if len(x) > 1 else math.nan


def partial_spearman(x: np.ndarray, y: np.ndarray, control: np.ndarray) -> float:
    """Pearson correlation of the ranks of x and y after regressing both on the ranks of `control`."""
    if len(x) < 4:
        return math.nan
    c = rankdata(control) - rankdata(control).mean()
    rest = []
    for v in (rankdata(x), rankdata(y)):
        v = v - v.mean()
        r = v - c * ((c @ v) / (c @ c) if c @ c > 0 else 0.0)
        rest.append(np.where(np.abs(r) < 1e-9 * len(x), 0.0, r))
    return 0.0 if not rest[0].any() else pearson(*rest)
