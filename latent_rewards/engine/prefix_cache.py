"""Keys and values of shared prefixes, kept between calls in one pool of rows that is made once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

KeysValues = list[tuple[Tensor, Tensor]]


@dataclass
class _Entry:
    rows: Tensor  # (n,) rows of the pool, one per token
    depth: int


class PrefixCache:
    """Keys and values of whole shared prefixes, found by content, kept between calls up to a number of bytes.

    The least recently used go first, so the head of a judge prompt, which every call uses, stays. All lie in one pool
    with a row per token, made at first use: kept one by one, prefixes of all lengths among the short-lived activations
    would tear the C allocator's heap to pieces.

    Args:
        max_bytes: most bytes kept between calls; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._pool: KeysValues = []
        self._free: list[int] = []
        self._row_bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes in use; the pool holds `max_bytes` at most."""
        return self._row_bytes * sum(len(e.rows) for e in self._entries.values())

    def get(self, key: bytes, n_layers: int) -> KeysValues | None:
        """Copies of the keys and values of the first `n_layers` layers, (H_kv, n, d) each; None if not kept."""
        entry = self._entries.get(key)
        if entry is None or entry.depth < n_layers:
            return None
        self._entries.move_to_end(key)
        return [(_take(k, entry.rows), _take(v, entry.rows)) for k, v in self._pool[:n_layers]]

    def put(self, key: bytes, layers: KeysValues) -> None:
        """Keep (or replace) a prefix; drops the least recently used until it fits, keeps none that never will."""
        self._drop(key)
        if len(layers) > len(self._pool):
            self._make_pool(layers)
        n = layers[0][0].shape[1]
        if n > len(self._free) + sum(len(e.rows) for e in self._entries.values()):
            return
        while len(self._free) < n:
            self._drop(next(iter(self._entries)))
        rows = torch.tensor(self._free[-n:])
        del self._free[-n:]
        self._entries[key] = _Entry(rows, len(layers))
        for (k, v), (pool_k, pool_v) in zip(layers, self._pool, strict=False):
            pool_k[rows.to(pool_k.device)] = k.transpose(0, 1)
            pool_v[rows.to(pool_v.device)] = v.transpose(0, 1)

    def clear(self) -> None:
        """Drop everything, the pool too."""
        self._entries.clear()
        self._pool, self._free, self._row_bytes = [], [], 0

    def _make_pool(self, layers: KeysValues) -> None:
        """A pool as deep as these layers; whatever lay in a less deep one is gone."""
        self.clear()
        self._row_bytes = sum(x[:, 0].nbytes for pair in layers for x in pair)
        n = self.max_bytes // self._row_bytes
        self._pool = [(_rows_like(k, n), _rows_like(v, n)) for k, v in layers]
        self._free = list(range(n))[::-1]

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._free += entry.rows.tolist()[::-1]


def _rows_like(x: Tensor, n: int) -> Tensor:
    return x.new_empty(n, x.shape[0], x.shape[2])


def _take(pool: Tensor, rows: Tensor) -> Tensor:
    return pool.index_select(0, rows.to(pool.device)).transpose(0, 1)
