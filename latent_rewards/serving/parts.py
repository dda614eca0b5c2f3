"""Rows in several requests, where one may not hold them all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from latent_rewards.files.keys import prompt_key
from latent_rewards.serving.transport import JudgeServerError, encode

_PART_BYTES = 8 << 20


def parts(rows: Sequence[Mapping[str, Any]], max_rows: int) -> list[list[int]]:
    """Which rows go into which request, in order: each of at most `max_rows` rows and some megabytes."""
    return _packed(rows, [[i] for i in range(len(rows))], max_rows)


def parts_by_prompt(rows: Sequence[Mapping[str, Any]], max_rows: int) -> list[list[int]]:
    """As `parts`, with all rows of one prompt in one request, wherever they stand: some rewards compare them.

    Raises:
        JudgeServerError: more rows have one prompt than a request may hold.
    """
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(prompt_key(row.get("prompt")), []).append(i)
    for group in groups.values():
        if len(group) > max_rows:
            raise JudgeServerError(
                f"row {group[0]}: {len(group)} rows have its prompt; they stay together, for some rewards compare "
                f"them, and one request to this server may hold {max_rows} (its --max-rows)",
                status=413, row=group[0],
            )  # fmt: skip
    return [sorted(part) for part in _packed(rows, list(groups.values()), max_rows)]


def _packed(rows: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[int]], max_rows: int) -> list[list[int]]:
    found, size = [list[int]()], 0
    for group in groups:
        length = sum(len(encode(dict(rows[i]))) for i in group)
        if found[-1] and (len(found[-1]) + len(group) > max_rows or size + length > _PART_BYTES):
            found.append([])
            size = 0
        found[-1] += group
        size += length
    return found


@contextlib.contextmanager
def of_whole(part: Sequence[int]) -> Iterator[None]:
    """Errors that name a row of a part of the rows name the row of the whole."""
    try:
        yield
    except JudgeServerError as err:
        if err.row is None or part[err.row] == err.row:
            raise
        row = part[err.row]
        said = str(err).replace(f"row {err.row}", f"row {row}", 1)
        raise JudgeServerError(said, status=err.status, row=row, kind=err.kind) from err
