"""The forward whose states do not depend on a text's company: every stretch of a text is run alone, in fixed pieces."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latent_rewards.engine.blocks import States
from latent_rewards.engine.prefix_cache import KeysValues
from latent_rewards.engine.prefix_tree import Node
from latent_rewards.engine.schedule import Group
from latent_rewards.engine.tree import TreeForward, Wanted, salt_of


class InvariantForward(TreeForward):
    """As `TreeForward`, bit for bit the same for any batch, order or grouping, at the cost of small forwards.

    Matrix products round differently for different numbers of rows, and attention for different splits of the keys. So
    each text is cut where its own dialogue says (the judge's head, the prompt, the completion, the question), each
    piece is one forward, and pieces that texts share are run once. Same weights, dtype, device and thread count are
    assumed.
    """

    pads = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.few_rows = False  # how many rows of a piece are read is a matter of its company

    @torch.no_grad()
    def read(  # type: ignore[override]
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        *,
        layers: Sequence[int] = (),
        final: bool = True,
        cuts: Sequence[Sequence[int]],
    ) -> States:
        """As `TreeForward.read`.

        Args:
            sequences: N token sequences.
            positions: for each the positions to read.
            layers: inner layers wanted.
            final: whether the decoder's output is wanted.
            cuts: for each sequence the ends of its pieces, not decreasing; the last piece ends with the sequence. The
                first two (the judge's head and the prompt) are kept between calls.
        """

        def shared(group: Group, wanted: Wanted) -> States:
            ends = [
                [min(end, len(ids)) for end in cuts[i]] for ids, i in zip(group.sequences, group.source, strict=True)
            ]
            return self._read_pieces(pieces(group.sequences, group.positions, ends, salt_of(wanted.regime)), wanted)

        return self._read_groups(sequences, positions, Wanted(tuple(layers), final), shared)

    def _read_pieces(self, nodes: list[Node], wanted: Wanted) -> States:
        n_reads = sum(len(node.reads) for node in nodes)
        last: list[Any] = [None] * n_reads
        inner: dict[int, list[Any]] = {layer: [None] * n_reads for layer in wanted.layers}
        last_use = list(range(len(nodes)))
        for i in reversed(range(len(nodes))):
            if nodes[i].parent >= 0:
                last_use[nodes[i].parent] = max(last_use[nodes[i].parent], last_use[i])
        known: dict[int, KeysValues] = {}
        shared = frozenset(node.parent for node in nodes)
        for i, node in enumerate(nodes):
            if node.key is not None and not node.reads:
                known[i] = self._kept(self.blocks, nodes, i, known, shared, wanted)
            else:
                got, plan = self._run(self.blocks, nodes, [i], known, shared, wanted)
                if plan.kept:
                    known[i] = plan.kept[0]
                for k, (_, target) in enumerate(node.reads):
                    last[target] = None if got.final is None else got.final[k]
                    for layer in wanted.layers:
                        inner[layer][target] = got.inner[layer][k]
            known = {j: kv for j, kv in known.items() if last_use[j] > i}
        return States(torch.stack(last) if wanted.final else None, {k: torch.stack(v) for k, v in inner.items()})


def pieces(
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    cuts: Sequence[Sequence[int]],
    salt: bytes = b"",
) -> list[Node]:
    """The pieces of all sequences, each once, parents first and a parent's pieces side by side.

    Two sequences share a piece only if they agree on all its tokens, on all before it, and on the cuts there.

    Raises:
        ValueError: cuts that do not increase or lie outside the sequence.
    """
    nodes: list[Node] = []
    index: dict[tuple[int, bytes], int] = {}
    starts = np.cumsum([0, *map(len, positions)])
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    for i in order:
        ids = list(sequences[i])
        if any(a > b for a, b in itertools.pairwise(cuts[i])) or any(not 0 <= c <= len(ids) for c in cuts[i]):
            raise ValueError(f"sequence {i}: cuts {list(cuts[i])} do not increase within its {len(ids)} tokens")
        ends = sorted({*(c for c in cuts[i] if c), len(ids)})
        parent, start = -1, 0
        for number, end in enumerate(ends):
            tokens = np.asarray(ids[start:end], dtype=np.int64).tobytes()
            found = index.get((parent, tokens))
            if found is None:
                found = index[parent, tokens] = len(nodes)
                nodes.append(Node(ids[start:end], start, parent))
                if parent >= 0:
                    nodes[parent].children += 1
                above = nodes[parent].key if parent >= 0 else salt
                if number < 2 and above is not None:
                    nodes[found].key = hashlib.sha256(above + b"alone" + tokens).digest()
            for j, position in enumerate(positions[i]):
                if start <= position < end:
                    nodes[found].reads.append((position - start, int(starts[i]) + j))
            parent, start = found, end
    for node in nodes:
        if not node.children:
            node.key = None
    return nodes
