"""Benchmarks from files: JSON Lines (plain or gzip), Parquet or a saved data set, of pairs, ratings or lists.

pair: prompt, chosen, rejected. rating: prompt, response, score, scale [low, high]. list: prompt, responses, gold.
`prompt` is text or messages ending with a user turn; optional: id, subset, rubric, reference. Other layouts of the hub
are read as they are, see `latent_rewards.judge.layouts`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from latent_rewards.evaluation.benchmarks.rows import Benchmark, collect
from latent_rewards.files.sources import numbered_rows
from latent_rewards.files.types import Row

_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


def load(path: str | Path, name: str | None = None, *, gold: str | None = None) -> Benchmark:
    """A benchmark from one file.

    Args:
        path: the file.
        name: for reports; default the file's.
        gold: field of the rows that holds the rating, in place of "score"; "aspects.coherence" is a field of a field.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown ending, or no usable row.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no benchmark file {path}")
    if path.is_file() and not path.name.endswith(_ENDINGS):
        raise ValueError(f"{path}: a benchmark file ends in one of {', '.join(_ENDINGS)}")
    if gold is None:
        return collect(name or _stem(path), numbered_rows(path), source=str(path))
    rated = functools.partial(_rated, field=gold)
    return collect(name or _stem(path), numbered_rows(path), kind="rating", convert=rated, source=str(path))


def _rated(row: Row, field: str) -> Row:
    """The row with another field as its score."""
    value: object = row
    for key in field.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"no field {field!r}")
        value = value[key]
    return {**row, "score": value}


def find(name: str) -> Path | None:
    """File of a name like "pairwise/autoj", or "autoj" where that is unique, under $LATENT_REWARDS_DATA.

    Raises:
        ValueError: several files have the name.
    """
    root = os.environ.get("LATENT_REWARDS_DATA")
    if not root or not name:
        return None
    found = sorted(p for p in Path(root).glob("*/*") if _stem(p) == name or f"{p.parent.name}/{_stem(p)}" == name)
    if len(found) > 1:
        raise ValueError(f"{name!r} is ambiguous: {[f'{p.parent.name}/{_stem(p)}' for p in found]}")
    return found[0] if found else None


def names() -> list[str]:
    """Every benchmark under $LATENT_REWARDS_DATA, as folder/name."""
    root = os.environ.get("LATENT_REWARDS_DATA")
    paths = sorted(p for p in Path(root).glob("*/*") if p.name.endswith(_ENDINGS)) if root else []
    return [f"{p.parent.name}/{_stem(p)}" for p in paths if p.parent.name != "attacks"]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet")
