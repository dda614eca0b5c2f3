"""What a judge is asked for and what it gives: the narrow waist that every scoring method reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from latent_rewards.judge.prompts import JudgePrompt

Lens = Literal["raw", "normed"]
Row = Mapping[str, Any]


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
        if self.hidden and other.hidden and self.hidden_lens != other.hidden_lens:
            raise ValueError("one forward gives hidden states through one lens; ask for raw and normed separately")
        return Need(
            self.labels or other.labels,
            self.hidden | other.hidden,
            self.hidden_lens if self.hidden else other.hidden_lens,
            self.layer_logits | other.layer_logits,
        )

    def covers(self, other: Need) -> bool:
        """Whether a reading for this need also serves the other."""
        if self.hidden and other.hidden and self.hidden_lens != other.hidden_lens:
            return False
        return (self | other) == self


class Request(NamedTuple):
    """Rows to read under one prompt, as one part of `read_many`."""

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


@runtime_checkable
class Judge(Protocol):
    """A frozen judge. `HFJudge` runs one in this process.

    Caches and manifests ask for `fingerprint`, too: text that differs whenever the readings do.
    """

    @property
    def name(self) -> str:
        """Short name of the model, for logs and for probes that must match it."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Subset of {"labels", "hidden", "layer_logits", "generate"}."""
        ...

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Raise ValueError, naming both sides, if this judge cannot meet the need with this prompt."""
        ...

    def read(self, prompt: JudgePrompt, rows: Sequence[Row], need: Need) -> Reading:
        """Read B rows (slot name -> text or messages) in one forward."""
        ...

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """N sampled answers per row; None for a row that does not fit."""
        ...


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
