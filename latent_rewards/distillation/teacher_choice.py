"""Which teacher to learn from, per prompt: from scores of the teachers' responses to columns that trainers route on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latent_rewards.files.outputs import to_json

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
    n_prompts, m = scores.shape
    if not 0 <= fallback < m:
        raise ValueError(f"fallback must be a teacher number below {m}, got {fallback}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    known = ~np.isnan(scores)
    present = known if present is None else np.asarray(present, dtype=bool)
    rng = np.random.default_rng(seed)
    best = _argmax_random_ties(np.where(known & present, scores, -np.inf), rng)
    best = np.where((known & present).any(1), best, NO_TEACHER)
    fell_back = np.zeros(n_prompts, dtype=bool)
    if method in ("argmax", "softmax"):
        index = best
    elif method == "margin":
        ordered = np.sort(np.where(known & present, scores, -np.inf), axis=1)
        second = ordered[:, -2] if m > 1 else np.full(n_prompts, -np.inf)
        clear = (best >= 0) & (ordered[:, -1] > margin + second)
        fell_back = ~clear & present[:, fallback]
        index = np.where(fell_back, fallback, best)
    elif method == "random":
        index = np.where(present.any(1), np.where(present, rng.random((n_prompts, m)), -1.0).argmax(1), NO_TEACHER)
    elif method == "single":
        index = np.where(present[:, fallback], fallback, NO_TEACHER)
    else:
        raise ValueError(f"unknown method {method!r}; use 'argmax', 'softmax', 'margin', 'random' or 'single'")
    taken = np.where(known & present, scores, -np.inf) / temperature if method == "softmax" else None
    return TeacherChoice(index, _weights(index, m, taken), fell_back)


def _weights(index: np.ndarray, m: int, scores: np.ndarray | None) -> np.ndarray:
    """(P, M): all on the chosen teacher, or softmax of (P, M) scores; rows without a teacher are 0."""
    weights = np.zeros((len(index), m))
    rows = np.flatnonzero(index >= 0)
    weights[rows, index[rows]] = 1.0
    if scores is not None:
        z = np.exp(scores[rows] - scores[rows].max(1, keepdims=True))
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
    prompts: Sequence[Any],
    responses: Sequence[Sequence[Any]],
    teachers: Sequence[str],
    choice: TeacherChoice,
    *,
    scores: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[dict[str, Any]]:
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
        turns = [{"role": "user", "content": prompts[i]}] if isinstance(prompts[i], str) else list(prompts[i])
        answer = [{"role": "assistant", "content": text}] if isinstance(text, str) else list(text)
        row: dict[str, Any] = {
            "prompt": turns, "completion": answer, "messages": turns + answer, "teacher_id": teachers[teacher],
            "teacher_weights": choice.weights[i].tolist(),
            "loss_weight": 1.0 if weights is None else float(weights[i]),
        }  # fmt: skip
        if scores is not None:
            row["scores"] = [None if np.isnan(s) else float(s) for s in scores[i]]
        rows.append(row)
    return rows


def choice_report(
    teachers: Sequence[str],
    choices: Mapping[str, TeacherChoice],
    *,
    scores: np.ndarray | None = None,
    gold: np.ndarray | None = None,
) -> dict[str, Any]:
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
    names = list(choices)
    out: dict[str, Any] = {"share": {}, "none": {}, "agreement": {}}
    for name, choice in choices.items():
        some = choice.index[choice.index >= 0]
        out["none"][name] = int((choice.index < 0).sum())
        out["share"][name] = {t: float((some == i).mean()) if len(some) else None for i, t in enumerate(teachers)}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            x, y = choices[a].index, choices[b].index
            both = (x >= 0) & (y >= 0)
            out["agreement"][f"{a} and {b}"] = float((x == y)[both].mean()) if both.any() else None
    if scores is not None and scores.shape[1] > 1:
        ordered = np.sort(np.where(np.isnan(scores), -np.inf, scores), 1)
        two = np.isfinite(ordered[:, -2])
        out["tie_share"] = float((ordered[:, -1] == ordered[:, -2])[two].mean()) if two.any() else None
    if gold is not None:
        best = np.where(np.isnan(gold), -np.inf, gold).max(1)
        out["gold"], out["gold_best"] = {}, {}
        for name, choice in choices.items():
            value = np.where(choice.index >= 0, gold[np.arange(len(gold)), np.maximum(choice.index, 0)], np.nan)
            known = ~np.isnan(value)
            out["gold"][name] = float(value[known].mean()) if known.any() else None
            out["gold_best"][name] = float((value == best)[known].mean()) if known.any() else None
    return out


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON Lines."""
    lines = [to_json(row) + "\n" for row in rows]
    Path(path).write_text("".join(lines), encoding="utf-8")
