"""Which texts of a call are read together, and in which packs and order the nodes of their prefix tree are run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latent_rewards.engine.blocks import States
from latent_rewards.engine.prefix_cache import KeysValues
from latent_rewards.engine.prefix_tree import Node
from latent_rewards.engine.rope_switch import RopeSwitch


class Wanted(NamedTuple):
    """What a forward shall give: inner layers, the decoder's output, at the frequencies of `regime`."""

    layers: tuple[int, ...]
    final: bool
    regime: int = 0

    def depth(self, n_layers: int) -> int:
        """How many blocks have to run."""
        return n_layers if self.final else max(self.layers, default=0)

    @property
    def salt(self) -> bytes:
        """What tells keys and values of this regime from others of the same tokens."""
        return self.regime.to_bytes(8, "little") if self.regime else b""


@dataclass
class Group:
    """Texts, or beginnings of texts, that are read together.

    Attributes:
        regime: of their rotary frequencies, see `RopeSwitch.regime`.
        sequences: token sequences.
        positions: for each the positions to read.
        source: for each its index in the call.
        targets: for each state its index in the call.
        states: once they are read.
    """

    regime: int
    sequences: list[Sequence[int]]
    positions: list[list[int]]
    source: list[int]
    targets: list[int]
    states: States | None = None

    @property
    def longest(self) -> int:
        """Index of the longest text that has something to read."""
        return max(range(len(self.sequences)), key=lambda i: bool(self.positions[i]) * len(self.sequences[i]))

    def ends(self) -> Group:
        """The same with a text for every position, that ends there."""
        reads = [(i, p) for i, at in enumerate(self.positions) for p in at]
        texts = [self.sequences[i][: p + 1] for i, p in reads]
        return Group(self.regime, texts, [[p] for _, p in reads], [self.source[i] for i, _ in reads], self.targets)


def group_texts(
    sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], rope: RopeSwitch
) -> list[Group]:
    """Groups in which the state at a position is that of the text which ends there.

    A text is cut behind its last position of a group where the rest of it belongs to another: a label's later tokens
    may lie beyond a switch that its first has not reached.

    Args:
        sequences: N token sequences.
        positions: for each the positions to read.
        rope: of the model.

    Returns:
        Groups, those of short texts first; what they hold depends on this call alone.
    """
    kind = rope.regime
    groups: dict[int, Group] = {}
    target = 0
    for i, (ids, at) in enumerate(zip(sequences, positions, strict=True)):
        own: dict[int, list[tuple[int, int]]] = {} if at else {kind(len(ids)): []}
        for p in at:
            own.setdefault(kind(p + 1), []).append((p, target))
            target += 1
        for key, reads in own.items():
            group = groups.setdefault(key, Group(key, [], [], [], []))
            group.sequences.append(ids if kind(len(ids)) == key else ids[: max(p for p, _ in reads) + 1])
            group.positions.append([p for p, _ in reads])
            group.source.append(i)
            group.targets += [t for _, t in reads]
    return [groups[key] for key in sorted(groups)]


def put_together(groups: Sequence[Group]) -> States:
    """The states of all groups in the order of the call."""
    parts = [group.states for group in groups if group.states is not None]
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([t for group in groups for t in group.targets]).argsort()
    final = [p.final for p in parts if p.final is not None]
    return States(
        torch.cat(final)[order.to(final[0].device)] if final else None,
        {k: torch.cat([p.inner[k] for p in parts])[order.to(x.device)] for k, x in parts[0].inner.items()},
    )


class Step(NamedTuple):
    """What is run at once: some nodes, those above them that they need, and the earlier steps that give these."""

    nodes: list[int]
    above: list[int]
    waits: set[int]


def steps(nodes: list[Node], batches: Iterable[list[int]]) -> list[Step]:
    """What is run in turn: batches, and before each the nodes above it that are kept between calls, alone."""
    out: list[Step] = []
    of: dict[int, int] = {}

    def add(batch: list[int], above: list[int]) -> None:
        waits = {of[i] for i in above}
        of.update(dict.fromkeys(batch, len(out)))
        out.append(Step(batch, above, waits))

    for batch in batches:
        above = outside_ancestors(nodes, batch)
        for i in above:
            if i not in of:
                add([i], outside_ancestors(nodes, [i]))
        add(batch, above)
    return out


def packs(nodes: list[Node], batch_tokens: int, workers: int = 1) -> Iterator[list[int]]:
    """Groups of nodes that are run together: whole subtrees side by side, parents first, siblings adjacent.

    A subtree is cut only where it is larger than what a group shall hold: its second part would wait for its first.
    Nodes that may be kept between calls are left out: they run alone, so that their keys and values do not depend on
    their company.
    """
    below: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        below.setdefault(node.parent, []).append(i)
    order, stack = [], list(reversed(below.get(-1, [])))
    while stack:
        order.append(stack.pop())
        stack.extend(reversed(below.get(order[-1], [])))
    order = [i for i in order if nodes[i].key is None]
    whole = {i: len(nodes[i].tokens) for i in order}  # tokens of a node and all below it
    for i in reversed(order):
        if nodes[i].parent in whole:
            whole[nodes[i].parent] += whole[i]
    total = sum(len(nodes[i].tokens) for i in order)
    target = total / max(1, workers * -(-total // (workers * batch_tokens)))
    batch: list[int] = []
    tokens, together = 0, 0
    for i in order:
        n = whole[i] if whole[i] <= target else len(nodes[i].tokens)
        if batch and not together and (tokens + n > batch_tokens or tokens + n / 2 > target):
            yield _breadth_first(nodes, batch)
            batch, tokens = [], 0
        together = (together or n) - len(nodes[i].tokens)
        batch.append(i)
        tokens += len(nodes[i].tokens)
    if batch:
        yield _breadth_first(nodes, batch)


def outside_ancestors(nodes: list[Node], batch: list[int]) -> list[int]:
    """Nodes above a batch that are not in it, outermost first."""
    inside, above = set(batch), set()
    for i in batch:
        parent = nodes[i].parent
        while parent >= 0 and parent not in above:
            above.add(parent)
            parent = nodes[parent].parent
    return sorted(above - inside)


def _breadth_first(nodes: list[Node], batch: list[int]) -> list[int]:
    level: dict[int, int] = {}
    for i in batch:
        level[i] = level.get(nodes[i].parent, 0) + 1
    return sorted(batch, key=lambda i: (level[i], nodes[i].parent, i))


def ancestors(nodes: list[Node], parent: int, known: dict[int, KeysValues]) -> list[KeysValues]:
    """Keys and values of a node and all above it, outermost first."""
    out = []
    while parent >= 0:
        out.append(known[parent])
        parent = nodes[parent].parent
    return out[::-1]
