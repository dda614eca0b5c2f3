"""The forward whose states do not depend on a text's company: every stretch of a text is run alone, in fixed pieces."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.prefix_tree import Node
from latent_rewards.engine.schedule import Group, Wanted, steps
from latent_rewards.engine.tree import TreeForward
from latent_rewards.engine.tree_run import TreeRun


class InvariantForward(TreeForward):
    """As `TreeForward`, bit for bit the same for any batch, order or grouping, at the cost of small forwards.

    Matrix products round differently for different numbers of rows, and attention for different splits of the keys. So
    each text is cut where its own dialogue says (the judge's head, the prompt, the completion, the question), each
    piece is one forward, and pieces that texts share are run once. Same weights, dtype, device and thread count are
    assumed.
    """

    may_pad = False

    def _plan(
        self,
        group: Group,
        wanted: Wanted,
        head: int,
        keepable: Sequence[int] | None,
        cuts: Sequence[Sequence[int]] | None,
    ) -> tuple[TreeRun, list[Blocks]]:
        """Pieces of texts, each a step of its own.

        Args:
            group: the texts.
            wanted: what is read.
            head: not used; the first piece is the head.
            keepable: not used; the first two pieces (the judge's head and the prompt) are kept between calls.
            cuts: for each sequence of the call the ends of its pieces, not decreasing; the last piece ends with it.
        """
        if cuts is None:
            raise ValueError("a batch-invariant forward has to know where texts are cut: read(..., cuts=)")
        ends = [[min(end, len(ids)) for end in cuts[i]] for ids, i in zip(group.sequences, group.source, strict=True)]
        nodes = pieces(group.sequences, group.positions, ends, wanted.salt)
        alone = steps(nodes, ([i] for i in range(len(nodes))))
        # Not for few rows: how many of a piece are read is a matter of its company.
        return TreeRun(nodes, alone, wanted, self.cache, few_rows=False), [self.blocks]


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
