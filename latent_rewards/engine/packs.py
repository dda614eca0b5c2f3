"""In which packs, and in which order, the nodes of a prefix tree are run."""

from __future__ import annotations

from collections.abc import Iterator

from latent_rewards.engine.prefix_cache import KeysValues
from latent_rewards.engine.prefix_tree import Node


def steps(nodes: list[Node], batches: list[list[int]]) -> list[tuple[list[int], list[int], set[int]]]:
    """What is run in turn: batches, and before each the nodes above it that are kept between calls, alone.

    Returns:
        For each step its nodes, those above them that it needs, and the earlier steps that give these.
    """
    out: list[tuple[list[int], list[int], set[int]]] = []
    of: dict[int, int] = {}

    def add(batch: list[int], above: list[int]) -> None:
        waits = {of[i] for i in above}
        of.update(dict.fromkeys(batch, len(out)))
        out.append((batch, above, waits))

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
