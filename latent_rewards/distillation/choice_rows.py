"""What the choice of teachers becomes: rows to train on, and a report of how far choices agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from latent_rewards.distillation.teacher_choice import NO_TEACHER, TeacherChoice
from latent_rewards.files.outputs import to_json
from latent_rewards.files.types import Prompt, Row, as_messages
from latent_rewards.stats.bootstrap import Estimate, Figure, difference, mean_estimate, none_if_nan


class _Counts(TypedDict):
    share: dict[str, dict[str, Figure]]
    minus: dict[str, dict[str, Figure]]
    none: dict[str, int]
    agreement: dict[str, float | None]


class ChoiceReport(_Counts, total=False):
    """See `choice_report`."""

    tie_share: float | None
    gold: dict[str, float | None]
    gold_best: dict[str, float | None]


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
        `share`: way -> teacher -> share of the prompts that have one, with a 95 % interval over prompts; `minus`: way
        -> teacher -> the first way's share less this one's, paired; `none`: way -> prompts without a teacher;
        `agreement`: pairs of ways -> share of prompts with the same teacher, over those where both have one; with
        scores `tie_share`, the share of prompts whose two best scores are equal; with gold `gold`: way -> mean gold
        score of the chosen responses, and `gold_best`: way -> share of prompts where the choice has the best one.
    """
    shares = {n: _shares(c.index, teachers) for n, c in choices.items()}
    (_, first_shares), *others = shares.items()
    report: ChoiceReport = {
        "share": {n: {t: e.to_dict() for t, e in of.items()} for n, of in shares.items()},
        "minus": {n: {t: difference(first_shares[t], e).to_dict() for t, e in of.items()} for n, of in others},
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


def _shares(index: np.ndarray, teachers: Sequence[str]) -> dict[str, Estimate]:
    """Share of the prompts with a teacher that each one has; the same draws of prompts for all ways."""
    rows = np.arange(len(index))
    return {t: mean_estimate(np.where(index >= 0, index == i, np.nan), rows) for i, t in enumerate(teachers)}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def write_rows(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """JSON Lines."""
    lines = [to_json(row) + "\n" for row in rows]
    Path(path).write_text("".join(lines), encoding="utf-8")
