"""Rows of pairs, lists and ratings in one form, however their file lays out prompt and completions.

A prompt (text or messages) stands beside completions (text or messages), or the completions are whole dialogues, with
the prompt beside them or without; see `latent_rewards.judge.transcripts`. Every command that reads rows reads them
through here, and says `ACCEPTED` where it cannot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from latent_rewards.files.types import number
from latent_rewards.judge.messages import Prompt, Row, to_text
from latent_rewards.judge.transcripts import SIDES, is_dialogue, split, turns_of

Kind = Literal["pair", "list", "rating"]

ACCEPTED = """rows may hold
  prompt, chosen, rejected: texts or message lists
  chosen, rejected that hold the prompt: message lists, or text with "Human:" and "Assistant:" turns as in hh-rlhf
  prompt, responses (or completions), gold (or scores): lists; or instruction, completions as in UltraFeedback, which \
are objects with response and ratings
  prompt, response (or completion), score (or rating)
where prompt may also be called instruction or question"""

_PROMPTS = ("prompt", "instruction", "question")

# Keys of each kind; the first that a row has counts.
_RESPONSES: dict[Kind, tuple[str, ...]] = {
    "list": ("responses", "completions", "answers"), "rating": ("response", "completion", "answer"),
}  # fmt: skip
_GOLD: dict[Kind, tuple[str, ...]] = {
    "list": ("gold", "scores", "ratings", "score", "rating"), "rating": ("score", "rating", "gold"),
}  # fmt: skip
_KEYS = {"prompt": _PROMPTS, "completion": _RESPONSES["rating"], "completions": _RESPONSES["list"]}
# What some sets of pairs say of each side; the two need not be far apart, nor in order.
_RATED = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)  # fmt: skip
_ASKING = {"user", "tool", "function"}  # roles that an answer can follow


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: file, row counted from 1, and why."""

    file: str
    row: int
    reason: str


class Judged(NamedTuple):
    """A row in our form.

    Attributes:
        kind: a pair has the chosen completion first and gold (1, 0), a rating has one completion.
        prompt: text, or messages where it is more than one user's turn.
        responses: text, or messages where it is more than one assistant's turn.
        gold: number of each response, higher is better.
        keys: keys of the row that were used.
    """

    kind: Kind
    prompt: Prompt
    responses: list[Prompt]
    gold: list[float]
    keys: tuple[str, ...]


def kind_of(row: object) -> Kind | None:
    """What a row holds by its keys; None where it is none of the three.

    Raises:
        ValueError: no mapping.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    if set(SIDES) <= set(row):
        return "pair"
    kinds: tuple[Kind, ...] = ("list", "rating")
    if strange := _not_answers(row):
        raise ValueError(strange)
    named = next((k for k in kinds if _first(row, _RESPONSES[k]) and _first(row, _GOLD[k])), None)
    if named is None and any(map(_is_answer, _answers(row))):
        return "list"
    return named


def key_of(what: str, keys: Collection[str], asked: str | None = None) -> str:
    """The key under which a row, or a file with these columns, has its prompt, its completion or its completions.

    Args:
        what: "prompt", "completion" or "completions".
        keys: those there are.
        asked: what the user named; another is looked for only where that is `what`, the default.
    """
    named = asked or what
    return named if named in keys or named != what else next((k for k in _KEYS[what] if k in keys), named)


def answers_of(value: object) -> object:
    """A list of completions, those that are objects of UltraFeedback as their texts; what is none stays as it is."""
    entries = _entries(value)
    return [a["response"] if _is_answer(a) else a for a in entries] if any(map(_is_answer, entries)) else value


def judged(row: object, kind: Kind) -> Judged:
    """A row of a file in our form.

    Args:
        row: mapping of column to value.
        kind: what it must be.

    Raises:
        ValueError: something is missing, does not fit together or is no text or finite number; says what.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    if kind == "list":
        row = _rated(row)
    asked = key_of("prompt", row)
    if kind == "pair":
        keys: tuple[str, ...] = (asked, *SIDES)
    else:
        of, gold = _RESPONSES[kind], _GOLD[kind]
        keys = (asked, _first(row, of) or of[0], _first(row, gold) or gold[0])
    missing = [k for k in keys[1:] if row.get(k) is None]
    if missing:
        raise ValueError(f"missing field {', '.join(['prompt'] * (row.get(asked) is None) + missing)}")
    if kind == "pair":
        given, numbers = [row[k] for k in SIDES], [1.0, 0.0]
    elif kind == "rating":
        given, numbers = [row[keys[1]]], [number(row[keys[2]], keys[2])]
    else:
        given, numbers = _sequence(row, keys[1]), [number(g, keys[2]) for g in _sequence(row, keys[2])]
        if len(given) != len(numbers):
            raise ValueError(f"{len(given)} responses but {len(numbers)} {keys[2]} values")
        if len(given) < 2:
            raise ValueError("a list needs two responses or more")
    names = SIDES if kind == "pair" else [keys[1]] * len(given)
    for name, value in zip((asked, *names), (row.get(asked), *given), strict=True):
        _check_turns(name, value)
    prompt, responses = split(row.get(asked), given)
    checked, texts = _checked_prompt(prompt), [_checked_response(n, r) for n, r in zip(names, responses, strict=True)]
    if kind == "pair":
        _check_order(row)
        if texts[0] == texts[1]:
            raise ValueError("chosen equals rejected")
    return Judged(kind, checked, texts, numbers, keys)


