"""What of a row stands in the slots of a judge prompt: segments of untrusted text, thoughts treated."""

from __future__ import annotations

from collections.abc import Collection

from latent_rewards.judge.messages import Row, Segment, to_segments
from latent_rewards.judge.target import target_text
from latent_rewards.judge.template import slots_of
from latent_rewards.judge.thoughts import Treatment, read_prompt, read_reply
from latent_rewards.judge.trajectory import DERIVED, view

REPLIES = ("completion", "other")
"""Slots that hold what a policy replied."""


def value_of(row: Row, slot: str, name: str, optional: Collection[str]) -> object:
    """A row's value for a slot of the prompt `name`; None where it may lack it.

    Raises:
        ValueError: it may not.
    """
    value = row.get(slot)
    if value is None and slot not in optional:
        lacks = "is null in this row" if slot in row else f"this row lacks (has {sorted(map(str, row))})"
        raise ValueError(f"prompt {name!r} needs {slot!r}, which {lacks}")
    return value


def fill(
    body: str, row: Row, *, name: str, treatment: Treatment, optional: Collection[str]
) -> tuple[dict[str, list[Segment]], str | None]:
    """Segments for each slot of a body, and why the row must not be scored.

    Args:
        body: template.
        row: slot name -> text or messages.
        name: of the prompt, for messages.
        treatment: of thoughts.
        optional: slots that a row may lack.

    Raises:
        ValueError: a slot is missing or is neither text nor messages.
    """
    values: dict[str, list[Segment]] = {}
    problem: str | None = None
    for part in slots_of(body):
        slot = "completion" if part in DERIVED else part
        value = value_of(row, slot, name, optional)
        try:
            if slot in REPLIES:
                reply = read_reply(value, treatment)
                value, problem = view(part, reply), problem or reply.problem
            elif slot == "prompt":
                value = read_prompt(value, treatment)
            values[part] = to_segments(value if value is not None else "", slot)
        except RecursionError as err:
            raise ValueError(f"{slot!r} is nested too deeply to be text or messages") from err
        if part == "trajectory" and all(s.slot for s in values[part]):
            values[part].insert(0, Segment("Assistant:\n"))
        if part in DERIVED:
            values[part] = [s._replace(slot=part) if s.slot else s for s in values[part]]
    return values, problem


def target_of(row: Row, slot: str | None, name: str, treatment: Treatment) -> tuple[str | None, str | None]:
    """Text of a prompt's target, and why the row must not be scored; see `target_text`."""
    if slot is None:
        return None, None
    return target_text(slot, value_of(row, slot, name, ()), treatment if slot in REPLIES else None)
