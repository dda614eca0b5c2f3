"""The fast forward: every token of a prefix tree once, packed without padding, no layer deeper than asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.memory import default_batch_tokens, give_back
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.prefix_cache import PrefixCache
from latent_rewards.engine.prefix_tree import build_tree
from latent_rewards.engine.schedule import Group, Wanted, group_texts, packs, put_together, steps
from latent_rewards.engine.tree_run import TreeRun
from latent_rewards.engine.ways import Way, Ways
from latent_rewards.engine.workers import MOST_WORKERS, replica, side_by_side

logger = logging.getLogger(__name__)

# What is kept between calls is run alone. An accelerator takes as long for 500 tokens as for some thousands:
# `benchmarks/gpu.py`'s eight, packed with their completions, took 0.23 s on an H200, alone 0.51 s (0.6B, bfloat16).
_MIN_KEPT_ELSEWHERE = 4096


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

    Attributes:
        tokens_run: so far, but for those of padding and of checks.
    """

    may_pad = True  # whether texts that are read whole may lie in one padded batch

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
        self.cache = PrefixCache(cache_bytes)
        most = default_batch_tokens(blocks) if batch_tokens is None else batch_tokens
        self.ways = Ways(blocks, self.cache, batch_tokens=most, share_prefixes=share_prefixes, pads=self.may_pad)
        self.few_rows = blocks.device.type == "cpu"
        self.min_kept = 64 if blocks.device.type == "cpu" else _MIN_KEPT_ELSEWHERE
        self.tokens_run = 0
        self._replicas: list[Blocks] = []
        self._can_replicate = getattr(blocks.model, "hf_device_map", None) is None
        self._compiled = compile
        self._check_at_load()
        if compile and self.usable:
            for layer in blocks.layers:
                layer.compile(dynamic=True)

    @property
    def usable(self) -> bool:
        """Whether prefixes are shared."""
        return self.ways.shares

    @property
    def sharing(self) -> str:
        """One line on how texts are read and why."""
        return self.ways.sharing

    @property
    def batch_tokens(self) -> int:
        """Most tokens in one forward."""
        return self.ways.batch_tokens

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
        cuts: Sequence[Sequence[int]] | None = None,
    ) -> States:
        """As `padded.read_states`, which it equals up to rounding.

        What it gives depends on this call's sequences alone, not on what was read before.

        Args:
            sequences: N token sequences.
            positions: for each the positions to read.
            layers: inner layers wanted.
            final: whether the decoder's output is wanted.
            head: length of the prefix that all sequences share and later calls will share; it is run once.
            keepable: for each sequence how many of its first tokens later calls may share (the head and the prompt, not
                the completion); default all.
            cuts: for each sequence the ends of its pieces; `InvariantForward` reads these apart.
        """
        groups = group_texts(sequences, positions, self.blocks.rope)
        for group in groups:
            wanted = Wanted(tuple(layers), final, group.regime)
            while group.states is None:
                with self.ways.trying(group, wanted.layers) as way:
                    if way == "shared":
                        run, workers = self._plan(group, wanted, head, keepable, cuts)
                        if len(workers) == 1:
                            run.work(self.blocks)
                        else:
                            side_by_side(run.work, run.turns, workers)
                        group.states = self._taken(run)
                    else:
                        group.states = self._read_whole(group, wanted, way)
        give_back(self.blocks.device)
        return put_together(groups)

    def _plan(
        self,
        group: Group,
        wanted: Wanted,
        head: int,
        keepable: Sequence[int] | None,
        cuts: Sequence[Sequence[int]] | None,
    ) -> tuple[TreeRun, list[Blocks]]:
        """How a group is read through shared prefixes, and on which modules."""
        nodes = build_tree(
            group.sequences,
            group.positions,
            head=min(head, *map(len, group.sequences)) if head else 0,
            keepable=None if keepable is None else [keepable[i] for i in group.source],
            min_saving=self.min_saving,
            min_kept=self.min_kept,
            salt=wanted.salt,
        )
        workers = self._workers(sum(len(node.tokens) for node in nodes))
        batches = packs(nodes, self.batch_tokens, len(workers))
        return TreeRun(nodes, steps(nodes, batches), wanted, self.cache, few_rows=self.few_rows), workers

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

    def _taken(self, run: TreeRun) -> States:
        """What a run has read, and told of the model."""
        self.tokens_run += run.tokens
        return run.states()

    def _read_whole(self, group: Group, wanted: Wanted, way: Way) -> States:
        """States of a group, each text whole, in padded batches where these change nothing."""
        texts = self.ways.whole_texts(group, way)
        self.tokens_run += sum(map(len, group.sequences))
        most = self.batch_tokens if way == "padded" else 1
        return read_states(
            self.blocks, texts.sequences, texts.positions, layers=wanted.layers, final=wanted.final, batch_tokens=most
        )

    @torch.no_grad()
    def _check_at_load(self) -> None:
        """Small texts must give what each gives alone; else sharing is switched off with a warning."""
        check = self.ways.check
        if self.usable:
            reason = check.difference(self._read_small)
            if reason and self.few_rows:
                self.few_rows = False
                reason = check.difference(self._read_small)
            self.cache.clear()
            if reason:
                self.ways.leave("shared", reason)
        else:
            self.ways.check_padded()
        self.tokens_run = 0

    def _read_small(self, sequences: list[list[int]], positions: list[list[int]], head: int) -> States:
        group = Group(0, list(sequences), positions, list(range(len(sequences))), [])
        run, _ = TreeForward._plan(self, group, Wanted((), True), head, None, None)
        run.work(self.blocks)
        return self._taken(run)
