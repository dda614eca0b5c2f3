"""States of many rows, in memory or on disk, read block by block: what training holds does not grow with the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from latent_rewards.probes.features import Features

WHOLE_BYTES = 64 * 2**20
"""Bytes of float32 states that are held as a whole; more stays on disk and is read anew in every pass."""
BLOCK_BYTES = 8 * 2**20
"""Bytes of float32 states in one block."""


class StoredStates:
    """(N, P) float32 states that stay on disk. Indexing picks rows without reading them.

    Args:
        features: the collected features.
        layers: layers that stand side by side in a row.
        rows: which rows; all by default.
    """

    def __init__(self, features: Features, layers: Sequence[int], rows: np.ndarray | None = None) -> None:
        self.features, self.layers = features, tuple(layers)
        self.rows = np.arange(len(features)) if rows is None else rows
        self.shape = (len(self.rows), features.width * len(self.layers))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray | slice) -> StoredStates:
        return StoredStates(self.features, self.layers, self.rows[rows])

    def read(self, rows: np.ndarray | slice) -> np.ndarray:
        """(n, P) the states of some rows; each shard they lie in is read once."""
        wanted = self.rows[rows]
        out = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        shard, inside = np.divmod(wanted, self.features.info.shard_rows)
        for k in np.unique(shard):
            here = shard == k
            out[here] = self.features.shard_states(int(k), self.layers)[inside[here]]
        return out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(slice(None)), dtype=dtype)


States = np.ndarray | StoredStates


def read(x: States, rows: np.ndarray | slice) -> np.ndarray:
    """(n, P) the states of some rows, in memory."""
    return x.read(rows) if isinstance(x, StoredStates) else x[rows]


def spans(x: States, n: int) -> Iterator[slice]:
    """Slices that cut n rows of such states into blocks."""
    step = max(1, BLOCK_BYTES // (4 * x.shape[1]))
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def blocks(x: States) -> Iterator[tuple[slice, np.ndarray]]:
    """All rows in order, block by block."""
    return ((span, read(x, span)) for span in spans(x, len(x)))


def moments(x: States) -> tuple[np.ndarray, np.ndarray]:
    """(P,) mean and (P,) standard deviation of the columns, float64.

    Merged from block to block, Chan et al. 1979 ("Updating formulae and a pairwise algorithm for computing sample
    variances"): no cancellation where a column's mean is large.
    """
    n, mean, squares = 0, np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for _, block in blocks(x):
        here = block.mean(0, dtype=np.float64)
        gap, m = here - mean, len(block)
        squares += ((block - here) ** 2).sum(0) + gap**2 * (n * m / (n + m))
        mean += gap * (m / (n + m))
        n += m
    return mean, np.sqrt(squares / n)


def not_finite(x: States) -> np.ndarray:
    """Indices of rows with NaN or infinite values."""
    found = [np.flatnonzero(~np.isfinite(block).all(1)) + span.start for span, block in blocks(x)]
    return np.concatenate([np.zeros(0, dtype=int), *found])


def within_groups(
    x: States, value: np.ndarray, group: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of (x - mean) / scale with a value, and with itself, within groups of several rows.

    Args:
        x: (N, P) states.
        value: (N,).
        group: (N,) whose means are taken out.
        mean: (P,) shift.
        scale: (P,) divisor.

    Returns:
        (P,) covariance with the value and (P, P) covariance.

    Raises:
        ValueError: no group has two rows.
    """
    _, first, index = np.unique(group, return_index=True, return_inverse=True)
    counts = np.bincount(index)
    rows = np.flatnonzero(counts[index] > 1)
    if not len(rows):
        raise ValueError("guard 'erase' needs prompts with several completions, so that length varies within a prompt")
    rows = rows[np.argsort(first[index[rows]], kind="stable")]  # rows of a group side by side, groups as they come
    value = value - (np.bincount(index, value) / counts)[index]
    width = x.shape[1]
    cross, square, carried, last = np.zeros(width), np.zeros((width, width)), np.zeros(width), -1
    for span in spans(x, len(rows)):
        at = rows[span]
        z = (read(x, at).astype(np.float64) - mean) / scale
        cross += z.T @ value[at]
        square += z.T @ z
        starts = np.flatnonzero(np.diff(index[at], prepend=-1))
        numbers, sums = index[at][starts], np.add.reduceat(z, starts)
        if numbers[0] == last:
            sums[0] += carried
        elif last >= 0:
            square -= np.outer(carried, carried) / counts[last]
        done = sums[:-1] / np.sqrt(counts[numbers[:-1]])[:, None]
        square -= done.T @ done
        carried, last = sums[-1].copy(), numbers[-1]
    square -= np.outer(carried, carried) / counts[last]
    return cross / len(rows), square / len(rows)
