"""Prompt and completion told apart in rows whose completions hold the prompt: dialogues, and Anthropic's HH text.

The assistant's last turns after the shared prompt are the completion, what comes before is the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

import numpy as np

from latent_rewards.judge.messages import Message, Prompt, Row, to_text
from latent_rewards.judge.thoughts import has_thought

Turn = Message

SIDES = ("chosen", "rejected")
PEEK = 16  # rows that show how a file is laid out

_ANSWERING = {"assistant", "tool", "function"}  # roles that never ask
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_STRANGE = "the dialogue does not begin with the row's prompt"


def split_column(row: Row, prompt: str, completion: str) -> tuple[object, object]:
    """Prompt and completion of a row by their columns, when the completion may hold the prompt; None where missing.

    Where the column is one side of a pair, the other side helps to tell where the prompt ends.

    Raises:
        ValueError: see `split`.
    """
    if row.get(completion) is None:
        return row.get(prompt), None
    names = [c for c in SIDES if row.get(c) is not None] if completion in SIDES else [completion]
    found, answers = split(row.get(prompt), [row[c] for c in names])
    return found, answers[names.index(completion)]


def split(prompt: object, answers: Sequence[object]) -> tuple[object, list[object]]:
    """Prompt and completions of answers that may hold the prompt.

    Text stays as it is, but for HH dialogues that agree up to their last "Assistant:".

    Args:
        prompt: text or messages; None or blank where only the answers hold it.
        answers: text, messages of the assistant, or whole dialogues; all answer one prompt.

    Returns:
        The prompt, None where there is none, and the completions; a single turn as its text.

    Raises:
        ValueError: dialogues that do not begin with the prompt, do not share one, or do not end with an answer.
    """
    given = None if isinstance(prompt, str) and not prompt.strip() else prompt
    out = list(answers)
    known = [a for a in answers if isinstance(a, str) or is_dialogue(a)]
    texts = [a for a in known if isinstance(a, str)]
    if len(out) == len(known) > len(texts):
        turns = [turns_of(a) for a in known]
        if any(map(_asks, turns)):
            given, turns = _cut(given, turns)
        out = [_single(t, "assistant") for t in turns]
    elif len(out) == len(texts):
        given, texts = _cut_text(given, texts)
        out = [*texts]
    if is_dialogue(given):
        given = _single(turns_of(given), "user")
    return (prompt if given is None and prompt is not None else given), out


def holds_prompt(answer: object) -> bool:
    """Whether an answer looks like a whole dialogue."""
    return _asks(turns_of(answer)) if is_dialogue(answer) else isinstance(answer, str) and bool(_hh_parts(answer)[0])


def hold_prompts(rows: Iterable[Row], column: str) -> bool:
    """Whether rows have completions, or lists of them, that are whole dialogues and need no prompt beside them."""
    values = [row.get(column) for row in rows]
    return any(map(holds_prompt, [v for value in values for v in (value if isinstance(value, list) else [value])]))


def _cut(given: object, dialogues: list[list[Turn]]) -> tuple[object, list[list[Turn]]]:
    """Prompt and rests of dialogues of which at least one holds the prompt."""
    whole = [d for d in dialogues if _asks(d)]
    head = _shared(whole)
    for d in whole:
        rest = d[len(head) :]
        if not rest or rest[-1]["role"] not in _ANSWERING:
            raise ValueError(f"a dialogue ends with a turn of {d[-1]['role']!r}; its last turn must be the assistant's")
        if _asks(rest):
            raise ValueError("the dialogues differ before the last user's turn, so they do not answer one prompt")
    n, prompt = (len(head), head) if given is None else _matched(given, head)
    return prompt, [d[n:] if _asks(d) else d for d in dialogues]


def _shared(dialogues: list[list[Turn]]) -> list[Turn]:
    """Leading turns that all dialogues share, up to the last that is not the assistant's."""
    keys, n = [[_key(t) for t in d] for d in dialogues], 0
    while n < min(map(len, keys)) and all(k[n] == keys[0][n] for k in keys):
        n += 1
    while n and dialogues[0][n - 1]["role"] == "assistant":
        n -= 1
    return dialogues[0][:n]


