"""Exact order statistics of streams of any length in fixed memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Chunks = Callable[[], Iterator[np.ndarray]]

_BITS = 16


def kth_smallest(chunks: Chunks, k: int) -> tuple[float, int]:
    """The k-th smallest value (k from 1) of a stream, and how many are smaller.

    Radix selection over the order-preserving integer form of float64: four passes with 65,536 counters, no rounding.

    Args:
        chunks: gives an iterator over float64 arrays without NaN, anew for every pass.
        k: 1 up to the number of values.

    Raises:
        ValueError: fewer than k values.
    """
    prefix, below = np.uint64(0), 0
    for shift in range(64 - _BITS, -1, -_BITS):
        counts = np.zeros(1 << _BITS, dtype=np.int64)
        for chunk in chunks():
            keys = _sortable(chunk)
            if shift + _BITS < 64:
                keys = keys[keys >> np.uint64(shift + _BITS) == prefix]
            digits = (keys >> np.uint64(shift)) & np.uint64((1 << _BITS) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << _BITS)
        total = below + np.cumsum(counts)
        if total[-1] < k:
            raise ValueError(f"asked for value {k} of {total[-1]}")
        digit = int(np.searchsorted(total, k))
        below = int(total[digit] - counts[digit])
        prefix = (prefix << np.uint64(_BITS)) | np.uint64(digit)
    return _float(prefix), below


def smallest_kept(values: Chunks, ties: Chunks, k: int) -> Iterator[bool]:
    """For every value in order whether it is among the k smallest; equal values by smaller tie key, then by order.

    Args:
        values: the stream, as for `kth_smallest`.
        ties: a stream of the same shape.
        k: how many are kept; 0 keeps none.
    """
    if k == 0:
        for chunk in values():
            yield from [False] * len(chunk)
        return
    edge, below = kth_smallest(values, k)

    def at_edge() -> Iterator[np.ndarray]:
        return (t[v == edge] for v, t in zip(values(), ties(), strict=True))

    tie_edge, ties_below = kth_smallest(at_edge, k - below)
    left = k - below - ties_below  # of those that are equal in both, the first so many
    for v, t in zip(values(), ties(), strict=True):
        for kept, last in zip((v < edge) | ((v == edge) & (t < tie_edge)), (v == edge) & (t == tie_edge), strict=True):
            take = bool(last and left > 0)
            left -= take
            yield bool(kept) or take


def _sortable(values: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of float64 values; -0.0 counts as 0.0."""
    bits = (np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64)
    negative = bits >> np.uint64(63) == 1
    return np.where(negative, ~bits, bits | np.uint64(1 << 63))


def _float(key: np.uint64) -> float:
    positive = bool(key >> np.uint64(63))
    bits = key & np.uint64((1 << 63) - 1) if positive else ~key
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])
