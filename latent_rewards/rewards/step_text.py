"""Where the steps of a reply end: paragraphs, numbered steps, lines, turns of a trajectory, or as the data says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from latent_rewards.files.types import Message, Prompt

SPLITS = ("paragraphs", "numbered", "lines", "turns")
_BREAKS = {
    "paragraphs": re.compile(r"\n[^\S\n]*\n\s*"),
    "lines": re.compile(r"\n\s*"),
    "numbered": re.compile(r"\n\s*(?=(?:[*#_]{0,4})(?:step\s*)?\d+\s*[.):\]])", re.IGNORECASE),
}


def prefixes(completion: Prompt, split: str) -> list[Prompt]:
    """What stands there after each step: T texts or lists of messages, each the beginning of the next.

    Args:
        completion: text, or messages.
        split: one of `SPLITS`, or a text that stands between steps. "numbered" begins a step at a line that begins
            with a number ("2.", "Step 3:", "**4)**"); "turns" ends one before each message of the assistant after the
            first, so that what its tools answered belongs to it. Text within a message is split in the last one.

    Returns:
        At least one; the last is the completion itself. White space between steps belongs to none of them.
    """
    if isinstance(completion, str):
        return [completion] if split == "turns" else list(_cut(completion, split))
    messages = [completion] if isinstance(completion, Mapping) else list(completion)
    if split == "turns":
        starts = [i for i, m in enumerate(messages) if m.get("role") == "assistant"][1:]
        return [*(messages[:i] for i in starts), messages]
    last = messages[-1] if messages else {}
    content = last.get("content")
    if not isinstance(content, str):
        return [messages]
    return [[*messages[:-1], {**last, "content": text}] for text in _cut(content, split)]


def joined(steps: object) -> list[Prompt]:
    """As `prefixes`, of steps that the data gives apart: texts, joined by blank lines, or messages.

    Raises:
        ValueError: no list, an empty one, or one of other things.
    """
    if isinstance(steps, str) or not isinstance(steps, Sequence) or not steps:
        raise ValueError(f"steps must be a list of texts or of messages, got {steps!r:.60}")
    if all(isinstance(s, str) for s in steps):
        return ["\n\n".join(cast("Sequence[str]", steps)[: i + 1]) for i in range(len(steps))]
    flat: list[Message] = []
    out: list[Prompt] = []
    for step in steps:
        turn = [step] if isinstance(step, Mapping) else step
        if isinstance(turn, str) or not isinstance(turn, Sequence) or not all(isinstance(m, Mapping) for m in turn):
            raise ValueError(f"steps must be a list of texts or of messages, got {step!r:.60} in it")
        flat += turn
        out.append(list(flat))
    return out


def _cut(text: str, split: str) -> list[str]:
    pattern = _BREAKS.get(split) or re.compile(re.escape(split))
    ends = [m.start() for m in pattern.finditer(text) if text[: m.start()].strip() and text[m.end() :].strip()]
    return [*(text[:end] for end in dict.fromkeys(ends)), text]
