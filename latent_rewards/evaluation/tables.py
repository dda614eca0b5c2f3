"""From items and columns of scores to the arrays that metrics take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latent_rewards.evaluation.benchmarks.rows import Benchmark, Item
from latent_rewards.evaluation.metrics import Table
from latent_rewards.evaluation.scorers import Column
from latent_rewards.judge.prompts import to_text
from latent_rewards.rewards.base import Reward


def texts(items: Sequence[Item], reward: Reward) -> list[dict[str, Any]]:
    """Every response of every item, in order, as a row for the reward's prompt."""
    flat = [(item, response) for item in items for response in item.responses]
    needed = [s for s in reward.inputs if s not in ("prompt", "completion")]
    columns = {slot: [item.columns.get(slot, "") for item, _ in flat] for slot in needed}
    if not flat:
        return []
    return reward.rows([item.prompt for item, _ in flat], [response for _, response in flat], columns)


def table(benchmark: Benchmark, column: Column) -> Table:
    """Scores, gold and lengths of a benchmark as padded arrays."""
    lengths = [[float(len(to_text(r))) for r in item.responses] for item in benchmark.items]
    return Table(
        _pad(benchmark, column.scores),
        _pad(benchmark, [g for item in benchmark.items for g in item.gold]),
        _pad(benchmark, [n for row in lengths for n in row]),
        column.range,
        benchmark.gold_range,
    )


def length_column(benchmark: Benchmark) -> Column:
    """The baseline that every scorer has to beat: longer is better."""
    return Column(np.array([float(len(r)) for item in benchmark.items for r in item.responses]))


def groups(benchmark: Benchmark) -> np.ndarray:
    """(N,) group of each item for the bootstrap."""
    return np.unique([item.group for item in benchmark.items], return_inverse=True)[1]


def _pad(benchmark: Benchmark, flat: Sequence[float] | np.ndarray) -> np.ndarray:
    sizes = np.array([len(item.responses) for item in benchmark.items])
    out = np.full((len(sizes), sizes.max()), np.nan)
    out[np.arange(sizes.max())[None, :] < sizes[:, None]] = flat
    return out
