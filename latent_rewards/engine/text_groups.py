"""Which texts of a call may be read together, and where their states go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latent_rewards.engine.blocks import States
from latent_rewards.engine.rope_switch import RopeSwitch


@dataclass
class Group:
    """Texts, or beginnings of texts, that are read together.

    Attributes:
        regime: of their rotary frequencies, see `RopeSwitch.regime`.
        shares: whether all are short enough to share prefixes.
        sequences: token sequences.
        positions: for each the positions to read.
        source: for each its index in the call.
        targets: for each state its index in the call.
    """

    regime: int
    shares: bool
    sequences: list[Sequence[int]]
    positions: list[list[int]]
    source: list[int]
    targets: list[int]

    @property
    def longest(self) -> int:
        """Index of the longest text that has something to read."""
        return max(range(len(self.sequences)), key=lambda i: bool(self.positions[i]) * len(self.sequences[i]))

    def ends(self) -> Group:
        """The same with a text for every position, that ends there."""
        reads = [(i, p) for i, at in enumerate(self.positions) for p in at]
        texts = [self.sequences[i][: p + 1] for i, p in reads]
        return Group(
            self.regime, self.shares, texts, [[p] for _, p in reads], [self.source[i] for i, _ in reads], self.targets
        )


def group_texts(
    sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], rope: RopeSwitch, longest: int
) -> list[Group]:
    """Groups in which the state at a position is that of the text which ends there.

    A text is cut behind its last position of a group where the rest of it belongs to another: a label's later tokens
    may lie beyond a switch that its first has not reached.

    Args:
        sequences: N token sequences.
        positions: for each the positions to read.
        rope: of the model.
        longest: most tokens of a text that can share prefixes.

    Returns:
        Groups, those of short texts first; what they hold depends on this call alone.
    """

    def kind(n: int) -> tuple[int, bool]:
        return rope.regime(n), n > longest

    groups: dict[tuple[int, bool], Group] = {}
    target = 0
    for i, (ids, at) in enumerate(zip(sequences, positions, strict=True)):
        own: dict[tuple[int, bool], list[tuple[int, int]]] = {} if at else {kind(len(ids)): []}
        for p in at:
            own.setdefault(kind(p + 1), []).append((p, target))
            target += 1
        for key, reads in own.items():
            group = groups.setdefault(key, Group(key[0], not key[1], [], [], [], []))
            group.sequences.append(ids if kind(len(ids)) == key else ids[: max(p for p, _ in reads) + 1])
            group.positions.append([p for p, _ in reads])
            group.source.append(i)
            group.targets += [t for _, t in reads]
    return [groups[key] for key in sorted(groups)]


def put_together(groups: Sequence[Group], parts: Sequence[States]) -> States:
    """The states of all groups in the order of the call."""
    if len(groups) == 1:
        return parts[0]
    order = torch.tensor([t for group in groups for t in group.targets]).argsort()
    final = [p.final for p in parts if p.final is not None]
    return States(
        torch.cat(final)[order.to(final[0].device)] if final else None,
        {k: torch.cat([p.inner[k] for p in parts])[order.to(x.device)] for k, x in parts[0].inner.items()},
    )
