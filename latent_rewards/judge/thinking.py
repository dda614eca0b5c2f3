"""Thoughts that a chat template opens before the judge's answer, where a label would be read inside the thought."""

from __future__ import annotations

import re
from collections.abc import Callable

# Variables by which chat templates turn thinking off, tried where a thought stays open.
SWITCHES = {"enable_thinking": False, "thinking": False, "reasoning": False, "thinking_budget": 0}

_TAG = re.compile(
    r"<(?P<pipe>\|?)(?P<name>[\w:.-]*(?:think|thought|reason|inner_prefix)[\w:.-]*)(?P=pipe)>"
    r"|\[(?P<square>THINK)\]|\u25c1(?P<triangle>think)\u25b7|<\|channel>(?P<channel>thought)",
    re.IGNORECASE,
)
_ENDS = re.compile(r"(?:^|[_-])(?:end|stop|close|suffix)(?:$|[_-])", re.IGNORECASE)
_PAIRS = (("START", "END"), ("start", "end"), ("BEGIN", "END"), ("begin", "end"), ("OPEN", "CLOSE"), ("open", "close"),
          ("prefix", "suffix"))  # fmt: skip
_HARMONY = re.compile(r"<\|start\|>assistant(?:<\|channel\|>analysis<\|message\|>)?$")


def open_thought(tail: str) -> str | None:
    """The tag of a thought that the end of a rendered dialogue opens and leaves open, or None."""
    for found in reversed(list(_TAG.finditer(tail))):
        if _ENDS.search(found["name"] or ""):
            continue
        rest = tail[found.end() :]
        return None if any(close in rest for close in _closings(found)) or _closed(rest) else found[0]
    harmony = _HARMONY.search(tail)
    return harmony[0] if harmony else None


def closing(tail: str, known: Callable[[str], bool]) -> str:
    """What to write after `tail` so that its open thought is over and the answer is due.

    Args:
        tail: end of the rendered dialogue, with an open thought.
        known: whether the tokenizer has a token of this text.

    Raises:
        ValueError: no closing tag is known for the opening one; says what to set.
    """
    if found := _HARMONY.search(tail):
        over = "<|end|><|start|>assistant" if "<|channel|>" in found[0] else ""
        return f"{over}<|channel|>final<|message|>"
    tag = [m for m in _TAG.finditer(tail) if not _ENDS.search(m["name"] or "")][-1]
    names = _closings(tag)
    close = next((c for c in names if known(c)), names[0] if len(names) == 1 else None)
    if close is None:
        raise ValueError(
            f"the judge's chat template opens a thought with {tag[0]!r}, which has no closing tag that we know, so a "
            "label would be read inside the thought; turn thinking off by the template's own variables, "
            "chat_template_kwargs={...}, or set tokenizer.chat_template to one that closes it"
        )
    if not tag["name"] or tag["pipe"]:
        return close + ("<|START_RESPONSE|>" if known("<|START_RESPONSE|>") else "")
    return ("\n" if tail.endswith("\n") else "\n\n") + close + "\n\n"


def _closings(tag: re.Match[str]) -> list[str]:
    """Closing tags that may belong to an opening one, the likeliest first."""
    if tag["square"]:
        return [f"[/{tag['square']}]"]
    if tag["triangle"]:
        return [f"\u25c1/{tag['triangle']}\u25b7"]
    if tag["channel"]:
        return ["<channel|>"]
    name, pipe = tag["name"], tag["pipe"]
    for start, end in _PAIRS:
        if start in name:
            return [f"<{pipe}{name.replace(start, end)}{pipe}>"]
    if not pipe:
        return [f"</{name}>"]
    return [f"<|/{name}|>", f"<|{name}_end|>", f"<|end_{name}|>", f"<|end_of_{name}|>"]


def _closed(rest: str) -> bool:
    return any(_ENDS.search(m["name"] or "") for m in _TAG.finditer(rest))
