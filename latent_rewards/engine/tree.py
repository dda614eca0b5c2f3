"""The fast forward: every token of a prefix tree once, packed without padding, no layer deeper than asked for."""

from __future__ import annotations

import ctypes
import itertools
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from latent_rewards.engine.attention import CannotShareError, Span, TreePlan
from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.packed import packed_forward
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.prefix_cache import KeysValues, PrefixCache
from latent_rewards.engine.prefix_tree import Node, build_tree
from latent_rewards.engine.read_check import ReadCheck, refuse_if_random
from latent_rewards.engine.schedule import Group, ancestors, group_texts, packs, put_together, steps
from latent_rewards.engine.workers import MOST_WORKERS, replica, run_side_by_side

logger = logging.getLogger(__name__)

_NO_LIMIT = 1 << 62
# What is kept between calls is run alone. An accelerator takes as long for 500 tokens as for some thousands:
# `benchmarks/gpu.py`'s eight, packed with their completions, took 0.23 s on an H200, alone 0.51 s (0.6B, bfloat16).
_MIN_KEPT_ELSEWHERE = 4096


class Wanted(NamedTuple):
    """What one packed forward shall give: inner layers, the decoder's output, at the frequencies of `regime`."""

    layers: tuple[int, ...]
    final: bool
    regime: int = 0

    def depth(self, n_layers: int) -> int:
        """How many blocks have to run."""
        return n_layers if self.final else max(self.layers, default=0)


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

    pads = True  # whether texts that are read whole may lie in one padded batch

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
        self.longest = _longest_untuned(blocks.config)
        self.few_rows = blocks.device.type == "cpu"
        self.min_kept = 64 if blocks.device.type == "cpu" else _MIN_KEPT_ELSEWHERE
        self.tokens_run = 0
        self._why = "its attention cannot share prefixes" if share_prefixes else "share_prefixes=False"
        self._length_matters = False
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._replicas: list[Blocks] = []
        self._can_replicate = getattr(blocks.model, "hf_device_map", None) is None
        self._compiled = compile
        self._check = ReadCheck(blocks)
        self._check_at_load(share_prefixes)
        if compile and self.usable:
            for layer in blocks.layers:
                layer.compile(dynamic=True)

    @property
    def sharing(self) -> str:
        """One line on how texts are read and why."""
        if not self.usable:
            return f"whole texts{'' if self.pads else ', each alone'}: {self._why}"
        out = "shared prefixes"
        if self.longest < _NO_LIMIT:
            out += f" in texts of up to {self.longest} tokens, longer ones whole: {self._limit_reason()}"
        if self.blocks.rope:
            out += "; texts on either side of a switch of the rotary frequencies apart"
        return out

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

        def shared(group: Group, wanted: Wanted) -> States:
            common = min(head, *map(len, group.sequences)) if head else 0
            keep = None if keepable is None else [keepable[i] for i in group.source]
            return self._read(group.sequences, group.positions, wanted, common, keep)

        return self._read_groups(sequences, positions, Wanted(tuple(layers), final), shared)

    def _read_groups(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        wanted: Wanted,
        shared: Callable[[Group, Wanted], States],
    ) -> States:
        groups = group_texts(sequences, positions, self.blocks.rope, self.longest if self.usable else _NO_LIMIT)
        parts = [self._read_group(group, wanted._replace(regime=group.regime), shared) for group in groups]
        if self.blocks.device.type == "cpu":
            _give_back_memory()
        return put_together(groups, parts)

    def _read_group(self, group: Group, wanted: Wanted, shared: Callable[[Group, Wanted], States]) -> States:
        while True:
            try:
                if self.usable and not group.shares:
                    self._warn(f"reading texts of more than {self.longest} tokens without shared prefixes: "
                               f"{self._limit_reason()}")  # fmt: skip
                states = self._shared(group, wanted, shared) if self.usable and group.shares else None
                return self._whole(group, wanted) if states is None else states
            except torch.OutOfMemoryError:
                if self.batch_tokens <= 64:
                    raise
                self.batch_tokens //= 2
                self.cache.clear()
                torch.cuda.empty_cache()
                logger.warning("out of memory: going on with batches of %d tokens", self.batch_tokens)

    def _shared(self, group: Group, wanted: Wanted, shared: Callable[[Group, Wanted], States]) -> States | None:
        """States of a group through shared prefixes; None, and never again, where the model does not allow it."""
        try:
            states = shared(group, wanted)
            reason = self._check.fault("shared", group, states, wanted.layers)
        except CannotShareError as err:
            reason = str(err)
        if not reason:
            return states
        self.usable, self._why = False, reason
        self._warn(f"reading without shared prefixes from now on: {reason}")
        return None

    def _whole(self, group: Group, wanted: Wanted) -> States:
        """States of a group, each text whole, in padded batches where these change nothing."""
        self.tokens_run += sum(map(len, group.sequences))
        if self.pads:
            states = self._read_whole(group, wanted, self.batch_tokens)
            reason = self._check.fault("padded", group, states, wanted.layers)
            if not reason:
                return states
            self._alone_from_now_on(reason)
        return self._read_whole(group.ends() if self._length_matters else group, wanted, 1)

    def _read_whole(self, group: Group, wanted: Wanted, batch_tokens: int) -> States:
        options: dict[str, Any] = {"layers": wanted.layers, "final": wanted.final, "batch_tokens": batch_tokens}
        return read_states(self.blocks, group.sequences, group.positions, **options)

    def _alone_from_now_on(self, reason: str) -> None:
        self.pads, self._length_matters = False, True
        name = type(self.blocks.model).__name__
        refuse_if_random(self.blocks)
        self._warn(f"{name}: padded batches do not work here ({reason}); reading each text alone")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            logger.warning("%s", message)
        self._warned.add(message)

    def _limit_reason(self) -> str:
        if self.longest == _longest_untuned(self.blocks.config):
            return f"queries are scaled by their place in the call from token {self.longest + 1} on"
        return f"a sliding window or chunk of {self.longest} tokens"

    def _read(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        wanted: Wanted,
        head: int,
        keepable: Sequence[int] | None,
    ) -> States:
        layers, final = wanted.layers, wanted.final
        nodes = build_tree(
            sequences,
            positions,
            head=head,
            keepable=keepable,
            min_saving=self.min_saving,
            min_kept=self.min_kept,
            salt=salt_of(wanted.regime),
        )
        n_reads = sum(map(len, positions))
        rows: dict[int, list[Any]] = {layer: [None] * n_reads for layer in layers}
        last: list[Any] = [None] * n_reads
        known: dict[int, KeysValues] = {}
        workers = self._workers(sum(len(node.tokens) for node in nodes))
        todo = steps(nodes, list(packs(nodes, min(self.batch_tokens, self._most_packed), len(workers))))
        uses = Counter(itertools.chain.from_iterable(above for _, above, _ in todo))
        shared = frozenset(uses)

        def step(s: int, blocks: Blocks) -> None:
            batch, above, _ = todo[s]
            if nodes[batch[0]].key is not None:
                known[batch[0]] = self._kept(blocks, nodes, batch[0], known, shared, wanted)
            else:
                got, plan = self._run(blocks, nodes, batch, known, shared, wanted)
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
            for s in range(len(todo)):
                step(s, self.blocks)
        else:
            run_side_by_side(step, [waits for *_, waits in todo], workers)
        return States(torch.stack(last) if final else None, {k: torch.stack(v) for k, v in rows.items()})

    @property
    def _most_packed(self) -> int:
        """Most tokens in a pack where the model goes by a token's place in the call rather than by its position."""
        return _longest_untuned(self.blocks.config)

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
        wanted: Wanted,
    ) -> KeysValues:
        """Keys and values of a node that has a key: from the cache, or run alone now and put there."""
        key, depth = nodes[i].key, wanted.depth(self.blocks.n_layers)
        assert key is not None
        with self._lock:
            found = self.cache.get(key, depth)
        if found is None:
            _, plan = self._run(blocks, nodes, [i], known, shared, wanted)
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
        wanted: Wanted,
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
                pasts[node.parent] = ancestors(nodes, node.parent, known)
            past = pasts.get(node.parent, ())
            keep = i in shared or node.key is not None
            spans.append(Span(a, a + len(node.tokens), index.get(node.parent, -1), past, keep, node.end))
            reads += [a + offset for offset, _ in node.reads]
            ids += node.tokens
            at += range(node.start, node.end)
        with self._lock:
            self.tokens_run += len(ids)
        if wanted.regime:
            # A token that nobody sees: its position sets the frequencies of the call to those of the whole texts.
            spans.append(Span(len(ids), len(ids) + 1, -1, end=wanted.regime))
            ids, at = [*ids, ids[-1]], [*at, wanted.regime - 1]
        plan = TreePlan(spans)
        few_rows = self.few_rows and not wanted.regime
        states = packed_forward(blocks, plan, ids, at, reads, wanted.layers, wanted.final, few_rows=few_rows)
        with self._lock:
            self.longest = min(self.longest, plan.window)
        return states, plan

    @torch.no_grad()
    def _check_at_load(self, share_prefixes: bool) -> None:
        """Small texts must give what each gives alone; else sharing, or padding, is switched off with a warning."""
        name = type(self.blocks.model).__name__
        if self.usable:
            reason = self._check.difference(self._read_small)
            if reason and self.few_rows:
                self.few_rows = False
                reason = self._check.difference(self._read_small)
            self.cache.clear()
            if reason:
                self.usable, self._why = False, reason
                logger.warning("%s: shared prefixes do not work here (%s); reading without them", name, reason)
        elif share_prefixes:
            logger.warning("%s: its attention cannot share prefixes; reading without them", name)
        if reason := self._check.difference(self._read_padded):
            self._alone_from_now_on(reason)
        self.tokens_run = 0

    def _read_small(self, sequences: list[list[int]], positions: list[list[int]], head: int) -> States:
        if max(map(len, sequences)) > self.longest:
            raise CannotShareError(self._limit_reason())
        return self._read(sequences, positions, Wanted((), True), head, None)

    def _read_padded(self, sequences: list[list[int]], positions: list[list[int]], _: int) -> States:
        return read_states(self.blocks, sequences, positions, batch_tokens=self.batch_tokens)


def salt_of(regime: int) -> bytes:
    """What tells keys and values of this regime from others of the same tokens."""
    return regime.to_bytes(8, "little") if regime else b""


def _longest_untuned(config: Any) -> int:
    """Most tokens in a call before Llama 4 scales queries by their place in it, which a pack does not keep."""
    return int(config.floor_scale) - 1 if getattr(config, "attn_temperature_tuning", False) else _NO_LIMIT


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
