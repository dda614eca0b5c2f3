"""The built-in set: 96 open-ended prompts with four graded answers each (Apache-2.0, part of this package)."""

from __future__ import annotations

from collections.abc import Iterator

from latent_rewards.data import open_ended
from latent_rewards.files.types import NumberedRow, Row

KIND = "list"


def rows() -> Iterator[NumberedRow]:
    """Rows of the set."""
    yield from (("open_ended.jsonl", i, row) for i, row in enumerate(open_ended(), 1))


def convert(row: Row) -> Row:
    """The category is the subset; grades run from 1 to 4."""
    return {**row, "subset": row["category"], "scale": (1, 4)}
