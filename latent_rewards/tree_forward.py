"""The fast forward: every token of a prefix tree once, packed without padding, no layer deeper than asked for."""

from __future__ import annotations

import ctypes
import itertools
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from latent_rewards.forward import Blocks, States, read_states
from latent_rewards.packed_forward import packed_forward
from latent_rewards.prefix_cache import KeysValues, PrefixCache
from latent_rewards.prefix_tree import Node, build_tree
from latent_rewards.side_by_side import MOST_WORKERS, replica, run_side_by_side
from latent_rewards.tree_attention import CannotShareError, Span, TreePlan

logger = logging.getLogger(__name__)


class TreeForward:
    """Reads states through the prefix tree of the sequences; falls back to the padded forward where it must.

    Args:
        blocks: the judge.
        batch_tokens: most tokens in one packed forward; None is 2048 on CPU, else what a quarter of the free
            memory holds.
        cache_bytes: most bytes of keys and values of shared prefixes kept between calls.
        min_saving: fewest tokens that sharing must save to be worth a node.
        share_prefixes: False reads every sequence whole.
        compile: compile the decoder blocks (once, with dynamic shapes).
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        batch_tokens: int | None = None,
        cache_bytes: int = 64 << 20,
        min_saving: int = 16,
        share_prefixes: bool = True,
        compile: bool = False,
    ) -> None:
        self.blocks, self.min_saving = blocks, min_saving
        self.batch_tokens = _default_batch_tokens(blocks) if batch_tokens is None else batch_tokens
        self.cache = PrefixCache(cache_bytes)
        self.usable = share_prefixes and _can_share(blocks)
        self.few_rows = blocks.device.type == "cpu"
        self.tokens_run = 0
        self._warned = False
        self._lock = threading.Lock()
        self._replicas: list[Blocks] = []
        self._can_replicate = getattr(blocks.model, "hf_device_map", None) is None
        self._compiled = compile
        if self.usable:
            self._check()
        elif share_prefixes:
            logger.warning("%s: its attention cannot share prefixes; reading without them", type(blocks.model).__name__)
        if compile and self.usable:
            for layer in blocks.layers:
                layer.compile(dynamic=True)

    @torch.no_grad()
    def read(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        *,
        layers: Sequence[int] = (),
        final: bool = True,
        head: int = 0,
        keepable: Sequence[int] | None = None,
    ) -> States:
        """As `forward.read_states`, which it equals up to rounding.

        What it gives depends on this call's sequences alone, not on what was read before.

        Args:
            sequences: N token sequences.
            positions: for each the positions to read.
            layers: inner layers wanted.
            final: whether the decoder's output is wanted.
            head: length of the prefix that all sequences share and later calls will share; it is run once.
            keepable: for each sequence how many of its first tokens later calls may share (the head and the prompt, not
                the completion); default all.
        """
        while True:
            try:
                states = self._read_any(sequences, positions, tuple(layers), final, head, keepable)
                if self.blocks.device.type == "cpu":
                    _give_back_memory()
                return states
            except torch.OutOfMemoryError:
                if self.batch_tokens <= 64:
                    raise
                self.batch_tokens //= 2
                self.cache.clear()
                torch.cuda.empty_cache()
                logger.warning("out of memory: going on with batches of %d tokens", self.batch_tokens)

    def _read_any(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        layers: tuple[int, ...],
        final: bool,
        head: int,
        keepable: Sequence[int] | None,
    ) -> States:
        if self.usable:
            try:
                return self._read(sequences, positions, layers, final, head, keepable)
            except CannotShareError as err:
                if not self._warned:
                    logger.warning("reading without shared prefixes: %s", err)
                self._warned = True
                self.usable = "sliding window" in str(err)
        self.tokens_run += sum(map(len, sequences))
        return read_states(
            self.blocks, sequences, positions, layers=layers, final=final, batch_tokens=self.batch_tokens
        )

    def _read(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        layers: tuple[int, ...],
        final: bool,
        head: int,
        keepable: Sequence[int] | None,
    ) -> States:
        depth = self.blocks.n_layers if final else max(layers, default=0)
        nodes = build_tree(sequences, positions, head=head, keepable=keepable, min_saving=self.min_saving)
        n_reads = sum(map(len, positions))
        rows: dict[int, list[Any]] = {layer: [None] * n_reads for layer in layers}
        last: list[Any] = [None] * n_reads
        known: dict[int, KeysValues] = {}
        workers = self._workers(sum(len(node.tokens) for node in nodes))
        steps = _steps(nodes, list(_batches(nodes, self.batch_tokens, len(workers))))
        uses = Counter(itertools.chain.from_iterable(above for _, above, _ in steps))
        shared = frozenset(uses)

        def step(s: int, blocks: Blocks) -> None:
            batch, above, _ = steps[s]
            if nodes[batch[0]].key is not None:
                known[batch[0]] = self._kept(blocks, nodes, batch[0], known, shared, layers, final, depth)
            else:
                got, plan = self._run(blocks, nodes, batch, known, shared, layers, final)
                for k, target in enumerate(r for i in batch for _, r in nodes[i].reads):
                    if got.final is not None:
                        last[target] = got.final[k]
                    for layer in layers:
                        rows[layer][target] = got.inner[layer][k]
                known.update({batch[i]: kv for i, kv in plan.kept.items()})
            with self._lock:
                for i in above:
                    uses[i] -= 1
                    if not uses[i]:
                        del known[i]

        if len(workers) == 1:
            for s in range(len(steps)):
                step(s, self.blocks)
        else:
            run_side_by_side(step, [waits for *_, waits in steps], workers)
        return States(torch.stack(last) if final else None, {k: torch.stack(v) for k, v in rows.items()})

    def _workers(self, tokens: int) -> list[Blocks]:
        """Modules to run packs on: on CPU with several threads and enough to do several, around the same weights."""
        n = min(torch.get_num_threads(), MOST_WORKERS, tokens // 512) if self.blocks.device.type == "cpu" else 1
        while len(self._replicas) < n - 1 and self._can_replicate:
            try:
                new = replica(self.blocks)
            except Exception as err:
                self._can_replicate = False
                logger.warning("one pack at a time: the judge's modules cannot be copied (%s)", err)
                break
            if self._compiled:
                for layer in new.layers:
                    layer.compile(dynamic=True)
            self._replicas.append(new)
        return [self.blocks, *self._replicas[: max(0, n - 1)]]

    def _kept(
        self,
        blocks: Blocks,
        nodes: list[Node],
        i: int,
        known: dict[int, KeysValues],
        shared: frozenset[int],
        layers: tuple[int, ...],
        final: bool,
        depth: int,
    ) -> KeysValues:
        """Keys and values of a node that has a key: from the cache, or run alone now and put there."""
        key = nodes[i].key
        assert key is not None
        with self._lock:
            found = self.cache.get(key, depth)
        if found is None:
            _, plan = self._run(blocks, nodes, [i], known, shared, layers, final)
            with self._lock:
                self.cache.put(key, plan.kept[0])
                found = self.cache.get(key, depth) or plan.kept[0]
        return found

    def _run(
        self,
        blocks: Blocks,
        nodes: list[Node],
        batch: list[int],
        known: dict[int, KeysValues],
        shared: frozenset[int],
        layers: tuple[int, ...],
        final: bool,
    ) -> tuple[States, TreePlan]:
        """Run some nodes; the plan keeps keys and values of those that others need (`shared`) or that have a key."""
        spans: list[Span] = []
        ids: list[int] = []
        at: list[int] = []
        reads: list[int] = []
        index = {node: i for i, node in enumerate(batch)}
        pasts: dict[int, list[KeysValues]] = {}
        for i in batch:
            node, a = nodes[i], len(ids)
            if node.parent not in index and node.parent not in pasts:
                pasts[node.parent] = _ancestors(nodes, node.parent, known)
            past = pasts.get(node.parent, ())
            keep = i in shared or node.key is not None
            spans.append(Span(a, a + len(node.tokens), index.get(node.parent, -1), past, keep, node.end))
            reads += [a + offset for offset, _ in node.reads]
            ids += node.tokens
            at += range(node.start, node.end)
        with self._lock:
            self.tokens_run += len(ids)
        plan = TreePlan(spans)
        states = packed_forward(blocks, plan, ids, at, reads, layers, final, few_rows=self.few_rows)
        return states, plan

    @torch.no_grad()
    def _check(self) -> None:
        """A small tree must give what the padded forward gives; else sharing is switched off, with one warning."""
        reason = self._difference()
        if reason and self.few_rows:
            self.few_rows = False
            reason = self._difference()
        self.cache.clear()
        self.tokens_run = 0
        if reason:
            self.usable = False
            name = type(self.blocks.model).__name__
            logger.warning("%s: shared prefixes do not work here (%s); reading without them", name, reason)

    def _difference(self) -> str:
        """What keeps a small tree from giving what the padded forward gives; empty if nothing does."""
        vocab = self.blocks.config.vocab_size
        head = [(7 * i + 3) % vocab for i in range(24)]
        sequences = [
            [*head, *[(11 * i + 5 * b + 1) % vocab for i in range(20)], *[(13 * i + c) % vocab for i in range(3 + c)]]
            for b in range(2)
            for c in range(3)
        ]
        positions = [(len(s) - 1,) for s in sequences]
        try:
            ours = self._read(sequences, positions, (), True, len(head), None).final
            plain = read_states(self.blocks, sequences, positions, batch_tokens=self.batch_tokens).final
            assert ours is not None and plain is not None
            error = float((ours.float() - plain.float()).norm() / plain.float().norm())
        except (CannotShareError, RuntimeError, ValueError, TypeError, AttributeError) as err:
            return f"{type(err).__name__}: {err}"
        return "" if error < (1e-4 if plain.dtype == torch.float32 else 0.05) else f"relative difference {error:.1e}"


def _give_back_memory() -> None:
    """Let glibc return what a call has freed to the system; otherwise its heap stays as large as it ever was."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def _find_malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):  # another C library
        return None


