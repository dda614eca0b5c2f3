"""Prompts with their completions out of rows, and the plan of shards, which no restart and no machine changes."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from latent_rewards.best_of_n.config import BestOfNConfig
from latent_rewards.files.keys import prompt_key
from latent_rewards.files.sources import Chunk, InputError, Source, open_source
from latent_rewards.files.types import JsonObject, Prompt, Row
from latent_rewards.judge.prompts import to_text
from latent_rewards.judge.transcripts import PEEK, hold_prompts, holds_prompt, split, split_column

Completion = Prompt | None
Layout = Literal["prompts", "lists", "pairs"]
_CHUNK = 1024


@dataclass
class Group:
    """One prompt and its completions.

    Attributes:
        number: row number of its first row.
        rows: its rows of the input: one, or in the layout "pairs" one per completion.
        prompt: text or messages.
        completions: texts or messages; None in the layout "prompts", and where there are none.
        fault: why it cannot be scored, if so.
    """

    number: int
    rows: list[Row]
    prompt: Prompt | None
    completions: list[Completion] | None
    fault: str | None = None

    @property
    def size(self) -> int:
        """Completions, at least 1."""
        return max(1, len(self.completions or ()))


class Record(TypedDict):
    """A scored group as its shard holds it; scores by reward, one a completion, and why one is missing."""

    row: int
    rows: list[Row]
    prompt: Prompt | None
    completions: list[Completion] | None
    scores: dict[str, list[float | None]]
    reasons: list[str | None]


@dataclass(frozen=True)
class Plan:
    """Which rows there are and how they are cut into shards.

    Attributes:
        layout: how rows hold completions.
        fingerprint: of the content of all rows.
        rows: number of rows.
        prompts: number of prompts.
        shards: (first row, rows, completions) of each shard.
    """

    layout: Layout
    fingerprint: str
    rows: int
    prompts: int
    shards: list[tuple[int, int, int]] = field(repr=False)

    def facts(self) -> JsonObject:
        """For the manifest."""
        return {"layout": self.layout, "fingerprint": self.fingerprint, "rows": self.rows, "prompts": self.prompts}


def layout_of(config: BestOfNConfig, source: Source) -> Layout:
    """How the rows hold completions.

    Raises:
        InputError: no prompt column, completions missing without a generator, or given beside one.
    """
    if not source.total:
        raise InputError("the input has no rows")
    columns = set(source.columns)
    given = [c for c in (config.completions_column, config.completion_column) if c in columns]
    if config.prompt_column not in columns and not (given and hold_prompts(next(source.chunks(PEEK)).rows, given[0])):
        raise InputError(
            f"no column {config.prompt_column!r}; there are {source.columns}; name it with --prompt-column"
        )
    if config.generator is not None:
        if given:
            raise InputError(f"the input has completions (column {given[0]!r}); leave out the generator, or the column")
        return "prompts"
    if not given:
        raise InputError(
            f"no column {config.completion_column!r} or {config.completions_column!r}; there are {source.columns}; "
            "name it with --completion-column or --completions-column, or name a generator"
        )
    return "lists" if given[0] == config.completions_column else "pairs"


def open_input(config: BestOfNConfig) -> Source:
    """The input, cut to `limit` rows.

    Raises:
        InputError: see `open_source`; or a column that the run would write.
    """
    source = open_source(config.input, config.split)
    taken = sorted({*config.reward_specs(), config.score_column, "reason"} & set(source.columns))
    if taken:
        raise InputError(f"the input already has the columns {taken}, which the run writes; rename them")
    if config.limit is None:
        return source
    total = min(config.limit, source.total)

    def chunks(size: int) -> Iterator[Chunk]:
        left = total
        for chunk in source.chunks(size):
            yield chunk.first(left)
            left -= len(chunk.rows[:left])
            if left <= 0:
                return

    return Source(total, source.columns, chunks, source.schema, source.features)


def groups(source: Source, layout: Layout, config: BestOfNConfig, skip: int = 0) -> Iterator[Group]:
    """All groups from row `skip` on, which must be the first of its group; rows before it are passed over."""
    rows = _numbered_rows(source, skip)
    if layout != "pairs":
        yield from (_single(n, row, fault, layout, config) for n, row, fault in rows)
        return
    alone = (_alone(n, row, fault, config) for n, row, fault in rows)
    for _, members in itertools.groupby(alone, key=_group_key):
        some = list(members)
        first, completions = some[0], [c for g in some for c in g.completions or [None]]
        yield Group(first.number, [g.rows[0] for g in some], first.prompt, completions, first.fault)


def _alone(number: int, row: Row, fault: str | None, config: BestOfNConfig) -> Group:
    """A row with one completion as a group of its own."""
    completion, prompt = row.get(config.completion_column), row.get(config.prompt_column)
    if fault is None and holds_prompt(completion):
        try:
            prompt, completion = split_column(row, config.prompt_column, config.completion_column)
        except ValueError as err:
            fault = str(err)
    if fault is None and prompt is None:
        fault = f"column {config.prompt_column!r} is missing or null"
    return Group(number, [row], prompt, [completion], fault)


def _numbered_rows(source: Source, skip: int) -> Iterator[tuple[int, Row, str | None]]:
    number = 0
    for chunk in source.chunks(_CHUNK):
        if number + len(chunk.rows) > skip:
            for i in range(max(0, skip - number), len(chunk.rows)):
                yield number + i, chunk.rows[i], chunk.faults[i]
        number += len(chunk.rows)


def _group_key(group: Group) -> int | str:
    return group.number if group.fault else prompt_key(group.prompt)


def _single(number: int, row: Row, fault: str | None, layout: Layout, config: BestOfNConfig) -> Group:
    prompt, completions = row.get(config.prompt_column), None
    try:
        if layout == "lists" and fault is None:
            completions = row.get(config.completions_column)
            if not isinstance(completions, list) or not completions:
                completions = None
                raise ValueError(f"column {config.completions_column!r} holds no list of completions")
            prompt, completions = _split(prompt, completions)
        if prompt is None:
            raise ValueError(f"column {config.prompt_column!r} is missing or null")
        if layout == "prompts":
            to_text(prompt)
    except ValueError as err:
        fault = fault or str(err)
    return Group(number, [row], prompt, completions, fault)


def _split(prompt: Prompt | None, completions: list[Completion]) -> tuple[Prompt | None, list[Completion]]:
    """Prompt and completions of a list; where none holds the prompt, as they are."""
    known = [c for c in completions if c is not None]
    if not any(map(holds_prompt, known)):
        return prompt, completions
    prompt, texts = split(prompt, known)
    rest = iter(texts)
    return prompt, [None if c is None else next(rest) for c in completions]


def batches(some: Iterator[Group], batch_size: int, per_prompt: int = 1) -> Iterator[list[Group]]:
    """Whole groups, as many as stay within `batch_size` completions; at least one."""
    batch: list[Group] = []
    size = 0
    for group in some:
        own = group.size if group.completions is not None else per_prompt
        if batch and size + own > batch_size:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += own
    if batch:
        yield batch


def make_plan(source: Source, layout: Layout, config: BestOfNConfig, per_prompt: int = 1) -> Plan:
    """Read the input once: fingerprint, unique ids, shards of whole batches of whole prompts.

    Raises:
        InputError: two rows have one id; names both.
    """
    digest = hashlib.sha256()
    shards: list[tuple[int, int, int]] = []
    first, rows, size, n_rows, prompts = 0, 0, 0, 0, 0
    with _Ids(config.id_column) as ids:
        for batch in batches(_noted(groups(source, layout, config), digest.update, ids), config.batch_size, per_prompt):
            own_rows = sum(len(g.rows) for g in batch)
            own_size = sum(g.size if g.completions is not None else per_prompt for g in batch)
            if rows and size + own_size > config.shard_size:
                shards.append((first, rows, size))
                first, rows, size = first + rows, 0, 0
            rows, size = rows + own_rows, size + own_size
            n_rows, prompts = n_rows + own_rows, prompts + len(batch)
    if rows:
        shards.append((first, rows, size))
    return Plan(layout, digest.hexdigest()[:32], n_rows, prompts, shards)


def _noted(some: Iterator[Group], update: Callable[[bytes], None], ids: _Ids) -> Iterator[Group]:
    for group in some:
        for i, row in enumerate(group.rows):
            update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
            ids.add(row, group.number + i)
        yield group
    ids.flush()


class _Ids:
    """Finds a repeated id without holding all of them: digests in a temporary database on disk."""

    def __init__(self, column: str | None) -> None:
        self.column = column
        self.pending: list[tuple[bytes, int]] = []

    def __enter__(self) -> _Ids:
        self.folder = tempfile.TemporaryDirectory(prefix="latent-rewards-ids-")
        self.db = sqlite3.connect(Path(self.folder.name) / "ids.sqlite")
        self.db.execute("PRAGMA journal_mode=OFF")
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("CREATE TABLE ids (id BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID")
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()
        self.folder.cleanup()

    def add(self, row: Row, number: int) -> None:
        value = row.get(self.column) if self.column else None
        if value is not None:
            text = json.dumps(value, sort_keys=True, default=str)
            self.pending.append((hashlib.sha256(text.encode()).digest()[:16], number))
            if len(self.pending) >= 4096:
                self.flush()

    def flush(self) -> None:
        for digest, number in self.pending:
            try:
                self.db.execute("INSERT INTO ids VALUES (?, ?)", (digest, number))
            except sqlite3.IntegrityError as err:
                ((other,),) = self.db.execute("SELECT row FROM ids WHERE id = ?", (digest,))
                raise InputError(
                    f"rows {other} and {number} have the same {self.column!r}; make ids unique, or name another column "
                    "with --id-column"
                ) from err
        self.pending.clear()


class ForwardReader:
    """Groups of one shard after the other; goes through the input once as long as shards are asked for in order."""

    def __init__(self, source: Source, plan: Plan, config: BestOfNConfig) -> None:
        self.source, self.plan, self.config = source, plan, config
        self.position = -1
        self.stream: Iterator[Group] = iter(())

    def shard(self, index: int) -> Iterator[Group]:
        """The groups of a shard.

        Raises:
            InputError: the input ends early: it changed under the run.
        """
        first, rows, _ = self.plan.shards[index]
        if self.position < 0 or self.position > first:
            self.stream, self.position = groups(self.source, self.plan.layout, self.config, skip=first), first
        found = 0
        while found < rows:
            group = next(self.stream, None)
            if group is None:
                raise InputError(f"{self.config.input} ended before row {first + rows}; it changed during the run")
            self.position = group.number + len(group.rows)
            if group.number >= first:
                found += len(group.rows)
                yield group
