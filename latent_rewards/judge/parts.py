"""What is asked of a judge as token sequences for its forward, and the forward's states as readings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.judge.assemble import assemble, assemble_targets, states_needed
from latent_rewards.judge.encoding import Encoded
from latent_rewards.judge.labels import LabelTrie
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, unread

Text = tuple[tuple[int, ...], int | None]  # token ids, and the first of the target
SLACK = 8
"""Completions of one prompt may begin alike: a shared prefix that reaches so far into them is still the prompt."""


@dataclass(frozen=True)
class Part:
    """One request, encoded.

    Attributes:
        trie: labels; empty where none are asked for.
        need: what to read.
        encoded: (B,) token ids of the rows.
        reasons: (B,) why a row is not read; None for one that is.
    """

    trie: LabelTrie
    need: Need
    encoded: Sequence[Encoded]
    reasons: Sequence[str | None]

    def rows(self, first: int, end: int) -> Part:
        """Rows first..end, end exclusive."""
        return replace(self, encoded=self.encoded[first:end], reasons=self.reasons[first:end])

    @property
    def fits(self) -> list[Encoded]:
        """The rows that are read."""
        return [e for e, why in zip(self.encoded, self.reasons, strict=True) if why is None]

    @cached_property
    def texts(self) -> dict[Text, Encoded]:
        """The distinct texts that are read, by their ids and targets, in the order of the rows."""
        return {_text(e): e for e in self.fits}

    @cached_property
    def index(self) -> list[int | None]:
        """(B,) which of the texts each row is; None for a row that is not read."""
        at = {text: i for i, text in enumerate(self.texts)}
        return [at[_text(e)] if why is None else None for e, why in zip(self.encoded, self.reasons, strict=True)]

    def asks(self, encoded: Encoded) -> list[tuple[list[int], list[int]]]:
        """Token sequences that tell what is asked of a text, and the positions in each whose states are wanted."""
        if self.need.target:
            return [(encoded.ids[:-1], list(range(_target(encoded) - 1, len(encoded.ids) - 1)))]
        end, trie = len(encoded.ids) - 1, self.trie
        return [
            ([*encoded.ids, *chain], [end + len(trie.contexts[c]) for c in contexts])
            for chain, contexts in trie.chains()
        ]

    def reading(self, blocks: Blocks, states: States, *, alone: bool) -> Reading:
        """The reading of the rows from the states of this part; `alone` runs the head for one text at a time."""
        if not self.texts:
            width = blocks.config.hidden_size
            return unread(len(self.reasons), self.trie.n_labels, self.need, blocks.n_layers, width, self.reasons)
        if self.need.target:
            targets = [e.ids[_target(e) :] for e in self.texts.values()]
            return assemble_targets(blocks, states, targets, self.index, self.reasons, alone=alone)
        return assemble(blocks, self.trie, states, self.need, self.index, self.reasons, alone=alone)


class Plan(NamedTuple):
    """What the forward has to run for some parts.

    Attributes:
        sequences: token ids, one for each text and chain of its label trie.
        positions: of each sequence, where its states are wanted.
        cuts: of each sequence, the ends of its pieces: the judge's head, the prompt, the completion, the question.
        layers: inner layers whose states are wanted.
        final: whether the forward must run to the end.
        spans: for each part its first and last (exclusive) position.
        head: length of the head that all texts share.
    """

    sequences: list[list[int]]
    positions: list[list[int]]
    cuts: list[tuple[int, int, int, int]]
    layers: list[int]
    final: bool
    spans: list[tuple[int, int]]
    head: int


def plan(parts: Sequence[Part], n_layers: int) -> Plan:
    """One forward for all parts."""
    sequences: list[list[int]] = []
    positions: list[list[int]] = []
    cuts: list[tuple[int, int, int, int]] = []
    spans: list[tuple[int, int]] = []
    layers: set[int] = set()
    final, count = False, 0
    for part in parts:
        first = count
        for encoded in part.texts.values():
            for ids, at in part.asks(encoded):
                sequences.append(ids)
                positions.append(at)
                cuts.append(_cuts(encoded))
                count += len(at)
        spans.append((first, count))
        if part.texts:
            inner, to_the_end = states_needed(part.need, n_layers)
            layers, final = layers | set(inner), final or to_the_end
    head = _shared_head([e for part in parts for e in part.fits])
    return Plan(sequences, positions, cuts, sorted(layers), final, spans, head)


def content_key(prompt: JudgePrompt, encoded: Sequence[Encoded]) -> str:
    """Equal for the same texts under the same prompt."""
    digest = hashlib.sha256(prompt.hash.encode())
    for e in encoded:
        digest.update(b"-" if e.problem else b"+")
        digest.update(len(e.ids).to_bytes(8, "little") + torch.tensor(e.ids, dtype=torch.int32).numpy().tobytes())
        digest.update(b"" if e.target is None else e.target.to_bytes(8, "little"))
    return digest.hexdigest()


def _cuts(encoded: Encoded) -> tuple[int, int, int, int]:
    begin, end = encoded.completion
    total = len(encoded.ids)
    begin = begin or encoded.target or 0
    return min(encoded.head, begin or total), begin or total, end or total, total


def _text(encoded: Encoded) -> Text:
    return tuple(encoded.ids), encoded.target


def _target(encoded: Encoded) -> int:
    assert encoded.target is not None
    return encoded.target


def _shared_head(encoded: Sequence[Encoded]) -> int:
    """Length of the prompt's constant head: what comes before untrusted text, as far as all rows agree."""
    if not encoded:
        return 0
    first = encoded[0].ids[: min(e.head for e in encoded)]
    while first and any(e.ids[: len(first)] != first for e in encoded):
        first.pop()
    return len(first)
