"""What a benchmark is made of: items with responses and gold, and the rows that could not be used."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from latent_rewards.prompts import to_text

Kind = Literal["pair", "rating", "list"]
KEYS: dict[Kind, tuple[str, ...]] = {
    "pair": ("prompt", "chosen", "rejected"),
    "list": ("prompt", "responses", "gold"),
    "rating": ("prompt", "response", "score"),
}


class LeftOut(Exception):
    """A sound row that a benchmark does not use, e.g. a tie; counted by its reason."""


@dataclass(frozen=True)
class Item:
    """One row: a prompt (text or messages) with its responses and their gold, higher is better.

    A pair has the chosen response first and gold (1, 0); a rating has one response.
    """

    id: str
    prompt: Any
    responses: tuple[str, ...]
    gold: tuple[float, ...]
    subset: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Items of one prompt are not independent: the bootstrap draws them together."""
        return hashlib.sha256(json.dumps(self.prompt, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: file, row counted from 1, and why."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """Items of one kind; `left_out` counts sound rows not used by reason, `limited` those over a limit."""

    name: str
    kind: Kind
    items: tuple[Item, ...]
    bad: tuple[BadRow, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    limited: int = 0
    source: str = ""
    gold_range: tuple[float, float] | None = None

    def sample(self, limit: int | None) -> Benchmark:
        """At most `limit` items, chosen by a hash of their ids (not the first ones), in the order of the file."""
        if limit is None or len(self.items) <= limit:
            return self
        order = sorted(range(len(self.items)), key=lambda i: hashlib.sha256(self.items[i].id.encode()).digest())
        kept = sorted(order[:limit])
        return replace(self, items=tuple(self.items[i] for i in kept), limited=len(self.items) - limit)

    def shorter_than(self, characters: int | None) -> Benchmark:
        """Items whose prompt and longest response hold at most so many characters; the others count as left out.

        Raises:
            ValueError: no item is that short.
        """
        if characters is None:
            return self
        kept = [i for i in self.items if len(to_text(i.prompt)) + max(map(len, i.responses)) <= characters]
        if not kept:
            raise ValueError(f"benchmark {self.name!r} has no item of at most {characters} characters")
        reason = {f"longer than {characters} characters": len(self.items) - len(kept)}
        return replace(self, items=tuple(kept), left_out={**self.left_out, **reason})


def collect(
    name: str,
    rows: Iterable[tuple[str, int, Any]],
    *,
    kind: Kind | None = None,
    convert: Callable[[Any], Mapping[str, Any]] | None = None,
    source: str = "",
) -> Benchmark:
    """A benchmark of raw rows.

    Args:
        name: for reports.
        rows: (file, row number from 1, row); a row that is an Exception is listed as bad.
        kind: what the rows must be; None takes it from the first row that has all keys of a kind.
        convert: maps a raw row to the normalised fields; may raise `LeftOut`, or ValueError, KeyError or TypeError for
            a row that is bad.
        source: where the rows come from, with the revision.

    Raises:
        ValueError: no row can be used; lists the first bad ones.
    """
    items: list[Item] = []
    bad: list[BadRow] = []
    left_out: Counter[str] = Counter()
    ranges: list[tuple[float, float]] = []
    for file, number, raw in rows:
        try:
            if isinstance(raw, Exception):
                raise ValueError(str(raw))
            row = convert(raw) if convert else raw
            kind = kind or _kind(row)
            item = _item(row, kind or "pair", f"{name}-{number}")
            ranges += [_range(row["scale"])] if row.get("scale") is not None else []
            items.append(item)
        except LeftOut as why:
            left_out[str(why)] += 1
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as err:
            reason = f"missing field {err}" if isinstance(err, KeyError) else str(err)
            bad.append(BadRow(file, number, reason))
    if not items or kind is None:
        first = "; ".join(f"{b.file} row {b.row}: {b.reason}" for b in bad[:3])
        raise ValueError(f"benchmark {name!r} has no usable row ({len(bad)} bad{': ' + first if first else ''})")
    scale = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None
    return Benchmark(name, kind, tuple(items), tuple(bad), dict(left_out), 0, source, scale)


def _kind(row: Any) -> Kind | None:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    return next((k for k, keys in KEYS.items() if set(keys) <= set(row)), None)


def _item(row: Any, kind: Kind, default_id: str) -> Item:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    missing = [k for k in KEYS[kind] if row.get(k) is None]
    if missing:
        raise ValueError(f"missing field {', '.join(missing)}")
    if kind == "pair":
        responses, gold = [row["chosen"], row["rejected"]], [1.0, 0.0]
        if row["chosen"] == row["rejected"]:
            raise ValueError("chosen equals rejected")
    elif kind == "rating":
        responses, gold = [row["response"]], [_number(row["score"], "score")]
    else:
        responses, gold = list(row["responses"]), [_number(g, "gold") for g in row["gold"]]
        if len(responses) != len(gold):
            raise ValueError(f"{len(responses)} responses but {len(gold)} gold values")
        if len(responses) < 2:
            raise ValueError("a list needs two responses or more")
    for text in responses:
        if not isinstance(text, str) or not text.strip():
            raise ValueError("empty response" if isinstance(text, str) else f"response is {type(text).__name__}")
    used = {"id", "subset", *KEYS[kind]}
    columns = {k: v for k, v in row.items() if k not in used and isinstance(v, str)}
    if "rubric" in columns:
        columns.setdefault("criteria", columns["rubric"])
    return Item(
        str(row.get("id") or default_id), _prompt(row["prompt"]), tuple(responses), tuple(gold),
        str(row.get("subset") or ""), columns,
    )  # fmt: skip


def _prompt(prompt: Any) -> Any:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("empty prompt")
        return prompt
    messages = [dict(m) for m in prompt] if isinstance(prompt, list | tuple) else None
    if not messages or not all(isinstance(m.get("content"), str) and m.get("role") for m in messages):
        raise ValueError("prompt must be text or messages with 'role' and 'content'")
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError("the prompt's last message must be a user's, with text")
    return messages


def _range(scale: Any) -> tuple[float, float]:
    low, high = scale
    return float(low), float(high)


def _number(value: Any, what: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{what} is {number}")
    return number
