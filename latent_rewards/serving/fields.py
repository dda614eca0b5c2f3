"""What a field of a request may hold: texts, numbers, deadlines; unknown fields are named."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from latent_rewards.judge.prompts import to_segments

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
TEXT: dict[str, Any] = {
    "anyOf": [
        {"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "array", "items": _MESSAGE}, _MESSAGE,
    ],
    "description": "text, or chat messages with text content",
}  # fmt: skip


def _text(value: Any) -> Any:
    to_segments(value, "text")
    return value


def _optional_text(value: Any) -> Any:
    if not is_listed(value):
        return value if value is None else _text(value)
    for item in value:
        if isinstance(item, list):
            _text(item)
    return value


def is_listed(value: Any) -> bool:
    """Criteria or several replies, of which a reward that takes them checks the rest.

    A list of texts, of mappings that are no messages, and of dialogues, or a mapping that is no message.
    """
    if isinstance(value, list):
        return bool(value) and all(isinstance(x, str) or _is_criterion(x) or _is_dialogue(x) for x in value)
    return _is_criterion(value)


def _is_criterion(value: Any) -> bool:
    return isinstance(value, dict) and "role" not in value


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, dict) and "role" in x for x in value)


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"a number is expected, not {value!r:.50}")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Text = Annotated[Any, BeforeValidator(_text), WithJsonSchema(TEXT)]
_CRITERION: dict[str, Any] = {"type": "object", "not": {"required": ["role"]}}
_DIALOGUE: dict[str, Any] = {"type": "array", "items": _MESSAGE}
_LISTED: dict[str, Any] = {
    "type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, _CRITERION, _DIALOGUE]},
    "description": "criteria or opponents, for rewards that take a list of them",
}  # fmt: skip
SLOT: dict[str, Any] = {"anyOf": [*TEXT["anyOf"], _LISTED, _CRITERION, {"type": "null"}]}
Slot = Annotated[Any, BeforeValidator(_optional_text), WithJsonSchema(SLOT)]


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


_Seconds = Annotated[float, Field(ge=1, le=86_400), BeforeValidator(_number)]
Deadline = Annotated[_Seconds | None, Field(description="Seconds after which nobody waits any more.")]