_malloc_trim = _find_malloc_trim()


def _default_batch_tokens(blocks: Blocks) -> int:
    """2048 on CPU, where more only costs memory; on an accelerator what fits a quarter of its free memory."""
    if blocks.device.type != "cuda":
        return 2048
    free, _ = torch.cuda.mem_get_info(blocks.device)
    config = blocks.config
    width = 6 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    return int(min(65_536, max(2048, free / 4 / (2 * width))))


def _can_share(blocks: Blocks) -> bool:
    """Whether the model's attention goes through transformers' interface, so that ours can take its place."""
    can = getattr(blocks.model, "_can_set_attn_implementation", None)
    return bool(can and can())


def _steps(nodes: list[Node], batches: list[list[int]]) -> list[tuple[list[int], list[int], set[int]]]:
    """What is run in turn: batches, and before each the nodes above it that are kept between calls, alone.

    Returns:
        For each step its nodes, those above them that it needs, and the earlier steps that give these.
    """
    steps: list[tuple[list[int], list[int], set[int]]] = []
    of: dict[int, int] = {}

    def add(batch: list[int], above: list[int]) -> None:
        waits = {of[i] for i in above}
        of.update(dict.fromkeys(batch, len(steps)))
        steps.append((batch, above, waits))

    for batch in batches:
        above = _outside_ancestors(nodes, batch)
        for i in above:
            if i not in of:
                add([i], _outside_ancestors(nodes, [i]))
        add(batch, above)
    return steps


def _batches(nodes: list[Node], batch_tokens: int, workers: int = 1) -> Iterator[list[int]]:
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


def _outside_ancestors(nodes: list[Node], batch: list[int]) -> list[int]:
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


def _ancestors(nodes: list[Node], parent: int, known: dict[int, KeysValues]) -> list[KeysValues]:
    """Keys and values of a node and all above it, outermost first."""
    out = []
    while parent >= 0:
        out.append(known[parent])
        parent = nodes[parent].parent
    return out[::-1]
