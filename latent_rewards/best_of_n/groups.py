"""Prompts with their completions out of rows, and the plan of shards, which no restart and no machine changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, cast

from latent_rewards.best_of_n.config import BestOfNConfig
from latent_rewards.files.keys import prompt_key
from latent_rewards.files.sources import Chunk, InputError, Source, open_source
from latent_rewards.files.types import Prompt, Row
from latent_rewards.judge.layouts import ACCEPTED, answers_of, key_of
from latent_rewards.judge.prompts import to_text
from latent_rewards.judge.transcripts import PEEK, SIDES, hold_prompts, holds_prompt, split, split_column

Completion = Prompt | None
Layout = Literal["prompts", "lists", "pairs", "sides"]
_CHUNK = 1024


@dataclass
class Group:
    """One prompt and its completions.

    Attributes:
        number: row number of its first row.
        rows: its rows of the input: one, or in the layout "pairs" one per completion. In the layout "sides" a row's
            completions are its chosen and its rejected one.
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


def settled(config: BestOfNConfig, source: Source) -> BestOfNConfig:
    """The run with the columns that the input has, where the user named none; see `latent_rewards.judge.layouts`."""
    config = replace(config, prompt_column=key_of("prompt", source.columns, config.prompt_column))
    if config.generator is not None:
        return config
    several = key_of("completions", source.columns, config.completions_column)
    if several in source.columns:
        return replace(config, completions_column=several)
    return replace(config, completion_column=key_of("completion", source.columns, config.completion_column))


def layout_of(config: BestOfNConfig, source: Source) -> Layout:
    """How the rows hold completions.

    Raises:
        InputError: no prompt column, completions missing without a generator, or given beside one.
    """
    if not source.total:
        raise InputError("the input has no rows")
    columns = set(source.columns)
    given = [c for c in (config.completions_column, config.completion_column) if c in columns]
    sides = not given and config.generator is None and set(SIDES) <= columns
    given = [*given, *(SIDES if sides else ())]
    if config.prompt_column not in columns and not (given and hold_prompts(next(source.chunks(PEEK)).rows, given[0])):
        raise InputError(
            f"no column {config.prompt_column!r}; there are {source.columns}; name it with --prompt-column; {ACCEPTED}"
        )
    if config.generator is not None:
        if given:
            raise InputError(f"the input has completions (column {given[0]!r}); leave out the generator, or the column")
        return "prompts"
    if not given:
        raise InputError(
            f"no column {config.completion_column!r} or {config.completions_column!r}; there are {source.columns}; "
            f"name it with --completion-column or --completions-column, or name a generator; {ACCEPTED}"
        )
    if sides:
        return "sides"
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
        if layout in ("lists", "sides") and fault is None:
            prompt, completions = _split(prompt, _completions(row, layout, config))
        if prompt is None:
            raise ValueError(f"column {config.prompt_column!r} is missing or null")
        if layout == "prompts":
            to_text(prompt)
    except ValueError as err:
        fault = fault or str(err)
    return Group(number, [row], prompt, completions, fault)


def _completions(row: Row, layout: Layout, config: BestOfNConfig) -> list[Completion]:
    if layout == "sides":
        if missing := [side for side in SIDES if row.get(side) is None]:
            raise ValueError(f"column {missing[0]!r} is missing or null")
        return [row[side] for side in SIDES]
    found = answers_of(row.get(config.completions_column))
    if not isinstance(found, list) or not found:
        raise ValueError(f"column {config.completions_column!r} holds no list of completions")
    return found


def _split(prompt: Prompt | None, completions: list[Completion]) -> tuple[Prompt | None, list[Completion]]:
    """Prompt and completions of a list; where none holds the prompt, as they are."""
    known = [c for c in completions if c is not None]
    if not any(map(holds_prompt, known)):
        return prompt, completions
    found, texts = split(prompt, known)  # of text and messages it makes text and messages
    rest = iter(texts)
    return cast("Prompt | None", found), [None if c is None else cast("Completion", next(rest)) for c in completions]


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
