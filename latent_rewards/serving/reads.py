"""What the rewards of a request ask the judge to read, and the scores of what it read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from latent_rewards.files.keys import prompt_key
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Reading, Request, Row, unread
from latent_rewards.judge.requests import joins
from latent_rewards.rewards.latent import LatentReward


class Scored(NamedTuple):
    """Scores of B rows.

    Attributes:
        scores: reward -> (B,) float64, NaN for a missing score.
        reasons: (B,) why one is missing.
        readings: reward -> its first reading, where that has a text for each row.
        explanations: rubric list -> for each row what `RubricReward.explain` gives.
    """

    scores: dict[str, np.ndarray]
    reasons: list[str | None]
    readings: dict[str, Reading]
    explanations: dict[str, list[list[dict[str, Any]]]]


def slots(prompt: JudgePrompt, rows: Sequence[Row]) -> list[Row]:
    """Rows with what the prompt reads of them alone, so that prompts of the same rows are joined."""
    read = {"prompt", "completion", *prompt.slots}
    return [{k: v for k, v in row.items() if k in read} for row in rows]


def nothing(read: Request) -> Reading:
    """The reading of no rows."""
    return unread(0, len(read.prompt.labels or ()), read.need, 0, 0, ())


def add(reads: list[Request], read: Request) -> int:
    """Which of the reads gives this one, joined to one of the same rows or put at the end."""
    for i, known in enumerate(reads):
        if known.rows == read.rows and joins(known, read):
            reads[i] = Request(read.prompt, read.rows, known.need | read.need)
            return i
    reads.append(read)
    return len(reads) - 1


def read_out(
    reward: LatentReward, rows: Sequence[Row], readings: Sequence[Reading]
) -> tuple[np.ndarray, list[str | None]]:
    """(B,) scores from what the reward asked for, scaled and clipped like the reward, and why rows have none."""
    if not rows:
        return np.zeros(0), []
    own = [{k: v for k, v in row.items() if k in (*reward.inputs, "prompt", "completion")} for row in rows]
    values, reasons = reward.rewards_of(own, readings)
    return values, [why if np.isnan(v) else None for v, why in zip(values, reasons, strict=True)]


def group(rows: Sequence[Row]) -> str:
    """Equal for requests whose first row has the same prompt."""
    return prompt_key(rows[0].get("prompt") if rows else None)
