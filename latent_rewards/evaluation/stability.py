"""How much a latent score moves when nothing that matters does: repeat, batch size, order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latent_rewards.evaluation import tables
from latent_rewards.evaluation.benchmarks.rows import Benchmark
from latent_rewards.evaluation.readings import Readings
from latent_rewards.files.types import Row
from latent_rewards.rewards.latent import LatentReward


def drift(
    reward: LatentReward, readings: Readings, sets: Sequence[Benchmark], count: int = 8
) -> dict[str, float | None]:
    """Largest change of the score over a few texts of every benchmark, in score units.

    Args:
        reward: the scorer; it is asked directly, past the cache.
        readings: where the result is remembered.
        sets: where the texts come from, `count` in all.
        count: number of texts.

    Returns:
        `batch_of_one`, `reversed_order` and `repeat`, each against the same texts read in one batch; `spread` is their
        standard deviation, for comparison.
    """
    items = [b.items[0] for b in sets] + [i for b in sets for i in b.items[1:]]
    rows = tables.texts(items[:count], reward)[:count]
    return readings.remember(reward, rows, "drift", lambda: _drift(reward, rows))


def _drift(reward: LatentReward, rows: Sequence[Row]) -> dict[str, float | None]:
    first = _scores(reward, rows)
    single = np.concatenate([_scores(reward, [row]) for row in rows])
    backwards = _scores(reward, rows[::-1])[::-1]
    again = _scores(reward, rows)
    changes = {"batch_of_one": single, "reversed_order": backwards, "repeat": again}
    out: dict[str, float | None] = {k: _largest(v - first) for k, v in changes.items()}
    known = first[~np.isnan(first)]
    return {**out, "spread": float(known.std()) if len(known) else None}


def _scores(reward: LatentReward, rows: Sequence[Row]) -> np.ndarray:
    return reward.rewards_of(rows, reward.judge.read(reward.requests(rows)))[0]


def _largest(change: np.ndarray) -> float | None:
    known = np.abs(change[~np.isnan(change)])
    return float(known.max()) if len(known) else None
