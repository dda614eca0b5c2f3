"""Which tokens to run: the prefix tree of a set of token sequences, planned from token ids alone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Node:
    """A run of tokens shared by all sequences below it.

    Attributes:
        tokens: the run.
        start: position of its first token in every sequence that passes through it.
        parent: index of the node before it; -1 at the top.
        reads: (offset in `tokens`, index of the read) for every state wanted here.
        children: how many nodes hang below it.
        key: content of the path from the top to its end, for nodes whose keys and values may be kept between calls.
    """

    tokens: list[int]
    start: int
    parent: int
    reads: list[tuple[int, int]] = field(default_factory=list)
    children: int = 0
    key: bytes | None = None

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + len(self.tokens)


def build_tree(
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    *,
    head: int = 0,
    keepable: Sequence[int] | None = None,
    min_saving: int = 16,
    min_kept: int = 64,
    salt: bytes = b"",
) -> list[Node]:
    """Prefix tree of token sequences, parents before children, siblings side by side.

    The tree depends on the sequences alone, never on what was read before.

    Args:
        sequences: N token sequences, none empty; they may repeat.
        positions: for each sequence the positions whose state is wanted; reads are numbered in this order.
        head: length of a prefix that all sequences share and later calls will share too; a node of its own.
        keepable: for each sequence how many of its first tokens later calls may share; default all.
        min_saving: fewest tokens that a shared run must save to be worth a node; below it each branch repeats them.
        min_kept: fewest tokens of a shared run whose keys and values are worth keeping between calls.
        salt: what keys and values depend on beside the tokens, for the nodes' keys.

    Returns:
        Nodes in breadth-first order.

    Raises:
        ValueError: a sequence is empty, a position lies outside it, or the head is not shared.
    """
    for i, (ids, at) in enumerate(zip(sequences, positions, strict=True)):
        if not len(ids) or any(not 0 <= p < len(ids) for p in at):
            raise ValueError(f"sequence {i}: {len(ids)} tokens cannot give states at positions {list(at)}")
    rank = {ids: k for k, ids in enumerate(sorted({tuple(s) for s in sequences}))}
    arrays = [np.asarray(ids, dtype=np.int64) for ids in rank]
    lcp = [0, *(_common(a, b) for a, b in itertools.pairwise(arrays))]
    if min([len(arrays[0]), *lcp[1:]]) < head:
        raise ValueError(f"the sequences do not share a head of {head} tokens")
    grower = _Grower(arrays, lcp, min_saving)
    grower.grow_all(head)
    nodes = grower.nodes
    starts = np.cumsum([0, *map(len, positions)])
    for i, ids in enumerate(sequences):
        for j, position in enumerate(positions[i]):
            node = nodes[grower.leaf_of[rank[tuple(ids)]]]
            while position < node.start:
                node = nodes[node.parent]
            node.reads.append((position - node.start, int(starts[i]) + j))
    limits = [len(ids) for ids in sequences] if keepable is None else list(keepable)
    keep = _node_limits(nodes, [grower.leaf_of[rank[tuple(ids)]] for ids in sequences], limits)
    _set_keys(nodes, keep, min_kept, bool(head), salt)
    return nodes


def _node_limits(nodes: list[Node], leaves: list[int], limits: list[int]) -> list[int]:
    """For each node the least limit of the sequences that pass through it."""
    out = [1 << 62] * len(nodes)
    for leaf, limit in zip(leaves, limits, strict=True):
        while leaf >= 0 and limit < out[leaf]:
            out[leaf] = limit
            leaf = nodes[leaf].parent
    return out


class _Grower:
    """Builds the nodes of sorted, distinct sequences level by level."""

    def __init__(self, arrays: list[np.ndarray], lcp: list[int], min_saving: int) -> None:
        self.arrays, self.lcp, self.min_saving = arrays, lcp, min_saving
        self.nodes: list[Node] = []
        self.leaf_of = [-1] * len(arrays)
        self.queue: list[tuple[int, int, int, int]] = []

    def grow_all(self, head: int) -> None:
        parent = self._append(self.arrays[0][:head], 0, -1) if head else -1
        self.queue = [(0, len(self.arrays), head, parent)]
        while self.queue:
            level, self.queue = self.queue, []
            for group in level:
                self._grow(*group)

    def _grow(self, first: int, end: int, depth: int, parent: int) -> None:
        """One group that agrees on its first `depth` tokens: its node if sharing pays, and what hangs below."""
        if end - first == 1:
            rest = self.arrays[first][depth:]
            self.leaf_of[first] = self._append(rest, depth, parent) if len(rest) else parent
            return
        shared = min(self.lcp[first + 1 : end])
        if (shared - depth) * (end - first - 1) >= self.min_saving:
            parent = self._append(self.arrays[first][depth:shared], depth, parent)
            depth = shared
        cuts = [first, *(i for i in range(first + 1, end) if self.lcp[i] == shared), end]
        for a, b in itertools.pairwise(cuts):
            if depth == shared:
                self.queue.append((a, b, depth, parent))
            else:
                self._grow(a, b, depth, parent)

    def _append(self, tokens: np.ndarray, start: int, parent: int) -> int:
        self.nodes.append(Node(tokens.tolist(), start, parent))
        if parent >= 0:
            self.nodes[parent].children += 1
        return len(self.nodes) - 1


def _set_keys(nodes: list[Node], limits: list[int], min_kept: int, has_head: bool, salt: bytes) -> None:
    """Name the nodes worth keeping: shared, long enough (or the head), nothing read in them, all ancestors kept too."""
    for i, node in enumerate(nodes):
        above = nodes[node.parent].key if node.parent >= 0 else salt
        is_head = i == 0 and has_head
        fits = is_head or (len(node.tokens) >= min_kept and node.end <= limits[i])
        if above is not None and node.children and not node.reads and fits:
            node.key = hashlib.sha256(above + np.asarray(node.tokens, dtype=np.int64).tobytes()).digest()


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
