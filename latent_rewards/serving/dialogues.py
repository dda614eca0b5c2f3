"""What other stacks send: a policy's prompt and completion with its chat template, to be told apart again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# One turn as the usual templates write it; `role` and `text` are its parts.
_TURNS = {
    "<|im_start|>": r"<\|im_start\|>(?P<role>\w+)\n(?P<text>.*?)(?:<\|im_end\|>|$)",
    "<|start_header_id|>": r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n(?P<text>.*?)(?:<\|eot_id\|>|$)",
    "<start_of_turn>": r"<start_of_turn>(?P<role>\w+)\n(?P<text>.*?)(?:<end_of_turn>|$)",
    "<|user|>": r"<\|(?P<role>user|assistant|system)\|>\n?(?P<text>.*?)(?:<\|end(?:oftext)?\|>|</s>|(?=<\|\w+\|>)|$)",
    "[INST]": r"\[INST\](?P<text>.*?)(?:\[/INST\]|$)(?P<role>)",
}
_ROLES = {"model": "assistant", "": "user"}
_END = re.compile(
    r"(?:\s*(?:<\|[A-Za-z0-9_.-]{1,40}\|>|</s>|<eos>|<pad>|<end_of_turn>|<\uff5c[^<>|]{1,40}\uff5c>|\[PAD\]))+\s*$"
)


SLOTS = ("reference", "rubrics", "criteria")
"""What stacks carry beside prompt and completion, under the names that the shipped prompts know."""


def truth_slots(truth: object, also: Mapping[str, object] | None = None) -> dict[str, Any]:
    """The ground truth of a sample as slots of the judge prompt.

    Args:
        truth: what a stack calls label, ground truth or answer. A text or a number is the `reference`; a mapping may
            hold any of `SLOTS`; all else says nothing to a judge.
        also: further columns of the sample; those of `SLOTS` come first.
    """
    found = {} if also is None else {k: also[k] for k in SLOTS if also.get(k) is not None}
    if isinstance(truth, Mapping):
        return {k: truth[k] for k in SLOTS if truth.get(k) is not None} | found
    if isinstance(truth, str | int | float) and not isinstance(truth, bool) and str(truth).strip():
        return {"reference": str(truth)} | found
    return found


def without_end(text: str) -> str:
    """A completion without the policy's end and padding tokens, which stacks send that do not skip them."""
    return _END.sub("", text)


def split_query(query: str, prompt: str | None) -> str:
    """The completion inside a decoded "prompt and completion" text, without the policy's end tokens.

    Args:
        query: prompt and completion as the policy's tokenizer decodes them, special tokens included.
        prompt: the prompt as the trainer has it.

    Raises:
        ValueError: the query does not hold the prompt's end.
    """
    if prompt is None:
        raise ValueError("without the prompt the completion cannot be told apart; send 'prompts' too")
    start = len(prompt) if query.startswith(prompt) else None
    tail = prompt[-200:]
    if start is None and tail.strip() and (at := query.find(tail)) >= 0:
        start = at + len(tail)  # a BOS before the prompt, or a prompt that was cut from the left
    if start is None:
        raise ValueError(f"the query does not hold the end of its prompt ({tail[-60:]!r})")
    return without_end(query[start:])


def plain_prompt(text: Any) -> Any:
    """A prompt rendered with a usual chat template as messages again; other text with its end tokens stripped.

    Messages stay as they are. A prompt that opens the assistant's turn loses that opening; the turn's own start, if
    any was prefilled, is kept as the beginning of nothing (the completion follows it).
    """
    if not isinstance(text, str):
        return text
    turns = dialogue(text)
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()
    if not turns:
        return without_end(text)
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns


def dialogue(text: str) -> list[dict[str, str]]:
    """Messages of a text in a usual chat template; empty when it is in none."""
    for mark, pattern in _TURNS.items():
        if mark in text:
            found = re.finditer(pattern, text, re.DOTALL)
            turns = [(_ROLES.get(m["role"], m["role"]), m["text"].strip()) for m in found]
            return [{"role": role, "content": content} for role, content in turns]
    return []


def last_answer(text: str) -> tuple[Any, str]:
    """Prompt and completion of one rendered dialogue.

    Args:
        text: JSON of messages, or a dialogue in a usual chat template; the last turn is the assistant's.

    Raises:
        ValueError: neither.
    """
    turns: Any = None
    if text.lstrip().startswith("["):
        try:
            turns = json.loads(text)
        except (ValueError, RecursionError):
            turns = None
    if not isinstance(turns, list):
        turns = dialogue(text)
    if len(turns) < 2 or not all(isinstance(t, dict) and "content" in t for t in turns):
        raise ValueError("expected a dialogue, as JSON messages or in a usual chat template, with an answer last")
    if turns[-1].get("role") != "assistant":
        raise ValueError(f"the last turn must be the assistant's, not {turns[-1].get('role')!r}")
    head = turns[:-1]
    prompt = head[0]["content"] if len(head) == 1 and head[0].get("role") == "user" else head
    return prompt, str(turns[-1]["content"])
