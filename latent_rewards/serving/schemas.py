"""What goes over the wire, as pydantic models; arrays travel as base64 of little-endian float32, bit for bit."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jinja2
import jinja2.nodes
import numpy as np
import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    create_model,
    model_validator,
)
from torch import Tensor

from latent_rewards.judge.labels import Labels
from latent_rewards.judge.prompts import JudgePrompt, to_segments
from latent_rewards.judge.reading import Lens, Need, Reading

_MESSAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "role": {"type": "string"},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "null"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
            ]
        },
    },
    "required": ["role"],
}
_TEXT: dict[str, Any] = {
    "anyOf": [
        {"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "array", "items": _MESSAGE}, _MESSAGE,
    ],
    "description": "text, or chat messages with text content",
}  # fmt: skip


def _text(value: Any) -> Any:
    to_segments(value, "text")
    return value


def _optional_text(value: Any) -> Any:
    return value if value is None or is_rubric(value) else _text(value)


def is_rubric(value: Any) -> bool:
    """A list of criteria: of texts, or of mappings that are no messages; a reward that takes one checks the rest."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(x, str) or (isinstance(x, dict) and "role" not in x) for x in value)
    )


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"a number is expected, not {value!r:.50}")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Text = Annotated[Any, BeforeValidator(_text), WithJsonSchema(_TEXT)]
_RUBRIC: dict[str, Any] = {
    "type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, {"type": "object"}]},
    "description": "criteria, for rewards that take a rubric list",
}  # fmt: skip
Slot = Annotated[
    Any, BeforeValidator(_optional_text), WithJsonSchema({"anyOf": [*_TEXT["anyOf"], _RUBRIC, {"type": "null"}]})
]  # fmt: skip


_NODES = {
    jinja2.nodes.Template, jinja2.nodes.Output, jinja2.nodes.TemplateData, jinja2.nodes.Name, jinja2.nodes.If,
    jinja2.nodes.Test, jinja2.nodes.Compare, jinja2.nodes.Operand, jinja2.nodes.Not, jinja2.nodes.And,
    jinja2.nodes.Or, jinja2.nodes.Const,
}  # fmt: skip


class Wire(BaseModel):
    """Unknown fields are errors, which name the known ones."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: object) -> object:
        unknown = sorted(str(k) for k in set(data) - set(cls.model_fields)) if isinstance(data, dict) else []
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.model_fields, n=1)
            hint = f", perhaps {near[0]!r}" if near else ""
            raise ValueError(f"unknown field {unknown[0]!r}{hint}; allowed are {', '.join(cls.model_fields)}")
        return data


class Loose(BaseModel):
    """For routes that other stacks call: fields that we do not need are ignored."""

    model_config = ConfigDict(extra="ignore")


class ErrorDetail(BaseModel):
    """What went wrong, and in which row of the request (from 0), if it is one row's fault."""

    type: str
    message: str
    row: int | None = None


class ErrorBody(BaseModel):
    """Every answer that is not 200."""

    error: ErrorDetail


_Seconds = Annotated[float, Field(ge=1, le=86_400), BeforeValidator(_number)]
Deadline = Annotated[_Seconds | None, Field(description="Seconds after which nobody waits any more.")]


class ScoreRequest(Wire):
    """Rows to score; `score_request` gives the model with a server's own rewards."""

    rows: list[dict[str, Slot]]
    rewards: list[str] | None = None
    distribution: StrictBool = False
    explain: StrictBool = Field(False, description="Tell for rubric lists how far each criterion is met.")
    alone: StrictBool = Field(False, description="Judge these rows apart from those of other requests.")
    deadline: Deadline = None


def score_request(names: Sequence[str], required: Sequence[str]) -> type[ScoreRequest]:
    """`ScoreRequest` for a server that has these rewards and whose rows need these slots."""
    row = {
        "type": "object",
        "properties": dict.fromkeys(required, _TEXT),
        "required": list(required),
        "additionalProperties": {"anyOf": [*_TEXT["anyOf"], {"type": "null"}]},
    }
    known: Any = Literal[tuple(names)]
    make: Any = create_model
    return make(
        "ScoreRequest",
        __base__=ScoreRequest,
        rows=(list[Annotated[dict[str, Slot], WithJsonSchema(row)]], ...),
        rewards=(list[known] | None, Field(None, description="Which rewards; null for all of this server.")),
    )


class Distribution(BaseModel):
    """Label distributions of B rows: log-probabilities over the whole vocabulary, null where unread."""

    labels: list[str]
    values: list[float]
    logprobs: list[list[float | None]]


