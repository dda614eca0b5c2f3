"""Correlations in pure numpy, with ties."""

from __future__ import annotations

import math

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) ranks from 1, ties get the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two (N,) arrays; NaN when either is constant."""
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    dx, dy = x - x.mean(), y - y.mean()
    return float(np.clip((dx @ dy) / math.sqrt((dx @ dx) * (dy @ dy)), -1.0, 1.0))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman rank correlation of two (N,) arrays; NaN when either is constant."""
    return pearson(ranks(x), ranks(y)) if len(x) else math.nan


def kendall_tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b of two (N,) arrays in O(N log^2 N); NaN when either is constant.

    tau_b = (C - D) / sqrt((P - T_x) (P - T_y)) with P pairs, C concordant, D discordant and T tied pairs.

    Source: Knight 1966 (counting discordant pairs as exchanges of a sort).
    """
    n = len(x)
    if n < 2:
        return math.nan
    order = np.lexsort((y, x))
    xs, ys = np.unique(x[order], return_inverse=True)[1], np.unique(y[order], return_inverse=True)[1]
    pairs = n * (n - 1) // 2
    tied_x, tied_y = _tied(xs), _tied(ys)
    tied_both = _tied(xs.astype(np.int64) * (n + 1) + ys)
    if tied_x == pairs or tied_y == pairs:
        return math.nan
    discordant = _inversions(ys)
    concordant = pairs - tied_x - tied_y + tied_both - discordant
    return (concordant - discordant) / math.sqrt(float(pairs - tied_x) * float(pairs - tied_y))


def partial_spearman(x: np.ndarray, y: np.ndarray, control: np.ndarray) -> float:
    """Pearson correlation of the ranks of x and y after regressing both on the ranks of `control`."""
    if len(x) < 4:
        return math.nan
    c = ranks(control) - ranks(control).mean()
    rest = []
    for v in (ranks(x), ranks(y)):
        v = v - v.mean()
        r = v - c * ((c @ v) / (c @ c) if c @ c > 0 else 0.0)
        rest.append(np.where(np.abs(r) < 1e-9 * len(x), 0.0, r))
    return 0.0 if not rest[0].any() else pearson(*rest)


def _tied(codes: np.ndarray) -> int:
    counts = np.unique(codes, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(codes: np.ndarray) -> int:
    """Number of i < j with codes[i] > codes[j], by a bottom-up merge sort over whole passes."""
    n, width, total = len(codes), 1, 0
    position, span = np.arange(n), int(codes.max()) + 1
    values = codes.astype(np.int64)
    while width < n:
        block = position // (2 * width)
        left = (position // width) % 2 == 0
        keys = block * span + values
        left_keys, right = keys[left], ~left
        # Left elements of the same block above a right element: the block's left end minus those not above.
        ends = np.searchsorted(left_keys, (block[right] + 1) * span, side="left")
        total += int((ends - np.searchsorted(left_keys, keys[right], side="right")).sum())
        values = values[np.argsort(keys, kind="stable")]
        width *= 2
    return total
