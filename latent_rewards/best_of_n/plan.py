"""The plan of shards, which no restart and no machine changes, and their groups in order."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from latent_rewards.best_of_n.config import BestOfNConfig
from latent_rewards.best_of_n.groups import Group, Layout, batches, groups
from latent_rewards.files.sources import InputError, Source
from latent_rewards.files.types import JsonObject, Row


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
                    f"rows {other + 1} and {number + 1} have the same {self.column!r}; make ids unique, or name "
                    "another column with --id-column"
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
                raise InputError(
                    f"{self.config.input} ended before row {first + rows}, counted from 1; it changed during the run"
                )
            self.position = group.number + len(group.rows)
            if group.number >= first:
                found += len(group.rows)
                yield group
