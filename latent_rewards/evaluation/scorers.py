"""What is compared: rewards by name, and the columns of scores that each gives for the same texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from latent_rewards.evaluation.readings import Readings
from latent_rewards.judge.hf import Reading
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.latent import LatentReward
from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward, parse_rating
from latent_rewards.stats.distributions import row_means

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Column:
    """Scores of one scorer for T texts; `samples` (T, n) are the ratings behind them, for Likert judges."""

    scores: np.ndarray
    range: tuple[float, float] | None = None
    samples: np.ndarray | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


def columns(name: str, reward: Reward, readings: Readings, rows: Rows, *, greedy: bool) -> dict[str, Column]:
    """Every column of scores of one reward, from what has been read; NaN where there is nothing.

    A latent reward gives one column, and "/argmax" (the most probable label) beside a weighted rating. A Likert judge
    gives "/one" (its first sample), "/mean", "/mode" (ties: the lower) and, when asked for, "/greedy".
    """
    if isinstance(reward, LikertReward):
        return _likert_columns(name, reward, readings, rows, greedy)
    assert isinstance(reward, LatentReward)
    got = [readings.fetch(*request) for request in reward.requests(rows)] if rows else []
    if not got:
        return {name: Column(np.zeros(0))}
    reading = got[0]
    if isinstance(reward, GuidedLikertReward):
        return _guided_columns(name, reward, reading, rows)
    scores, _ = reward.rewards_of(rows, got)
    facts = {}
    if reading.label_mass is not None and not bool(reading.label_mass.isnan().all()):
        facts["label_mass"] = float(reading.label_mass.nanmean())
    out = {name: Column(scores, _range(reward), facts=facts)}
    if reward.kind == "weighted":
        assert reading.label_logprobs is not None
        best = reward._finish(np.array(reward.values))[reading.label_logprobs.nan_to_num(-torch.inf).argmax(1).numpy()]
        unread = reading.label_logprobs.isnan().any(-1).numpy()  # its score may be a floor
        out[f"{name}/argmax"] = Column(np.where(np.isnan(scores) | unread, scores, best), _range(reward))
    return out


def _likert_columns(name: str, reward: LikertReward, readings: Readings, rows: Rows, greedy: bool) -> dict[str, Column]:
    answers = readings.fetch_answers(reward, rows)
    asked = np.array([a is not None and a[0] is not None for a in answers], dtype=bool)
    ratings = _ratings(reward, answers, reward.n_samples)
    seen = ~np.isnan(ratings)
    facts = {"asked": float(asked.sum())} | ({"parsed": float(seen[asked].mean())} if asked.any() else {})
    made = {"one": ratings[:, 0], "mean": row_means(ratings), "mode": np.array([_mode(row) for row in ratings])}
    if greedy:
        made["greedy"] = _ratings(reward, readings.fetch_answers(reward, rows, greedy=True), 1)[:, 0]
    return _rating_columns(name, reward, rows, made, ratings, facts)


def _guided_columns(name: str, reward: GuidedLikertReward, reading: Reading, rows: Rows) -> dict[str, Column]:
    ratings = reward.ratings(reading, rows) if rows else np.zeros((0, reward.n_samples))
    assert reading.label_mass is not None
    facts = {"label_mass": float(reading.label_mass.nanmean())} if bool(reading.label_mass.isfinite().any()) else {}
    made = {
        "one": ratings[:, 0], "mean": ratings.mean(1), "mode": np.array([_mode(row) for row in ratings]),
        "greedy": reward.readout(reading).double().numpy(),
    }  # fmt: skip
    return _rating_columns(name, reward, rows, made, ratings, facts)


def _rating_columns(
    name: str,
    reward: Reward,
    rows: Rows,
    made: Mapping[str, np.ndarray],
    samples: np.ndarray,
    facts: Mapping[str, float],
) -> dict[str, Column]:
    """Columns scaled, clipped and floored like the reward; the samples and facts belong to their mean."""
    why = reward.reasons_first(np.full(len(rows), np.nan), [None] * len(rows), [row["completion"] for row in rows])
    columns = {key: Column(reward.finish(scores, why), reward.bounds) for key, scores in made.items()}
    columns["mean"] = replace(columns["mean"], samples=reward._finish(samples), facts=facts)
    return {f"{name}/{key}": column for key, column in columns.items()}


def _ratings(reward: LikertReward, answers: Sequence[Sequence[str | None] | None], n: int) -> np.ndarray:
    parsed = [[parse_rating(text, reward.prompt) for text in row or [None] * n] for row in answers]
    return np.array([[np.nan if r is None else float(r) for r in row] for row in parsed]).reshape(len(answers), n)


def _mode(row: np.ndarray) -> float:
    values, counts = np.unique(row[~np.isnan(row)], return_counts=True)
    return float(values[counts.argmax()]) if len(values) else np.nan


def _range(reward: LatentReward) -> tuple[float, float] | None:
    """Bounds of a score that is a rating or a probability by itself; those of a difference or a sum scale nothing."""
    return reward.bounds if reward.kind in ("weighted", "verifier", "cross_layer") else None