def _matched(given: object, head: list[Turn]) -> tuple[int, list[Turn]]:
    """Turns of a dialogue's head that are the given prompt, and the prompt with a system text that only one has."""
    if not is_dialogue(given):
        text, asked = to_text(given).strip(), [to_text([t]).strip() for t in head if t["role"] == "user"]
        if asked and (text in (asked[0], asked[-1], to_text(head).strip()) or _same(_hh(text), head)):
            return len(head), head
        raise ValueError(_STRANGE)
    wanted = turns_of(given)
    ours, theirs = ([t for t in turns if t["role"] != "system"] for turns in (wanted, head))
    systems = [[t for t in turns if t["role"] == "system"] for turns in (wanted, head)]
    if not _same(ours, theirs[: len(ours)]) or (all(systems) and not _same(*systems)):
        raise ValueError(_STRANGE)
    beyond = theirs[len(ours) :]
    n = len(head) if _asks(beyond) else len(head) - len(beyond)
    return n, [*(systems[0] if not systems[1] else []), *head[:n]]


def _cut_text(given: object, answers: list[str]) -> tuple[object, list[str]]:
    """Prompt and completions of HH texts; texts that do not agree stay as they are."""
    parts = [_hh_parts(a) for a in answers]
    head = parts[0][0]
    if not head or any(turns != head for turns, _ in parts):
        return given, answers
    if given is not None:
        try:
            _, head = _matched(given, head)
        except ValueError:
            return given, answers
    return head, [text for _, text in parts]


def _hh_parts(text: str) -> tuple[list[Turn], str]:
    """Turns before the last "Assistant:" and what follows it; no turns where the text is no such dialogue."""
    head, _, last = text.rpartition("\n\nAssistant:")
    return ([], text) if _HH_TURN.search(last) else (_hh(head), last.removeprefix(" "))


def _hh(text: str) -> list[Turn]:
    """Messages of HH text that begins and ends with a human's turn; a last, open "Assistant:" does not count."""
    text = text.rstrip().removesuffix("Assistant:")
    first, *parts = _HH_TURN.split(text if text.startswith("\n\n") else "\n\n" + text.lstrip())
    roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
    if first.strip() or not roles or roles[0] != "user" or roles[-1] != "user":
        return []
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, parts[1::2], strict=True)]


def is_dialogue(value: object) -> TypeGuard[Message | Sequence[Message]]:
    """Whether a value is a message or a list of messages."""
    turns = [value] if isinstance(value, Mapping) else value
    return isinstance(turns, list | tuple | np.ndarray) and len(turns) > 0 and all(
        isinstance(t, Mapping) and isinstance(t.get("role"), str) for t in turns
    )  # fmt: skip


def turns_of(value: Prompt) -> list[Turn]:
    """Messages without the empty fields that columnar files add to each; a text is the assistant's."""
    if isinstance(value, str):
        value = [{"role": "assistant", "content": value}]
    turns = [value] if isinstance(value, Mapping) else list(value)
    return [{k: v for k, v in t.items() if v is not None or k == "content"} for t in turns]


def _asks(turns: Sequence[Turn]) -> bool:
    return any(t["role"] not in _ANSWERING for t in turns)


def _single(turns: Sequence[Turn], role: str) -> Prompt:
    """The text of one message of a role, as a judge prompt would show it; otherwise the messages."""
    if len(turns) == 1 and turns[0]["role"] == role and not turns[0].get("tool_calls") and not has_thought(turns[0]):
        return to_text(turns)
    return [dict(t) for t in turns]


def _key(turn: Turn) -> tuple[str, str]:
    return str(turn["role"]), to_text([turn]).strip()


def _same(a: Sequence[Turn], b: Sequence[Turn]) -> bool:
    return [_key(t) for t in a] == [_key(t) for t in b]