class ScoreResponse(BaseModel):
    """Scores of B rows for each reward; null where there is none, and then `reasons` says why."""

    rewards: dict[str, list[float | None]]
    reasons: list[str | None]
    label_mass: dict[str, list[float | None]]
    distribution: dict[str, Distribution] | None = None
    explanations: dict[str, list[list[dict[str, str | float | bool | None]]]] | None = None


class PromptSpec(Wire):
    """A judge prompt, as in a prompt file."""

    name: str = Field("prompt", max_length=200)
    kind: Literal["label", "generate"] = "label"
    system: str = Field("", max_length=20_000)
    body: str = Field(max_length=50_000)
    prefill: str = Field("", max_length=20_000)
    names: list[str] | None = Field(None, max_length=256)
    values: list[Real] | None = Field(None, max_length=256)
    spellings: list[list[str]] | None = Field(None, max_length=256)
    scale: tuple[Whole, Whole] | None = None
    pattern: str | None = Field(None, max_length=500)
    completion: StrictBool = True
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
            scale=prompt.scale, pattern=prompt.pattern, completion=prompt.completion, optional=list(prompt.optional),
            reasoning=prompt.reasoning, thought_tags=list(prompt.thought_tags), unfinished=prompt.unfinished,
            opened=prompt.opened,
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
            scale=self.scale, pattern=self.pattern, completion=self.completion, optional=tuple(self.optional),
            reasoning=self.reasoning, thought_tags=tuple(self.thought_tags), unfinished=self.unfinished,
            opened=self.opened,
        )  # fmt: skip
        check_template(prompt)
        return prompt


class NeedSpec(Wire):
    """What to read; see `latent_rewards.Need`."""

    labels: StrictBool = False
    hidden: list[Whole] = Field([], max_length=1024)
    hidden_lens: Lens = "normed"
    layer_logits: list[Lens] = Field([], max_length=2)

    @classmethod
    def of(cls, need: Need) -> NeedSpec:
        """For the wire."""
        return cls(
            labels=need.labels, hidden=sorted(need.hidden), hidden_lens=need.hidden_lens,
            layer_logits=sorted(need.layer_logits),
        )  # fmt: skip

    def build(self) -> Need:
        """From the wire."""
        return Need(self.labels, frozenset(self.hidden), self.hidden_lens, frozenset(self.layer_logits))


class PromptNeed(Wire):
    """One prompt and what to read with it."""

    prompt: PromptSpec
    need: NeedSpec


class ReadRequest(Wire):
    """Rows to read with one or several prompts, in one forward."""

    rows: list[dict[str, Slot]]
    reads: list[PromptNeed] = Field(min_length=1, max_length=16)
    alone: StrictBool = False
    deadline: Deadline = None


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
    reasons: list[str | None]

    @classmethod
    def of(cls, reading: Reading) -> ReadingSpec:
        """For the wire."""
        return cls(
            label_logprobs=None if reading.label_logprobs is None else Array.of(reading.label_logprobs),
            label_mass=None if reading.label_mass is None else Array.of(reading.label_mass),
            hidden={k: Array.of(v) for k, v in reading.hidden.items()},
            layer_label_logits={k: Array.of(v) for k, v in reading.layer_label_logits.items()},
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
        )


class ReadResponse(BaseModel):
    """One reading per read, in order."""

    readings: list[ReadingSpec]


class GenerateRequest(Wire):
    """Sampled answers of the judge, for the Likert baseline."""

    rows: list[dict[str, Slot]]
    prompt: PromptSpec
    n: Whole = Field(1, ge=1, le=64)
    temperature: Real = Field(0.7, ge=0, le=10)
    max_new_tokens: Whole = Field(160, ge=1, le=4096)
    seed: Whole = Field(0, ge=0, lt=1 << 63)
    deadline: Deadline = None


class GenerateResponse(BaseModel):
    """N answers per row; null for a row that does not fit."""

    answers: list[list[str | None]]


class Info(BaseModel):
    """What this server is."""

    judge: str
    revision: str
    fingerprint: str
    layers: int
    width: int
    capabilities: list[str]
    rewards: dict[str, str]
    max_rows: int
    max_text_chars: int
    version: str


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


def finite(values: Any) -> list[float | None]:
    """Floats for JSON: null where there is none."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, dtype=np.float64)]


def rows_of(spec: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a judge takes them: slots that are null are left out."""
    return [{k: v for k, v in row.items() if v is not None} for row in spec]
