"""One prefix tree on its way through the model: what runs next, what others still need of it, what has been read."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import torch
from torch import Tensor

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.packed import Pack, packed
from latent_rewards.engine.prefix_cache import KeysValues, PrefixCache
from latent_rewards.engine.prefix_tree import Node
from latent_rewards.engine.schedule import Step, Wanted, ancestors
from latent_rewards.engine.tree_plan import Span, TreePlan
from latent_rewards.engine.workers import Turns


class TreeRun:
    """Runs the steps of a tree, each node once.

    Args:
        nodes: the tree.
        steps: its nodes in packs; those with a key alone.
        wanted: what shall be read.
        cache: of keys and values, kept between calls.
        few_rows: run the deepest layer only for the rows that are read.
    """

    def __init__(
        self, nodes: list[Node], steps: list[Step], wanted: Wanted, cache: PrefixCache, *, few_rows: bool
    ) -> None:
        self.nodes, self.steps, self.wanted, self.cache = nodes, steps, wanted, cache
        self.few_rows = few_rows and not wanted.regime
        self.turns = Turns([step.waits for step in steps])
        self.tokens = 0  # run so far
        n_reads = sum(len(node.reads) for node in nodes)
        self._final: list[Tensor] = [torch.empty(0)] * n_reads
        self._inner = {layer: list(self._final) for layer in wanted.layers}
        self._uses = Counter(itertools.chain.from_iterable(step.above for step in steps))
        self._shared = frozenset(self._uses)
        self._known: dict[int, KeysValues] = {}
        self._lock = threading.Lock()

    def work(self, blocks: Blocks) -> None:
        """Run what is left, in turn; several threads may, each on modules of its own.

        Raises:
            CannotShareError: the model's attention does something that a packed tree does not reproduce.
        """
        for turn in self.turns:
            step = self.steps[turn]
            if not self._cached(step, blocks.n_layers):
                pack = self._pack(step)
                with packed(blocks, pack, self.wanted, few_rows=self.few_rows) as call:
                    call.hidden = blocks.decoder(**call.inputs, use_cache=False).last_hidden_state
                self._take(step, pack, call.states, blocks.n_layers)
            self._let_go(step)

    def states(self) -> States:
        """What was read, in the order of the reads."""
        final = torch.stack(self._final) if self.wanted.final else None
        return States(final, {layer: torch.stack(rows) for layer, rows in self._inner.items()})

    def _cached(self, step: Step, n_layers: int) -> bool:
        """Whether the cache has the keys and values of a step's only node, and nothing is read there."""
        node = self.nodes[step.nodes[0]]
        if node.key is None or node.reads:
            return False
        with self._lock:
            found = self.cache.get(node.key, self.wanted.depth(n_layers))
        if found is not None:
            self._known[step.nodes[0]] = found
        return found is not None

    def _pack(self, step: Step) -> Pack:
        """The tokens of a step; its plan keeps keys and values of nodes that others need, or that have a key."""
        spans: list[Span] = []
        ids: list[int] = []
        at: list[int] = []
        reads: list[int] = []
        index = {node: i for i, node in enumerate(step.nodes)}
        pasts: dict[int, list[KeysValues]] = {}
        for i in step.nodes:
            node, start = self.nodes[i], len(ids)
            if node.parent not in index and node.parent not in pasts:
                pasts[node.parent] = ancestors(self.nodes, node.parent, self._known)
            keep = i in self._shared or node.key is not None
            past = pasts.get(node.parent, ())
            spans.append(Span(start, start + len(node.tokens), index.get(node.parent, -1), past, keep, node.end))
            reads += [start + offset for offset, _ in node.reads]
            ids += node.tokens
            at += range(node.start, node.end)
        with self._lock:
            self.tokens += len(ids)
        if self.wanted.regime:
            # A token that nobody sees: its position sets the frequencies of the call to those of the whole texts.
            spans.append(Span(len(ids), len(ids) + 1, -1, end=self.wanted.regime))
            ids, at = [*ids, ids[-1]], [*at, self.wanted.regime - 1]
        return Pack(TreePlan(spans), ids, at, reads)

    def _take(self, step: Step, pack: Pack, states: States, n_layers: int) -> None:
        """States to where they are read, keys and values to those that need them."""
        first, plan = self.nodes[step.nodes[0]], pack.plan
        kept = {step.nodes[i]: layers for i, layers in plan.kept.items()}
        for k, target in enumerate(target for i in step.nodes for _, target in self.nodes[i].reads):
            if states.final is not None:
                self._final[target] = states.final[k]
            for layer, rows in states.inner.items():
                self._inner[layer][target] = rows[k]
        with self._lock:
            if first.key is not None and not first.reads:
                self.cache.put(first.key, plan.kept[0])
                # As the cache gives them back, so that what follows does not depend on whether they were in it.
                kept[step.nodes[0]] = self.cache.get(first.key, self.wanted.depth(n_layers)) or plan.kept[0]
            self._known.update(kept)

    def _let_go(self, step: Step) -> None:
        """Forget keys and values that no step to come needs."""
        with self._lock:
            for i in step.above:
                self._uses[i] -= 1
                if not self._uses[i]:
                    del self._known[i]
