"""Rows of one group kept together, for rewards that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from latent_rewards.files.sources import Chunk
from latent_rewards.files.types import Row


def whole_groups(chunks: Iterable[Chunk], key: Callable[[Row], object]) -> Iterator[Chunk]:
    """The same rows in chunks that end where a group does: a run of rows with equal keys.

    Args:
        chunks: in order.
        key: of a row; equal within a group.
    """
    held: Chunk | None = None
    for chunk in chunks:
        chunk = chunk if held is None else _joined(held, chunk)
        keys = [key(row) for row in chunk.rows]
        end = len(keys)
        while end and keys[end - 1] == keys[-1]:
            end -= 1
        if end:
            yield chunk.first(end)
        held = _rest(chunk, end)
    if held is not None and held.rows:
        yield held


def _rest(chunk: Chunk, start: int) -> Chunk:
    table = None if chunk.table is None else chunk.table.slice(start)
    return Chunk(chunk.rows[start:], chunk.faults[start:], table)


def _joined(first: Chunk, second: Chunk) -> Chunk:
    table = None
    if first.table is not None and second.table is not None:
        import pyarrow

        table = pyarrow.concat_tables([first.table, second.table]).combine_chunks()
    return Chunk([*first.rows, *second.rows], [*first.faults, *second.faults], table)
