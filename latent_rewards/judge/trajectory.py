"""Slots of a judge prompt that are made from the completion: its final answer, and the whole course of action."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from latent_rewards.judge.template import render_body, slots_of, ways_to_fill
from latent_rewards.judge.thoughts import Reply

DERIVED = ("final_answer", "trajectory")
"""Slots that no column fills: what the assistant says last, and all turns and tool calls under their speakers."""
SHOWING = ("completion", *DERIVED)


def supplied(names: Iterable[str]) -> tuple[str, ...]:
    """Values that a row must have for the slots of a body, sorted."""
    return tuple(sorted({"completion" if name in DERIVED else name for name in names}))


def in_order(found: Sequence[str], names: Iterable[str]) -> bool:
    """Whether the slots, as a template renders them, are the prompt once and after it each view of the completion once.

    Args:
        found: slots in the order in which they are rendered.
        names: slots of the body.
    """
    seen = [name for name in found if name in ("prompt", *SHOWING)]
    want = [name for name in ("prompt", *SHOWING) if name in set(names)]
    return sorted(seen) == sorted(want) and (not want or seen[:1] == want[:1])


def check_order(body: str) -> None:
    """Whether prompt and completion come in that order, whichever columns are empty.

    Raises:
        ValueError: not with every filling of the columns.
    """
    names = slots_of(body)
    for filled in ways_to_fill(supplied(names)):
        full = dict(filled)
        every = tuple((s, full["completion" if s in DERIVED else s]) for s in names)
        if not in_order(render_body(body, every)[1::2], names):
            empty = [s for s, there in filled if not there]
            raise ValueError(
                "{{ prompt }} must come once, before {{ completion }} once, so that prefixes are shared (so must "
                "{{ final_answer }} and {{ trajectory }}, where they are)"
                + (f"; without {empty} that is not so" if empty else "")
            )


def view(name: str, reply: Reply) -> object:
    """What of a completion stands in one of its slots."""
    return reply.answer if name == "final_answer" else reply.shown
