"""The scores themselves, item by item, so that other figures need no judge."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from latent_rewards.evaluation import tables
from latent_rewards.evaluation.benchmarks.rows import Benchmark
from latent_rewards.evaluation.scorers import Column
from latent_rewards.files.outputs import to_json

FILE = "scores.jsonl.gz"


class ItemScores(TypedDict):
    """One item, without texts: gold, lengths and scores have a value a response; items of one group share a prompt."""

    benchmark: str
    kind: str
    id: str
    group: str
    subset: str
    gold: list[float]
    lengths: list[int]
    scores: dict[str, list[float | None]]


def write(scored: Sequence[tuple[Benchmark, Mapping[str, Column]]], path: Path) -> None:
    """A line an item, by benchmark; a score that is missing is null. Nine digits: a float32 comes back as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for benchmark, found in scored:
            at, columns = 0, {**found, "length": tables.length_column(benchmark)}
            for item in benchmark.items:
                span = slice(at, at := at + len(item.responses))
                line: ItemScores = {
                    "benchmark": benchmark.name, "kind": benchmark.kind, "id": item.id,
                    "group": item.group, "subset": item.subset, "gold": list(item.gold),
                    "lengths": [len(r) for r in item.responses],
                    "scores": {
                        name: [None if np.isnan(s) else float(f"{s:.9g}") for s in column.scores[span]]
                        for name, column in columns.items()
                    },
                }  # fmt: skip
                file.write(to_json(line) + "\n")


def read(path: str | Path) -> list[ItemScores]:
    """What `write` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
