"""The shapes of plain data, as JSON, YAML and Arrow give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What stands behind a name is not known before it is looked at: whoever reads a value checks it.
JsonObject = dict[str, Any]
Row = dict[str, Any]  # column -> value

NumberedRow = tuple[str, int, Any]  # file, number from 1, and the row, or the error that stands for it

Messages = Sequence[Mapping[str, Any]]  # of role and content
Prompt = str | Messages


def as_messages(said: Prompt, role: str = "user") -> list[dict[str, Any]]:
    """A text as its role's message; messages as they are."""
    return [{"role": role, "content": said}] if isinstance(said, str) else [dict(message) for message in said]
