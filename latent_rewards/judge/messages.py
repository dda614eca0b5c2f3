"""Untrusted text: strings and chat messages as segments that a judge's dialogue keeps apart from our words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from latent_rewards.files.types import Message as Message
from latent_rewards.files.types import Prompt as Prompt
from latent_rewards.judge.thoughts import THOUGHT_PARTS

Row = Mapping[str, object]
"""Slot name -> text, messages or another value of a dataset's column."""

_SURROGATE = re.compile("[\ud800-\udfff]")
SPEAKER = {"user": "User", "assistant": "Assistant", "system": "System", "developer": "System", "tool": "Tool result"}


class Segment(NamedTuple):
    """A stretch of text: ours (`slot` is None, may hold control tokens) or untrusted (`slot` says where from)."""

    text: str
    slot: str | None = None


class Turn(NamedTuple):
    """One chat turn of the judge's own dialogue."""

    role: str
    segments: tuple[Segment, ...]


class Dialogue(NamedTuple):
    """What the judge reads: turns, then the start of its own answer (`prefill`, ours, may be empty).

    `sampled`: the answer is to be written, so it may begin with a thought. `problem`: why it must not be scored.
    `target`: untrusted text that stands as the judge's answer behind the prefill, for its likelihood to be read.
    """

    turns: tuple[Turn, ...]
    prefill: str = ""
    sampled: bool = False
    problem: str | None = None
    target: str | None = None


Shape = tuple[object, ...]


def shape_of(dialogue: Dialogue) -> Shape:
    """Everything of a dialogue but the untrusted text."""
    turns = ((t.role, tuple((s.slot, s.text if s.slot is None else None) for s in t.segments)) for t in dialogue.turns)
    return dialogue.prefill, dialogue.sampled, *turns


def untrusted(dialogue: Dialogue) -> list[Segment]:
    """The untrusted segments of a dialogue's turns."""
    return [s for t in dialogue.turns for s in t.segments if s.slot is not None]


def to_text(value: object) -> str:
    """Plain text of a string or of chat messages, for reports and length statistics."""
    return "".join(seg.text for seg in to_segments(value, "text"))


def to_segments(value: object, slot: str) -> list[Segment]:
    """Untrusted segments of a string or of chat messages.

    A single user or assistant message stands for its content. Longer dialogues become a transcript in which the
    speakers' names are ours and everything said is untrusted.

    Raises:
        ValueError: neither a string nor a list of messages with text content.
    """
    if isinstance(value, str):
        return [Segment(_clean(value), slot)]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{slot!r} is NaN, which is how data frames write a missing text")
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{slot!r} is an infinite number, not text")
    if isinstance(value, bool | int | float):
        return [Segment(str(value), slot)]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in value
    ):
        raise ValueError(
            f"{slot!r} must be text or a list of messages with 'role' and 'content', got {type(value).__name__}"
        )
    if len(value) == 1 and value[0]["role"] in ("user", "assistant") and not value[0].get("tool_calls"):
        return [Segment(_clean(_content(value[0], slot)), slot)]
    out: list[Segment] = []
    for i, message in enumerate(value):
        name = f" ({_clean(str(message['name']))})" if message.get("name") else ""
        out.append(Segment(("\n\n" if i else "") + SPEAKER.get(message["role"], "Other")))
        out.append(Segment(name, slot))
        out.append(Segment(":\n"))
        out.append(Segment(_clean(_content(message, slot)), slot))
        if message.get("tool_calls"):
            out.append(Segment("\nTool calls:\n"))
            out.append(Segment(_clean(json.dumps(message["tool_calls"], ensure_ascii=False, default=str)), slot))
    return [s for s in out if s.text or s.slot is None]


def _content(message: Message, slot: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError(
            f"{slot!r} has a message whose content is {type(content).__name__}; expected text or text parts"
        )
    parts = []
    for part in content if isinstance(content, Sequence) else [content]:
        if isinstance(part, Mapping) and part.get("type") in THOUGHT_PARTS:
            continue
        if not isinstance(part, Mapping) or part.get("type") != "text" or "text" not in part:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{slot!r} holds a {kind!r} part; this judge reads text only")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{slot!r} holds a text part without text")
        parts.append(part["text"])
    return "".join(parts)


def _clean(text: str) -> str:
    """Lone surrogates, which no tokenizer takes, become U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)
