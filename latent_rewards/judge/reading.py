"""What a judge is asked for and what it gives: the narrow waist that every scoring method reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from latent_rewards.judge.messages import Row as Row
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.readers import Readers

if TYPE_CHECKING:
    from latent_rewards.judge.encoding import Encoder

Lens = Literal["raw", "normed"]


@dataclass(frozen=True)
class Need:
    """What a readout wants from the forward.

    Attributes:
        labels: log-probability of every label.
        hidden: layers whose state is wanted, 1..L; negative counts from the end (-1 is L).
        hidden_lens: "normed" passes the states through the model's final norm, "raw" leaves them.
        layer_logits: lens through which label logits of every layer are wanted; None for none.
    """

    labels: bool = False
    hidden: frozenset[int] = frozenset()
    hidden_lens: Lens = "normed"
    layer_logits: frozenset[Lens] = frozenset()

    def __or__(self, other: Need) -> Need:
        if not self.joins(other):
            raise ValueError("one reading gives hidden states through one lens; ask for raw and normed separately")
        return Need(
            self.labels or other.labels,
            self.hidden | other.hidden,
            self.hidden_lens if self.hidden else other.hidden_lens,
            self.layer_logits | other.layer_logits,
        )

    def joins(self, other: Need) -> bool:
        """Whether one reading can serve both: not if they want hidden states through different lenses."""
        return not (self.hidden and other.hidden) or self.hidden_lens == other.hidden_lens

    def covers(self, other: Need) -> bool:
        """Whether a reading for this need also serves the other."""
        return self.joins(other) and (self | other) == self


class Request(NamedTuple):
    """B rows (slot name -> text or messages) to read under one prompt."""

    prompt: JudgePrompt
    rows: Sequence[Row]
    need: Need


@dataclass(frozen=True)
class Reading:
    """What one forward tells of B judged texts, all at the rating position, float32 on the CPU.

    A row that could not be read is NaN throughout, and `reasons` says why.

    Attributes:
        label_logprobs: (B, K) ln p(label_k | text) over the whole vocabulary, exact for multi-token labels.
        label_mass: (B,) share of the vocabulary's probability that the labels hold.
        hidden: layer 1..L -> (B, D) state after that block.
        layer_label_logits: lens -> (B, L+1, K) label logits on the state after block 0 (the embedding) to L. For a
            label of several tokens: the layer's logit of its first token plus the exact conditional log-probs of
            the rest from the model's own output, so that the last layer gives the exact label odds.
        reasons: (B,) None for a row that was read.
    """

    label_logprobs: Tensor | None = None
    label_mass: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    layer_label_logits: dict[str, Tensor] = field(default_factory=dict)
    reasons: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.reasons)

    def map(self, change: Callable[[Tensor], Tensor], reasons: Sequence[str | None]) -> Reading:
        """The same change, of rows, to every tensor."""
        return Reading(
            None if self.label_logprobs is None else change(self.label_logprobs),
            None if self.label_mass is None else change(self.label_mass),
            {layer: change(x) for layer, x in self.hidden.items()},
            {lens: change(x) for lens, x in self.layer_label_logits.items()},
            tuple(reasons),
        )

    def take(self, first: int, end: int) -> Reading:
        """Rows first..end, end exclusive."""
        return self.map(lambda x: x[first:end], self.reasons[first:end])

    def only(self, need: Need) -> Reading:
        """Of the fields those that were asked for.

        Raises:
            KeyError: a layer or lens that was not read.
        """
        return Reading(
            self.label_logprobs if need.labels else None,
            self.label_mass if need.labels else None,
            {layer: self.hidden[layer] for layer in need.hidden},
            {lens: self.layer_label_logits[lens] for lens in need.layer_logits},
            self.reasons,
        )

    @staticmethod
    def join(parts: Sequence[Reading]) -> Reading:
        """The rows of all parts, one after the other; all hold the same fields, parts without rows any."""
        parts = [p for p in parts if len(p)] or parts[:1]

        def cat(pick: Callable[[Reading], Tensor | None]) -> Tensor | None:
            found = [x for p in parts if (x := pick(p)) is not None]
            return torch.cat(found) if found else None

        return Reading(
            cat(lambda p: p.label_logprobs),
            cat(lambda p: p.label_mass),
            {layer: torch.cat([p.hidden[layer] for p in parts]) for layer in parts[0].hidden},
            {lens: torch.cat([p.layer_label_logits[lens] for p in parts]) for lens in parts[0].layer_label_logits},
            tuple(reason for p in parts for reason in p.reasons),
        )


@runtime_checkable
class Judge(Protocol):
    """A frozen judge. `HFJudge` runs one in this process, `ServerJudge` asks one behind a URL.

    A judge of your own may derive from this class: what has a body here is right for a judge that keeps nothing.
    """

    @property
    def name(self) -> str:
        """Short name of the model, for logs and for probes that must match it."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Text that differs whenever the readings do; caches and manifests keep scores under it."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """What the fingerprint is made of, as plain data, so that a difference can be named."""
        return {"fingerprint": self.fingerprint}

    @property
    def revision(self) -> str | None:
        """Revision of the weights, that probes must match; None where it cannot be told."""
        return None

    @property
    def arithmetic(self) -> str | None:
        """Precision and why it was taken, in a line; None where it cannot be told."""
        return None

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks, L; 0 where it cannot be told, for a judge without hidden states."""
        return 0

    @property
    def capabilities(self) -> frozenset[str]:
        """Subset of {"labels", "hidden", "layer_logits", "generate"}."""
        ...

    @property
    def encoder(self) -> Encoder | None:
        """What renders prompts into token ids; None where that is done elsewhere."""
        return None

    @cached_property
    def readers(self) -> Readers:
        """The rewards that a trainer calls on this judge, so that they are read together."""
        return Readers()

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Raise ValueError, naming both sides, if this judge cannot meet the need with this prompt."""
        ...

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """A reading for each request, all in one forward where the judge can do that."""
        ...

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """N sampled answers per row; None for a row that does not fit."""
        ...

    def forget(self) -> None:
        """Drop what is remembered of earlier calls, so that the next one depends on its own rows alone."""


def unread(n: int, n_labels: int, need: Need, n_layers: int, width: int, reasons: Sequence[str | None]) -> Reading:
    """A reading of n rows that tells nothing: all NaN, or empty for n = 0."""
    nan = float("nan")
    return Reading(
        torch.full((n, n_labels), nan) if need.labels else None,
        torch.full((n,), nan) if need.labels else None,
        {layer: torch.full((n, width), nan) for layer in need.hidden},
        {lens: torch.full((n, n_layers + 1, n_labels), nan) for lens in need.layer_logits},
        tuple(reasons),
    )
