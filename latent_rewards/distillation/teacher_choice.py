"""Which teacher to learn from, per prompt: from scores of the teachers' responses to columns that trainers route on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

import numpy as np

from latent_rewards.files.outputs import to_json
from latent_rewards.files.types import Prompt, Row
from latent_rewards.stats.bootstrap import none_if_nan

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


class _Counts(TypedDict):
    share: dict[str, dict[str, float | None]]
    none: dict[str, int]
    agreement: dict[str, float | None]


class ChoiceReport(_Counts, total=False):
    """See `choice_report`."""

    tie_share: float | None
    gold: dict[str, float | None]
    gold_best: dict[str, float | None]


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


def choice_rows(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Prompt | None]],
    teachers: Sequence[str],
    choice: TeacherChoice,
    *,
    scores: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[Row]:
    """Training rows: what the trainers route on, and an SFT set in one.

    Args:
        prompts: P strings or message lists.
        responses: P rows of M responses; None where a teacher gave none.
        teachers: M names.
        choice: of those teachers.
        scores: (P, M) kept in the rows for later.
        weights: (P,) of `loss_weights`.

    Returns:
        One row per prompt that has a teacher: `prompt` (messages), `messages` (with the chosen response), `completion`,
        `teacher_id` (the column TRL's AsyncDistillationTrainer routes on), `teacher_weights` (M numbers),
        `loss_weight`, `scores` (M numbers, null where there is none).

    Raises:
        ValueError: lengths differ, or a chosen teacher has no response.
    """
    if not len(prompts) == len(responses) == len(choice.index):
        raise ValueError(f"{len(prompts)} prompts, {len(responses)} rows of responses, {len(choice.index)} choices")
    rows = []
    for i, teacher in enumerate(choice.index):
        if teacher == NO_TEACHER or (weights is not None and not weights[i] > 0):
            continue
        text = responses[i][teacher]
        if text is None:
            raise ValueError(f"row {i}: teacher {teachers[teacher]!r} is chosen but gave no response")
        turns, answer = as_messages(prompts[i]), as_messages(text, "assistant")
        row: Row = {
            "prompt": turns, "completion": answer, "messages": turns + answer, "teacher_id": teachers[teacher],
            "teacher_weights": choice.weights[i].tolist(),
            "loss_weight": 1.0 if weights is None else float(weights[i]),
        }  # fmt: skip
        if scores is not None:
            row["scores"] = list(map(none_if_nan, scores[i]))
        rows.append(row)
    return rows


def as_messages(said: Prompt, role: str = "user") -> list[Mapping[str, object]]:
    """A text as its role's message; messages as they are."""
    return [{"role": role, "content": said}] if isinstance(said, str) else list(said)


def choice_report(
    teachers: Sequence[str],
    choices: Mapping[str, TeacherChoice],
    *,
    scores: np.ndarray | None = None,
    gold: np.ndarray | None = None,
) -> ChoiceReport:
    """What the choices look like, and how far they agree.

    Args:
        teachers: M names.
        choices: name of a way of choosing -> its choice.
        scores: (P, M) of the scores the first way rests on: spread and ties within a prompt.
        gold: (P, M) gold scores, where there are any; NaN where unknown.

    Returns:
        `share`: way -> teacher -> share of prompts; `none`: way -> prompts without a teacher; `agreement`: pairs of
        ways -> share of prompts with the same teacher, over those where both have one; with scores `tie_share`, the
        share of prompts whose two best scores are equal; with gold `gold`: way -> mean gold score of the chosen
        responses, and `gold_best`: way -> share of prompts where the choice has the best gold score.
    """
    report: ChoiceReport = {
        "share": {n: _shares(c.index, teachers) for n, c in choices.items()},
        "none": {n: int((c.index < 0).sum()) for n, c in choices.items()},
        "agreement": {},
    }
    for (a, first), (b, second) in itertools.combinations(choices.items(), 2):
        both = (first.index >= 0) & (second.index >= 0)
        report["agreement"][f"{a} and {b}"] = _mean((first.index == second.index)[both])
    if scores is not None and scores.shape[1] > 1:
        ordered = np.sort(np.where(np.isnan(scores), -np.inf, scores), 1)
        report["tie_share"] = _mean((ordered[:, -1] == ordered[:, -2])[np.isfinite(ordered[:, -2])])
    if gold is not None:
        best = np.where(np.isnan(gold), -np.inf, gold).max(1)
        report["gold"], report["gold_best"] = {}, {}
        for name, choice in choices.items():
            value = np.where(choice.index >= 0, gold[np.arange(len(gold)), np.maximum(choice.index, 0)], np.nan)
            known = ~np.isnan(value)
            report["gold"][name], report["gold_best"][name] = _mean(value[known]), _mean((value == best)[known])
    return report


def _shares(index: np.ndarray, teachers: Sequence[str]) -> dict[str, float | None]:
    return {teacher: _mean(index[index >= 0] == i) for i, teacher in enumerate(teachers)}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def write_rows(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """JSON Lines."""
    lines = [to_json(row) + "\n" for row in rows]
    Path(path).write_text("".join(lines), encoding="utf-8")
