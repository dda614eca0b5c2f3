"""What the routes take and answer, as pydantic models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, StrictBool, WithJsonSchema, create_model

from latent_rewards.serving.fields import SLOT, TEXT, Deadline, Loose, Real, Slot, Text, Whole, Wire, is_listed
from latent_rewards.serving.wire import Array, NeedSpec, PromptSpec, ReadingSpec, check_template

__all__ = [
    "Array", "Deadline", "Distribution", "ErrorBody", "ErrorDetail", "GenerateRequest", "GenerateResponse", "Info",
    "Loose", "NeedSpec", "PromptNeed", "PromptSpec", "ReadRequest", "ReadResponse", "ReadingSpec", "Real",
    "ScoreRequest", "ScoreResponse", "Slot", "Text", "Whole", "Wire", "check_template", "finite", "is_listed",
    "rows_of", "score_request",
]  # fmt: skip


class ErrorDetail(BaseModel):
    """What went wrong, and in which row of the request (from 0), if it is one row's fault."""

    type: str
    message: str
    row: int | None = None


class ErrorBody(BaseModel):
    """Every answer that is not 200."""

    error: ErrorDetail


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
        "properties": dict.fromkeys(required, TEXT),
        "required": list(required),
        "additionalProperties": SLOT,
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
    """What this server is.

    `rewards` has the prompt of each, `inputs` the slots of a row that it reads, and `bounds` its lowest and highest, or
    null for no end.
    """

    judge: str
    revision: str
    fingerprint: str
    layers: int
    width: int
    capabilities: list[str]
    rewards: dict[str, str]
    inputs: dict[str, list[str]]
    bounds: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)] | None]
    max_rows: int
    max_text_chars: int
    version: str


def finite(values: Any) -> list[float | None]:
    """Floats for JSON: null where there is none."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, dtype=np.float64)]


def rows_of(spec: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a judge takes them: slots that are null are left out."""
    return [{k: v for k, v in row.items() if v is not None} for row in spec]
