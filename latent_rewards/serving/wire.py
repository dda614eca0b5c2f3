"""Prompts, needs and readings on the wire; arrays travel as base64 of little-endian float32, bit for bit."""

from __future__ import annotations

import base64
import re
from typing import Literal

import jinja2
import jinja2.nodes
import numpy as np
import torch
from pydantic import BaseModel, Field, StrictBool
from torch import Tensor

from latent_rewards.judge.labels import Labels
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Lens, Need, Reading
from latent_rewards.serving.fields import Real, Whole, Wire

_NODES = {
    jinja2.nodes.Template, jinja2.nodes.Output, jinja2.nodes.TemplateData, jinja2.nodes.Name, jinja2.nodes.If,
    jinja2.nodes.Test, jinja2.nodes.Compare, jinja2.nodes.Operand, jinja2.nodes.Not, jinja2.nodes.And,
    jinja2.nodes.Or, jinja2.nodes.Const,
}  # fmt: skip


class PromptSpec(Wire):
    """A judge prompt, as in a prompt file."""

    name: str = Field("prompt", max_length=200)
    kind: Literal["label", "likelihood", "generate"] = "label"
    system: str = Field("", max_length=20_000)
    body: str = Field(max_length=50_000)
    prefill: str = Field("", max_length=20_000)
    names: list[str] | None = Field(None, max_length=256)
    values: list[Real] | None = Field(None, max_length=256)
    spellings: list[list[str]] | None = Field(None, max_length=256)
    scale: tuple[Whole, Whole] | None = None
    pattern: str | None = Field(None, max_length=500)
    completion: StrictBool = True
    target: str | None = Field(None, max_length=200)
    optional: list[str] = Field([], max_length=100)
    reasoning: Literal["strip", "keep", "only"] = "strip"
    thought_tags: list[tuple[str, str]] = Field([], max_length=20)
    unfinished: Literal["none", "keep"] = "none"
    opened: StrictBool = False

    @classmethod
    def of(cls, prompt: JudgePrompt) -> PromptSpec:
        """What a server needs to rebuild the prompt."""
        labels = prompt.labels
        return cls(
            name=prompt.name, kind=prompt.kind, system=prompt.system, body=prompt.body, prefill=prompt.prefill,  # type: ignore[arg-type]
            names=None if labels is None else list(labels.names),
            values=None if labels is None else list(labels.values),
            spellings=None if labels is None else [list(s) for s in labels.spellings],
            scale=prompt.scale, pattern=prompt.pattern, completion=prompt.completion, target=prompt.target,
            optional=list(prompt.optional), reasoning=prompt.reasoning, thought_tags=list(prompt.thought_tags),
            unfinished=prompt.unfinished, opened=prompt.opened,
        )  # fmt: skip

    def build(self) -> JudgePrompt:
        """The prompt, checked.

        Raises:
            ValueError: labels that do not fit together, or a template that does more than fill slots.
        """
        given = (self.names, self.values, self.spellings)
        if any(x is None for x in given) and any(x is not None for x in given):
            raise ValueError("names, values and spellings of labels come together")
        labels = None
        if self.names is not None and self.values is not None and self.spellings is not None:
            labels = Labels(tuple(self.names), tuple(self.values), tuple(map(tuple, self.spellings)))
        prompt = JudgePrompt(
            name=self.name, kind=self.kind, system=self.system, body=self.body, prefill=self.prefill, labels=labels,
            scale=self.scale, pattern=self.pattern, completion=self.completion, target=self.target,
            optional=tuple(self.optional), reasoning=self.reasoning, thought_tags=tuple(self.thought_tags),
            unfinished=self.unfinished, opened=self.opened,
        )  # fmt: skip
        check_template(prompt)
        return prompt


class NeedSpec(Wire):
    """What to read; see `latent_rewards.Need`."""

    labels: StrictBool = False
    hidden: list[Whole] = Field([], max_length=1024)
    hidden_lens: Lens = "normed"
    layer_logits: list[Lens] = Field([], max_length=2)
    target: StrictBool = False

    @classmethod
    def of(cls, need: Need) -> NeedSpec:
        """For the wire."""
        return cls(
            labels=need.labels, hidden=sorted(need.hidden), hidden_lens=need.hidden_lens,
            layer_logits=sorted(need.layer_logits), target=need.target,
        )  # fmt: skip

    def build(self) -> Need:
        """From the wire."""
        return Need(self.labels, frozenset(self.hidden), self.hidden_lens, frozenset(self.layer_logits), self.target)


class Array(BaseModel):
    """A float32 array: its shape, and base64 of its little-endian bytes in C order."""

    shape: list[int]
    f32: str

    @classmethod
    def of(cls, tensor: Tensor) -> Array:
        """Exact: NaN and every bit included."""
        data = np.ascontiguousarray(tensor.detach().float().cpu().numpy().astype("<f4", copy=False))
        return cls(shape=list(data.shape), f32=base64.b64encode(data.tobytes()).decode())

    def tensor(self) -> Tensor:
        """Back again."""
        data = np.frombuffer(base64.b64decode(self.f32), dtype="<f4").astype(np.float32)
        return torch.from_numpy(data.reshape(self.shape))


class ReadingSpec(BaseModel):
    """A `latent_rewards.Reading`."""

    label_logprobs: Array | None = None
    label_mass: Array | None = None
    hidden: dict[int, Array] = {}
    layer_label_logits: dict[str, Array] = {}
    target_logprobs: Array | None = None
    reasons: list[str | None]

    @classmethod
    def of(cls, reading: Reading) -> ReadingSpec:
        """For the wire."""
        return cls(
            label_logprobs=None if reading.label_logprobs is None else Array.of(reading.label_logprobs),
            label_mass=None if reading.label_mass is None else Array.of(reading.label_mass),
            hidden={k: Array.of(v) for k, v in reading.hidden.items()},
            layer_label_logits={k: Array.of(v) for k, v in reading.layer_label_logits.items()},
            target_logprobs=None if reading.target_logprobs is None else Array.of(reading.target_logprobs),
            reasons=list(reading.reasons),
        )

    def build(self) -> Reading:
        """From the wire."""
        return Reading(
            None if self.label_logprobs is None else self.label_logprobs.tensor(),
            None if self.label_mass is None else self.label_mass.tensor(),
            {k: v.tensor() for k, v in self.hidden.items()},
            {k: v.tensor() for k, v in self.layer_label_logits.items()},
            tuple(self.reasons),
            None if self.target_logprobs is None else self.target_logprobs.tensor(),
        )


def check_template(prompt: JudgePrompt) -> None:
    """A prompt that somebody else wrote: its template may fill and test slots, and nothing else.

    Raises:
        ValueError: loops, calls, filters, arithmetic, or what a prompt file may not have either.
    """
    try:
        found = {type(node) for node in jinja2.Environment().parse(prompt.body).find_all(jinja2.nodes.Node)}
        refused = sorted(kind.__name__ for kind in found if kind not in _NODES)
        if refused:
            raise ValueError(f"templates of clients may fill and test slots only, not use {', '.join(refused)}")
        prompt._validate()
    except (jinja2.TemplateError, SyntaxError, RecursionError, re.error, OverflowError) as err:
        raise ValueError(f"prompt {prompt.name!r}: {type(err).__name__}: {err}") from err
