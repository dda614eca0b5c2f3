"""The shapes of plain data, as JSON, YAML and Arrow give it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What stands behind a name is not known before it is looked at: whoever reads a value checks it.
JsonObject = dict[str, Any]
Row = dict[str, Any]  # column -> value

NumberedRow = tuple[str, int, Any]  # file, number from 1, and the row, or the error that stands for it

Message = Mapping[str, object]  # role, content (text or text parts), perhaps name and tool_calls
Messages = Sequence[Message]
Prompt = str | Message | Messages


def as_messages(said: Prompt, role: str = "user") -> list[dict[str, Any]]:
    """A text as its role's message; one message or several as they are."""
    if isinstance(said, str):
        return [{"role": role, "content": said}]
    return [dict(message) for message in ([said] if isinstance(said, Mapping) else said)]


def check_lists(**given: Any) -> None:
    """Refuse one text or message where a list of them is due: its letters or keys would be taken for rows."""
    for name, value in given.items():
        if isinstance(value, str | bytes | Mapping):
            raise TypeError(
                f"{name} must be a list with one entry per row, got one {type(value).__name__}: {value!r:.60}"
            )


def slot_rows(
    prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], inputs: Iterable[str]
) -> list[Row]:
    """One slot mapping per row.

    Args:
        prompts: B prompts.
        completions: B completions.
        columns: name -> B entries; those that are no input are left out, whatever they hold.
        inputs: names of the slots that are wanted.

    Raises:
        TypeError: one text instead of a list.
        ValueError: the lengths differ.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
    given: dict[str, Sequence[Any]] = {"prompt": prompts, "completion": completions}
    for slot in inputs:
        if slot in given or columns.get(slot) is None:
            continue
        check_lists(**{slot: columns[slot]})
        column = list(columns[slot])
        if len(column) != len(completions):
            raise ValueError(f"column {slot!r} has {len(column)} entries for {len(completions)} completions")
        given[slot] = column
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def number(value: Any, what: str, *, finite: bool = True) -> float:
    """A number, also one that is written as text.

    Args:
        value: what was given.
        what: its name, for the error.
        finite: infinite ones are refused.

    Raises:
        ValueError: none; names it.
    """
    try:
        found = float(value)
    except (ValueError, TypeError):
        raise ValueError(f"{what} is {value!r:.50}, not a number") from None
    if math.isnan(found) or (finite and math.isinf(found)):
        raise ValueError(f"{what} is {found}")
    return found


def whole(value: Any, what: str) -> int:
    """A whole number, also one that is written as text.

    Raises:
        ValueError: none; names it.
    """
    found = number(value, what)
    if not found.is_integer():
        raise ValueError(f"{what} is {value!r:.50}, not a whole number")
    return int(found)
