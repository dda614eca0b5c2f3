"""What a benchmark is made of: items with responses and gold, and the rows that could not be used."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from latent_rewards.files.keys import prompt_key
from latent_rewards.files.types import NumberedRow, Prompt, Row, number
from latent_rewards.judge.layouts import ACCEPTED, BadRow, Kind, judged, kind_of
from latent_rewards.judge.prompts import to_text


class LeftOut(Exception):
    """A sound row that a benchmark does not use, e.g. a tie; counted by its reason."""


@dataclass(frozen=True)
class Item:
    """One row: a prompt (text or messages) with its responses and their gold, higher is better.

    A pair has the chosen response first and gold (1, 0); a rating has one response.
    """

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    gold: tuple[float, ...]
    subset: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Items of one prompt are not independent: the bootstrap draws them together."""
        return prompt_key(self.prompt)


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
        kept = sorted(self._by_hash()[:limit])
        return replace(self, items=tuple(self.items[i] for i in kept), limited=len(self.items) - limit)

    def per_prompt(self, most: int | None) -> Benchmark:
        """At most so many items of each prompt, chosen by a hash of their ids; the others count as left out."""
        if most is None:
            return self
        seen: Counter[str] = Counter()
        kept = []
        for i in self._by_hash():
            seen[self.items[i].group] += 1
            if seen[self.items[i].group] <= most:
                kept.append(i)
        reason = {f"more than {most} of a prompt": len(self.items) - len(kept)}
        return replace(self, items=tuple(self.items[i] for i in sorted(kept)), left_out={**self.left_out, **reason})

    def _by_hash(self) -> list[int]:
        return sorted(range(len(self.items)), key=lambda i: hashlib.sha256(self.items[i].id.encode()).digest())

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
    rows: Iterable[NumberedRow],
    *,
    kind: Kind | None = None,
    convert: Callable[[Row], Row] | None = None,
    source: str = "",
) -> Benchmark:
    """A benchmark of raw rows.

    Args:
        name: for reports.
        rows: (file, row number from 1, row); a row that is an Exception is listed as bad.
        kind: what the rows must be; None takes what most of them are by their keys, and lists of two responses for
            pairs.
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
    asked, rows = kind, list(rows)
    if kind is None and convert is None:
        kind = _commonest_kind(raw for _, _, raw in rows)
    for file, line, raw in rows:
        try:
            if isinstance(raw, Exception):
                raise ValueError(str(raw))
            row = convert(raw) if convert else raw
            found = kind_of(row)
            kind = kind or found
            if kind is None and convert is None:
                raise ValueError(f"columns {sorted(row)} are no layout that is known")
            item = _item(row, kind or "pair", f"{name}-{line}")
            ranges += [_range(row["scale"])] if row.get("scale") is not None else []
            items.append(item)
        except LeftOut as why:
            left_out[str(why)] += 1
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as err:
            reason = f"missing field {err}" if isinstance(err, KeyError) else str(err)
            bad.append(BadRow(file, line, reason))
    if not items or kind is None:
        first = "; ".join(f"{b.file} row {b.row}: {b.reason}" for b in bad[:3])
        known = f"; {ACCEPTED}" if convert is None else ""
        raise ValueError(f"benchmark {name!r} has no usable row ({len(bad)} bad{': ' + first if first else ''}){known}")
    if kind == "list" and asked is None and all(len(i.responses) == 2 for i in items):
        pairs = [_as_pair(i) for i in items if i.gold[0] != i.gold[1]]
        if pairs:
            left_out["both responses rated alike"] += len(items) - len(pairs)
            return Benchmark(name, "pair", tuple(pairs), tuple(bad), dict(+left_out), 0, source)
    scale = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None
    return Benchmark(name, kind, tuple(items), tuple(bad), dict(left_out), 0, source, scale)


def _commonest_kind(rows: Iterable[object]) -> Kind | None:
    kinds: Counter[Kind] = Counter()
    for row in rows:
        with contextlib.suppress(ValueError):
            if not isinstance(row, Exception) and (kind := kind_of(row)):
                kinds[kind] += 1
    return kinds.most_common(1)[0][0] if kinds else None


def _as_pair(item: Item) -> Item:
    """A list of two, the better response first."""
    best = item.responses if item.gold[0] > item.gold[1] else item.responses[::-1]
    return replace(item, responses=best, gold=(1.0, 0.0))


def _item(row: Row, kind: Kind, default_id: str) -> Item:
    found = judged(row, kind)
    responses = [to_text(r) for r in found.responses]
    if not all(r.strip() for r in responses):
        raise ValueError("empty response")
    used = {"id", "subset", *found.keys}
    columns = {k: v for k, v in row.items() if k not in used and isinstance(v, str)}
    if "rubric" in columns:
        columns.setdefault("criteria", columns["rubric"])
    return Item(
        str(row.get("id") or default_id), found.prompt, tuple(responses), tuple(found.gold),
        str(row.get("subset") or ""), columns,
    )  # fmt: skip


def _range(scale: Sequence[object]) -> tuple[float, float]:
    low, high = scale
    return number(low, "scale"), number(high, "scale")
