"""What a judge is asked for and what it gives: the narrow waist that every scoring method reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

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
        target: log-probability of every token of the prompt's target; asked for alone, of prompts that have one.
    """

    labels: bool = False
    hidden: frozenset[int] = frozenset()
    hidden_lens: Lens = "normed"
    layer_logits: frozenset[Lens] = frozenset()
    target: bool = False

    def __or__(self, other: Need) -> Need:
        if not self.joins(other):
            raise ValueError("one reading gives hidden states through one lens; ask for raw and normed separately")
        return Need(
            self.labels or other.labels,
            self.hidden | other.hidden,
            self.hidden_lens if self.hidden else other.hidden_lens,
            self.layer_logits | other.layer_logits,
            self.target or other.target,
        )

    def joins(self, other: Need) -> bool:
        """Whether one reading can serve both: not if they want hidden states through different lenses."""
        return not (self.hidden and other.hidden) or self.hidden_lens == other.hidden_lens

    def covers(self, other: Need) -> bool:
        """Whether a reading for this need also serves the other."""
        return self.joins(other) and (self | other) == self

    def check(self, prompt: JudgePrompt) -> None:
        """Whether this can be read with a prompt: its target's tokens where it has one, all else where it has none.

        Raises:
            ValueError: it cannot; names the prompt and the remedy.
        """
        others = self.labels or bool(self.hidden) or bool(self.layer_logits)
        if self.target and prompt.target is None:
            raise ValueError(
                f"prompt {prompt.name!r} has no target whose likelihood could be read (kind {prompt.kind!r}); use one "
                "of kind 'likelihood', such as 'likelihood_completion' or 'likelihood_reference'"
            )
        if others and prompt.target is not None:
            raise ValueError(
                f"prompt {prompt.name!r} ends with its target {prompt.target!r}: it has no labels and no rating "
                "position to read; use a prompt of kind 'label'"
            )


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
        target_logprobs: (B, T) ln p(token | all before it) of every token of the prompt's target, T of the longest;
            NaN behind the last token of a shorter one.
        reasons: (B,) None for a row that was read.
    """

    label_logprobs: Tensor | None = None
    label_mass: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    layer_label_logits: dict[str, Tensor] = field(default_factory=dict)
    reasons: tuple[str | None, ...] = ()
    target_logprobs: Tensor | None = None

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
            None if self.target_logprobs is None else change(self.target_logprobs),
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
            self.target_logprobs if need.target else None,
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
            _side_by_side([x for p in parts if (x := p.target_logprobs) is not None]),
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
        """Subset of {"labels", "hidden", "layer_logits", "target", "generate"}."""
        ...

    @property
    def encoder(self) -> Encoder | None:
        """What renders prompts into token ids; None where that is done elsewhere."""
        return None

    @property
    def outages(self) -> int:
        """Calls that it left unanswered, rows unread, in place of an error; what they gave is not to be kept."""
        return 0

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
        torch.full((n, 1), nan) if need.target else None,
    )


def _side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """Rows of several (B, T) below each other, NaN where one is shorter than the longest."""
    if not parts:
        return None
    longest = max(x.shape[1] for x in parts)
    return torch.cat([pad(x, (0, longest - x.shape[1]), value=torch.nan) for x in parts])
