"""Which teacher to learn from, per prompt: from scores of the teachers' responses to columns that trainers route on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Method = Literal["argmax", "softmax", "margin", "random", "single"]

NO_TEACHER = -1


@dataclass(frozen=True)
class TeacherChoice:
    """The chosen teacher of each of P prompts.

    Attributes:
        index: (P,) teacher, -1 where none can be chosen.
        weights: (P, M) mixture weights, each row summing to 1; all 0 where none can be chosen.
        fell_back: (P,) whether the fallback was taken.
    """

    index: np.ndarray
    weights: np.ndarray
    fell_back: np.ndarray


def choose_teachers(
    scores: np.ndarray,
    method: Method = "argmax",
    *,
    temperature: float = 1.0,
    margin: float = 0.0,
    fallback: int = 0,
    present: np.ndarray | None = None,
    seed: int = 0,
) -> TeacherChoice:
    """Choose a teacher, or weights over teachers, for each prompt.

    Args:
        scores: (P, M) score of each teacher's response; NaN where there is none. A teacher without a score is never
            chosen for its score, and gets no weight.
        method: "argmax": the best score, ties drawn at random; "softmax": weights softmax(scores / temperature), index
            is their argmax; "margin": the best score where it leads the second by more than `margin`, else the
            fallback; "random": any teacher that responded; "single": always the fallback.
        temperature: score units, of "softmax".
        margin: score units, of "margin".
        fallback: teacher of "margin" and "single".
        present: (P, M) whether the teacher responded; default where it has a score. A fallback that did not respond is
            replaced by the best-scored teacher that did ("margin") or by none ("single").
        seed: of random draws.

    Raises:
        ValueError: unknown method, or a fallback that is no teacher.
    """
    scores = np.asarray(scores, dtype=np.float64)
    m = scores.shape[1]
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}; use 'argmax', 'softmax', 'margin', 'random' or 'single'")
    if not 0 <= fallback < m:
        raise ValueError(f"fallback must be a teacher number below {m}, got {fallback}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    known = ~np.isnan(scores)
    present = known if present is None else np.asarray(present, dtype=bool)
    rated = np.where(known & present, scores, -np.inf)
    rng = np.random.default_rng(seed)
    index = np.where((known & present).any(1), _argmax_random_ties(rated, rng), NO_TEACHER)
    fell_back = np.zeros(len(scores), dtype=bool)
    if method == "margin":
        fell_back = ~((index >= 0) & _leads(rated, margin)) & present[:, fallback]
        index = np.where(fell_back, fallback, index)
    elif method == "random":
        index = np.where(present.any(1), np.where(present, rng.random(scores.shape), -1.0).argmax(1), NO_TEACHER)
    elif method == "single":
        index = np.where(present[:, fallback], fallback, NO_TEACHER)
    return TeacherChoice(index, _mixture(rated, index, temperature if method == "softmax" else None), fell_back)


def _leads(rated: np.ndarray, margin: float) -> np.ndarray:
    """(P,) whether the best of M scores leads the second by more than the margin; one alone always does."""
    ordered = np.sort(rated, axis=1)
    second = ordered[:, -2] if rated.shape[1] > 1 else np.full(len(rated), -np.inf)
    return ordered[:, -1] > margin + second


def _mixture(rated: np.ndarray, index: np.ndarray, temperature: float | None) -> np.ndarray:
    """(P, M) weights: all on the chosen teacher, or with a temperature softmax(scores / temperature)."""
    weights = np.zeros(rated.shape)
    rows = np.flatnonzero(index >= 0)
    weights[rows, index[rows]] = 1.0
    if temperature is not None:
        z = rated[rows] / temperature
        z = np.exp(z - z.max(1, keepdims=True))
        weights[rows] = z / z.sum(1, keepdims=True)
    return weights


def _argmax_random_ties(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Argmax of each row; among equal ones a random one, so that a coarse score does not always take the first."""
    top = values == values.max(1, keepdims=True)
    return np.where(top, rng.random(values.shape), -1.0).argmax(1)


def loss_weights(scores: np.ndarray, index: np.ndarray, *, low: float = 0.0, high: float = 10.0) -> np.ndarray:
    """How much each prompt counts in the loss: the chosen response's score as a share of the scale, mean 1.

    Args:
        scores: (P, M) scores within [low, high].
        index: (P,) chosen teacher, -1 for none.
        low: score that weighs nothing.
        high: top of the scale.

    Returns:
        (P,) weights with mean 1 over the prompts that have one, so that the learning rate keeps its meaning; 0 where no
        teacher is chosen, NaN where the chosen response has no score.

    Raises:
        ValueError: a score outside the scale, or every weight 0.
    """
    picked = scores[np.arange(len(scores)), np.maximum(index, 0)]
    outside = (picked < low) | (picked > high)
    if outside[index >= 0].any():
        row = int(np.flatnonzero(outside & (index >= 0))[0])
        raise ValueError(
            f"row {row}: score {picked[row]:.4g} lies outside [{low}, {high}]; give the reward's own scale, or a "
            "reward with scale=, shift= and clip="
        )
    weight = np.where(index >= 0, (picked - low) / (high - low), 0.0)
    mean = np.nanmean(weight[index >= 0]) if (index >= 0).any() else 0.0
    if not mean > 0:
        raise ValueError("every prompt would weigh 0; check the scale")
    return weight / mean