def _check_order(row: Row) -> None:
    """Of a pair whose sides were rated, the chosen one must be rated higher: a tie prefers neither."""
    for better, worse in _RATED:
        try:
            high, low = number(row.get(better), better), number(row.get(worse), worse)
        except ValueError:
            continue  # not rated
        if high <= low:
            how = "equals" if high == low else "is below"
            raise ValueError(f"{better} {how} {worse} ({high:g}, {low:g}), so the chosen side is not the better one")


def _entries(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else []


def _answers(row: Row) -> list[Any]:
    return _entries(row.get(_first(row, _RESPONSES["list"]) or ""))


def _is_answer(value: object) -> bool:
    """Whether a completion is an object that holds its text and its ratings, as in UltraFeedback."""
    return isinstance(value, Mapping) and "response" in value and "role" not in value


def _rated(row: Row) -> Row:
    """A list whose completions are objects as texts, with their ratings as gold unless the row has its own.

    Raises:
        ValueError: a completion without a rating.
    """
    answers = _answers(row)
    if not any(map(_is_answer, answers)):
        return row
    key = str(_first(row, _RESPONSES["list"]))
    own = {} if _first(row, _GOLD["list"]) else {"gold": [_rating(a, i) for i, a in enumerate(answers)]}
    return {**row, key: answers_of(answers), **own}


def _rating(answer: Any, place: int) -> float:
    """Rating of an UltraFeedback completion: `fine-grained_score`, else the mean of its aspects, else the overall one.

    The overall score comes last: in the published data it is 10 for some answers that were rated 1.

    Source: Cui et al. 2023 (arXiv 2310.01377) for the fields; the card of argilla/ultrafeedback-binarized-preferences
    for the fault.
    """
    answer = answer if isinstance(answer, Mapping) else {}
    aspects = answer.get("annotations")
    rated = (
        [a.get("Rating") for a in aspects.values() if isinstance(a, Mapping)] if isinstance(aspects, Mapping) else []
    )
    known = [number(r, "Rating") for r in rated if r not in (None, "N/A")]
    for value in (
        answer.get("fine-grained_score"),
        float(np.mean(known)) if known else None,
        answer.get("overall_score"),
    ):
        if value is not None:
            return number(value, "rating")
    raise ValueError(f"completion {place} has no rating (fine-grained_score, annotations or overall_score)")


def _not_answers(row: Row) -> str:
    """What is wrong with the completions of a row that has them without gold; nothing where they are objects."""
    key = _first(row, _RESPONSES["list"])
    if key is None or _first(row, _GOLD["list"]) or any(map(_is_answer, _answers(row))):
        return ""
    inner = sorted({type(a).__name__ for a in _entries(row[key])})
    what = type(row[key]).__name__ + (f" of {', '.join(inner)}" if inner else "")
    return (
        f"{key} is {what}, without gold beside it: it must be a list of objects with response and ratings, or of texts "
        "with gold (or scores)"
    )


def _check_turns(name: str, value: object) -> None:
    """Messages must have what a message has; said of the column that lacks it."""
    turns = [t for t in _entries(value) if isinstance(t, Mapping)]
    if any("role" not in t for t in turns):
        raise ValueError(f"{name}: messages need 'role' and 'content', there are {sorted(map(str, turns[0]))}")
    if any("content" not in t and not t.get("tool_calls") for t in turns):
        raise ValueError(f"{name}: a message has no 'content'")


def _checked_response(name: str, text: object) -> Prompt:
    if not isinstance(text, str | list):
        raise ValueError(f"{name} is {type(text).__name__}, not text or messages")
    to_text(text)
    return text


def _checked_prompt(prompt: object) -> Prompt:
    if prompt is None:
        raise ValueError("missing field prompt")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("empty prompt")
        return prompt
    last = turns_of(prompt)[-1] if is_dialogue(prompt) else {"role": ""}
    if not is_dialogue(prompt) or last["role"] not in _ASKING or not to_text([last]).strip():
        raise ValueError(
            "prompt must be text or messages with 'role' and 'content', the last message a user's, with text"
        )
    to_text(prompt)
    return prompt


def _first(row: Row, keys: Sequence[str]) -> str | None:
    return next((k for k in keys if k in row), None)


def _sequence(row: Row, key: str) -> list[object]:
    value = row[key]
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(f"{key} is {type(value).__name__}, not a list")
    return list(value)
