"""What other stacks send: a policy's prompt and completion with its chat template, to be told apart again."""

from __future__ import annotations

import json
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from latent_rewards.judge.messages import to_text

# One turn as the usual templates write it; `role` and `text` are its parts.
_TURNS = {
    "<|im_start|>": r"<\|im_start\|>(?P<role>\w+)\n(?P<text>.*?)(?:<\|im_end\|>|$)",
    "<|start_header_id|>": r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n(?P<text>.*?)(?:<\|eot_id\|>|$)",
    "<start_of_turn>": r"<start_of_turn>(?P<role>\w+)\n(?P<text>.*?)(?:<end_of_turn>|$)",
    "<|user|>": r"<\|(?P<role>user|assistant|system)\|>\n?(?P<text>.*?)(?:<\|end(?:oftext)?\|>|</s>|(?=<\|\w+\|>)|$)",
    "[INST]": r"\[(?P<role>/?)INST\](?P<text>.*?)(?:</s>|(?=\[/?INST\])|$)",
}
# What may stand before the first turn: blanks, and tokens that begin or pad a text.
_BEFORE = (
    r"(?:\s|</?s>|<(?:bos|pad|eos|sop)>|\[(?:PAD|BOS|gMASK)\]|<\|[A-Za-z0-9_.-]{1,40}\|>|<\uff5c[^<>|]{1,40}\uff5c>)*?"
)
_ROLES = {"model": "assistant", "": "user", "/": "assistant"}
_END = re.compile(r"(?:<\|[A-Za-z0-9_.-]{1,40}\|>|</s>|<eos>|<pad>|<end_of_turn>|<\uff5c[^<>|]{1,40}\uff5c>|\[PAD\])\Z")
_THOUGHT = re.compile(r"(?:<think>\s*(?:</think>)?)?")  # what templates put after the opening of the answer


SLOTS = ("reference", "rubrics", "criteria")
"""What stacks carry beside prompt and completion, under the names that the shipped prompts know."""
_FILLED = ("prompt", "completion")


def truth_slots(truth: object, also: Mapping[str, object] | None = None) -> dict[str, Any]:
    """The ground truth of a sample as slots of the judge prompt.

    Args:
        truth: what a stack calls label, ground truth or answer. A text or a number, numpy's too, is the `reference`; a
            mapping (or its JSON text, if it holds any of `SLOTS`) has `SLOTS`, and texts for further slots under their
            names; all else says nothing to a judge.
        also: further columns of the sample; those of `SLOTS` come first.
    """
    found = {} if also is None else _known(also)
    truth = _unpacked(truth)
    if isinstance(truth, Mapping):
        texts = {k: v for k, v in truth.items() if isinstance(v, str) and k not in _FILLED}
        return texts | _known(truth) | found
    if isinstance(truth, str | numbers.Number) and not isinstance(truth, bool) and str(truth).strip():
        return {"reference": str(truth)} | found
    return found


def _known(columns: Mapping[str, object]) -> dict[str, Any]:
    known = {k: columns[k] for k in SLOTS if columns.get(k) is not None}
    if isinstance(listed := columns.get("rubric"), list):  # as some data sets call it
        known.setdefault("rubrics", listed)
    return known


def _unpacked(truth: object) -> object:
    if isinstance(truth, str) and truth.lstrip().startswith("{"):
        try:
            found = json.loads(truth)
        except (ValueError, RecursionError):
            return truth
        return found if isinstance(found, dict) and not found.keys().isdisjoint(SLOTS) else truth
    return truth


def without_end(text: str, tokens: Sequence[str] | None = None) -> str:
    """A completion without the policy's end and padding tokens, which stacks send that do not skip them.

    Args:
        text: what the policy wrote.
        tokens: what is cut; None for those that $LATENT_REWARDS_END_TOKENS names (with blanks between; empty for none),
            and where it is not set those of the usual families.
    """
    said = os.environ.get("LATENT_REWARDS_END_TOKENS")
    named = tokens if tokens is not None or said is None else said.split()
    kept = text
    while (size := _end_size(kept.rstrip(), named)) > 0:
        kept = kept.rstrip()[:-size].rstrip()
    return kept


def _end_size(text: str, named: Sequence[str] | None) -> int:
    if named is not None:
        return max((len(token) for token in named if text.endswith(token)), default=0)
    found = _END.search(text, max(0, len(text) - 50))  # longer than any: searching all of a text takes too long
    return 0 if found is None else len(found.group())


def split_query(query: str, prompt: str | None, tokens: Sequence[str] | None = None) -> str:
    """The completion inside a decoded "prompt and completion" text, without the policy's end tokens.

    Args:
        query: prompt and completion as the policy's tokenizer decodes them, special tokens included.
        prompt: the prompt as the trainer has it.
        tokens: as in `without_end`.

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
    return without_end(query[start:], tokens)


def plain_prompt(text: Any, tokens: Sequence[str] | None = None) -> Any:
    """A prompt rendered with a usual chat template as messages again; other text with its end tokens stripped.

    Messages stay as they are. A prompt that opens the assistant's turn loses that opening, with the tags of thoughts
    that a template may begin there; any other start of the answer is kept as a message (the completion follows it).
    `tokens` as in `without_end`.
    """
    if not isinstance(text, str):
        return text
    turns = _asked(text)
    return _alone(turns) if turns else without_end(text, tokens)


def plain_turns(log: Sequence[Mapping[str, Any]]) -> Any:
    """Messages, any of whose contents may be rendered with a usual chat template, as they were before."""
    turns: list[dict[str, Any]] = []
    for message in log:
        content = message["content"]
        found = _asked(content) if isinstance(content, str) else []
        turns += found or [{"role": message["role"], "content": plain_prompt(content)}]
    return _alone(turns)


def _asked(text: str) -> list[dict[str, str]]:
    """Messages of a rendered prompt, without the opening of the answer."""
    turns = dialogue(text)
    if turns and turns[-1]["role"] == "assistant" and _THOUGHT.fullmatch(turns[-1]["content"].strip()):
        turns.pop()
    return turns


def _alone(turns: list[dict[str, Any]]) -> Any:
    return _text_of(turns[0]) if len(turns) == 1 and turns[0].get("role") == "user" else turns


def _text_of(message: dict[str, Any]) -> Any:
    """The text of a message that holds a text; one that holds parts, or nothing, as it is."""
    return message["content"] if isinstance(message["content"], str) else [message]


def dialogue(text: str) -> list[dict[str, str]]:
    """Messages of a text in a usual chat template; empty when it is in none, as a text that only quotes one is."""
    for mark, pattern in _TURNS.items():
        if mark in text and (before := re.match(f"{_BEFORE}(?={pattern})", text, re.DOTALL)):
            found = re.compile(pattern, re.DOTALL).finditer(text, before.end())
            turns = [(_ROLES.get(m["role"], m["role"]), m["text"].strip()) for m in found]
            return [{"role": role, "content": content} for role, content in turns]
    return []


def last_answer(text: str) -> tuple[Any, Any]:
    """Prompt and completion of one rendered dialogue.

    Args:
        text: JSON of messages, or a dialogue in a usual chat template; the last turn is the assistant's.

    Raises:
        ValueError: neither, or a message that holds more than text.
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
    prompt, completion = _alone(turns[:-1]), _text_of(turns[-1])
    for said in (prompt, completion):
        to_text(said)  # or ValueError
    return prompt, completion
