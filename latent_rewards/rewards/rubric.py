"""A list of weighted criteria for each row, all read in one forward: rubrics as rewards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from latent_rewards import readouts
from latent_rewards.files.keys import prompt_key
from latent_rewards.files.sources import RowError
from latent_rewards.files.types import check_lists, number, whole
from latent_rewards.judge.hf import Judge, Reading, Request
from latent_rewards.rewards.criteria import Criteria, Criterion, load_criteria, parse_criteria, subset
from latent_rewards.rewards.latent import UNKNOWN, LatentReward, uncertainty

Row = Mapping[str, Any]
Aggregate = Literal["points", "met_points", "mean", "log_odds", "min", "geometric", "all", "count"]


class RubricReward(LatentReward):
    """How well a reply meets a list of weighted criteria, each read as P(yes) after the same task and reply.

    The criteria of a row come from a dataset column, so every row can have its own; they are read in one forward, in
    which task and reply run once and each criterion costs its own tokens.

    With m_k = P(criterion k holds) (for a penalty, w_k < 0, P(it does not)), w_k the weights:

    - "points": clip(sum_k w_k P_k / sum_{w_k > 0} w_k, 0, 1), the expected share of the points.
    - "met_points": the same with P_k rounded to 0 or 1 at `threshold`, as HealthBench counts.
    - "mean": sum_k |w_k| m_k / sum_k |w_k|.
    - "log_odds": the same mean of ln m_k / (1 - m_k), in nats, unbounded: keeps resolution where P saturates.
    - "min", "geometric": the lowest, or the weighted geometric mean, of m_k.
    - "all", "count": 1 if every m_k is above `threshold` else 0; or how many are.

    Args:
        judge: a judge, or a model name.
        criteria: criteria for all rows (see `parse_criteria`), or a YAML or JSON file of them; None takes each row's
            from `criteria_column`.
        criteria_column: dataset column with each row's criteria: a list, or JSON text.
        aggregate: one of the above.
        threshold: above which a criterion counts as met.
        dropout: share of the criteria left out at random, the same ones for all completions of a prompt in a step of
            a trainer: a policy that cannot know what is asked cannot write for the list. Essential ones stay.
        seed: of the dropout.
        unreadable: what a criterion that cannot be read means: "none", no score for the row, or "leave_out".
        **options: see `Reward`. `prompt` must have a `{{ criterion }}` slot: "criterion" (yes or no), or
            "criterion_scale" (1 to 5, read as (expected rating - 1) / 4).

    A reply that does not meet an essential criterion (m_k <= `threshold`) gets the lowest score; under "log_odds", at
    most the log-odds of its worst essential criterion.

    Raises:
        ValueError: unknown options, or criteria that are none; names the criterion, and for a column the row.

    Source: HealthBench (Arora et al. 2025, arXiv 2505.08775) for the points; Rubrics as Rewards (Gunjal et al. 2025,
    arXiv 2507.17746), explicit aggregation.
    """

    kind = "rubric_list"
    default_prompt = "criterion"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        criteria: object = None,
        criteria_column: str = "rubrics",
        aggregate: Aggregate = "points",
        threshold: float = 0.5,
        dropout: float = 0.0,
        seed: int = 0,
        unreadable: Literal["none", "leave_out"] = "none",
        **options: Any,
    ) -> None:
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {sorted(AGGREGATES)}, got {aggregate!r}")
        self.threshold, self.dropout = number(threshold, "threshold"), number(dropout, "dropout")
        if not 0 <= self.threshold < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"need 0 <= threshold, dropout < 1, got {threshold} and {dropout}")
        if unreadable not in ("none", "leave_out"):
            raise ValueError(f"unreadable must be 'none' or 'leave_out', got {unreadable!r}")
        from_file = isinstance(criteria, Path) or (isinstance(criteria, str) and Path(criteria).suffix in _FILES)
        self.criteria: Criteria | None = None
        if criteria is not None:
            self.criteria = load_criteria(criteria) if from_file else parse_criteria(criteria)  # type: ignore[arg-type]
        self.criteria_column, self.aggregate = criteria_column, aggregate
        self.seed, self.unreadable = whole(seed, "seed"), unreadable
        super().__init__(judge, **options)

    def _default_name(self) -> str:
        suffix = "" if self.prompt.name == self.default_prompt else f"-{self.prompt.name}"
        return self.kind + suffix

    def _prepare(self) -> None:
        if "criterion" not in self.prompt.slots:
            raise ValueError(f"prompt {self.prompt.name!r} has no {{{{ criterion }}}} slot, which RubricReward fills")
        super()._prepare()

    def options(self) -> dict[str, Any]:
        """The criteria, and how they are put together."""
        fixed = None if self.criteria is None else [_plain(c) for c in self.criteria]
        keys = ("aggregate", "threshold", "dropout", "seed", "unreadable")
        return {"criteria": fixed, "criteria_column": self.criteria_column} | {key: getattr(self, key) for key in keys}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Slots of the prompt but the criterion, and the column of criteria."""
        own = (s for s in self.prompt.slots if s != "criterion")
        return (*own, *(() if self.criteria is not None else (self.criteria_column,)))

    @property
    def score_range(self) -> tuple[float, float]:
        """0 to 1; log-odds have no ends, a count only a lower one unless the criteria are fixed."""
        if self.aggregate == "log_odds":
            return -np.inf, np.inf
        if self.aggregate == "count":
            return 0.0, float(len(self.criteria)) if self.criteria is not None else np.inf
        return 0.0, 1.0

    def rows(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `Reward.rows`, with each row's criteria checked and drawn."""
        rows = super().rows(prompts, completions, columns)
        step = getattr(columns.get("trainer_state"), "global_step", 0)
        for i, row in enumerate(rows):
            try:
                row[self.criteria_column] = self._criteria(row, step)
            except ValueError as err:
                raise RowError(i, err) from err
        return rows

    def check_row(self, row: Row) -> None:
        """The row has criteria, and fills the prompt."""
        self.prompt.render(self._filled(row, self._criteria(row)[0]))

    def requests(self, rows: Sequence[Row]) -> list[Request]:
        """One request, with a text for each criterion of each row."""
        texts = [self._filled(row, c) for row, criteria in self._with_criteria(rows) for c in criteria]
        return [Request(self.prompt, texts, self.need)]

    def scores_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) aggregated; NaN where a criterion could not be read, or all that were left."""
        return np.array([self._score_of(c, odds) for c, odds in self._split(rows, readings[0])], dtype=np.float64)

    def reasons(self, rows: Sequence[Row], readings: Sequence[Reading]) -> list[str]:
        """Which criterion of a row could not be read, and why."""
        out, at = [], 0
        for _, criteria in self._with_criteria(rows):
            whys = zip(criteria, readings[0].reasons[at : at + len(criteria)], strict=True)
            faults = [f"criterion {i} ({c.name or c.text:.40}): {why}" for i, (c, why) in enumerate(whys) if why]
            out.append(faults[0] if faults else UNKNOWN)
            at += len(criteria)
        return out

    def explain(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[list[dict[str, Any]]]:
        """For each row, each of its criteria: what it says, what it weighs, how far it is met, what it brings.

        Returns:
            B lists of mappings: "criterion", "name", "weight", "essential"; "p" = P(it holds), "label_mass" the share
            of the next token's probability on the labels; "contribution" to the score before any gate and clipping,
            for aggregates that are sums, else None; "reason" why it could not be read.

        Raises:
            TypeError: one text instead of a list.
        """
        check_lists(prompts=prompts, completions=completions)
        rows = self.rows(list(prompts), list(completions), columns)
        return self.explain_of(rows, self.judge.read(self.requests(rows))) if rows else []

    def explain_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> list[list[dict[str, Any]]]:
        """As `explain`, from the readings of `requests(rows)`."""
        reading, out, at = readings[0], [], 0
        assert reading.label_mass is not None
        for criteria, odds in self._split(rows, reading):
            brought = self._contributions(criteria, odds)
            holds = _sigmoid(odds)
            items = []
            for i, c in enumerate(criteria):
                p, mass = float(holds[i]), float(reading.label_mass[at + i])
                items.append({
                    "criterion": c.text, "name": c.name, "weight": c.weight, "essential": c.essential,
                    "p": None if np.isnan(p) else p, "label_mass": None if np.isnan(mass) else mass,
                    "contribution": None if brought is None or np.isnan(brought[i]) else float(brought[i]),
                    "reason": reading.reasons[at + i],
                })  # fmt: skip
            out.append(items)
            at += len(criteria)
        return out

    def facts_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, Any]:
        """Mean P of each criterion that has a name and is the same for all rows; every row's explanation as JSON.

        `uncertainty` is the mean standard deviation of the answers, over all criteria of all rows.
        """
        explained = self.explain_of(rows, readings)
        values: dict[str, list[float]] = {c.name: [] for c in self.criteria or () if c.name}
        for items in explained:
            for item in items:
                if item["name"] in values and item["p"] is not None:
                    values[item["name"]].append(item["p"])
        metrics = uncertainty(readings[0], self.values)
        metrics |= {name: float(np.mean(found)) for name, found in values.items() if found}
        return {"metrics": metrics, "extra": {"criteria": [json.dumps(x, ensure_ascii=False) for x in explained]}}

    def _criteria(self, row: Row, step: int = 0) -> Criteria:
        """The row's criteria; those that `rows` has drawn already are left as they are."""
        found = row.get(self.criteria_column)
        if isinstance(found, tuple) and found and all(isinstance(c, Criterion) for c in found):
            return found
        if self.criteria is None and found is None:
            raise ValueError(
                f"no criteria in column {self.criteria_column!r}: give each row its own there (criteria_column= names "
                "the column), or all rows the same, RubricReward(judge, criteria=[...]) or rubric_list:criteria.yaml"
            )
        try:
            criteria = parse_criteria(found) if self.criteria is None else self.criteria
        except ValueError as err:
            raise ValueError(f"column {self.criteria_column!r}: {err}") from err
        return subset(criteria, self.dropout, [self.seed, step, prompt_key(row.get("prompt"))])

    def _with_criteria(self, rows: Sequence[Row]) -> list[tuple[Row, Criteria]]:
        return [(row, self._criteria(row)) for row in rows]

    def _filled(self, row: Row, criterion: Criterion) -> dict[str, Any]:
        """The row as one criterion's text wants it."""
        own = {slot: row[slot] for slot in self.prompt.slots if row.get(slot) is not None}
        own["criterion"] = criterion.text
        return own if criterion.reference is None else own | {"reference": criterion.reference}

    def _split(self, rows: Sequence[Row], reading: Reading) -> list[tuple[Criteria, np.ndarray]]:
        """Criteria and (K_i,) log-odds that each holds, nats, of every row; NaN where one could not be read."""
        assert reading.label_logprobs is not None
        odds = _odds(reading.label_logprobs, self.values).double().numpy()
        out, at = [], 0
        for _, criteria in self._with_criteria(rows):
            out.append((criteria, odds[at : at + len(criteria)]))
            at += len(criteria)
        return out

    def _score_of(self, criteria: Criteria, odds: np.ndarray) -> float:
        weights, known = np.array([c.weight for c in criteria]), ~np.isnan(odds)
        if not known.all() and (self.unreadable == "none" or not (weights[known] > 0).any()):
            return np.nan
        essential = np.array([c.essential for c in criteria])[known]
        score = AGGREGATES[self.aggregate](odds[known], weights[known], self.threshold)
        if (essential & (_sigmoid(odds[known]) <= self.threshold)).any():
            return min(score, float(odds[known][essential].min())) if self.aggregate == "log_odds" else 0.0
        return score

    def _contributions(self, criteria: Criteria, odds: np.ndarray) -> np.ndarray | None:
        weights = np.array([c.weight for c in criteria])
        p, met, good = _sigmoid(odds), _sigmoid(odds) > self.threshold, _sigmoid(np.sign(weights) * odds)
        share, total = weights / weights[weights > 0].sum(), np.abs(weights) / np.abs(weights).sum()
        made = {
            "points": share * p, "met_points": share * met, "mean": total * good,
            "log_odds": total * np.sign(weights) * odds, "count": 1.0 * (good > self.threshold),
        }  # fmt: skip
        found = made.get(self.aggregate)
        return None if found is None else np.where(np.isnan(odds), np.nan, found)


def _odds(label_logprobs: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    """(T,) ln m / (1 - m), m the expected label value as a share of the labels' range; P(yes) for yes and no."""
    if set(values) == {0.0, 1.0}:
        return readouts.log_odds(label_logprobs, values)
    low, high = min(values), max(values)
    share = (readouts.expected_rating(label_logprobs.double(), values).double() - low) / (high - low)
    return torch.logit(share, eps=1e-12)


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return torch.sigmoid(torch.from_numpy(odds)).numpy()


def _plain(criterion: Criterion) -> list[Any]:
    return [criterion.text, criterion.weight, criterion.name, criterion.essential, criterion.reference]


def _points(share: np.ndarray, weights: np.ndarray) -> float:
    return float(np.clip((weights * share).sum() / weights[weights > 0].sum(), 0.0, 1.0))


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    size = np.abs(weights)
    return float((size * values).sum() / size.sum())


def _met(odds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(K,) P that each criterion is met: a penalty is, if it does not hold. A weight of 0 asks nothing."""
    return _sigmoid(np.sign(weights) * odds)[weights != 0]


def _geometric(odds: np.ndarray, weights: np.ndarray) -> float:
    logs = torch.nn.functional.logsigmoid(torch.from_numpy(np.sign(weights) * odds)).numpy()
    return float(np.exp(_mean(logs, weights)))


# (K,) log-odds that each criterion holds, (K,) weights, threshold -> score; see `RubricReward`.
AGGREGATES: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "points": lambda odds, w, t: _points(_sigmoid(odds), w),
    "met_points": lambda odds, w, t: _points(1.0 * (_sigmoid(odds) > t), w),
    "mean": lambda odds, w, t: _mean(_sigmoid(np.sign(w) * odds), w),
    "log_odds": lambda odds, w, t: _mean(np.sign(w) * odds, w),
    "min": lambda odds, w, t: float(_met(odds, w).min()),
    "geometric": lambda odds, w, t: _geometric(odds, w),
    "all": lambda odds, w, t: float((_met(odds, w) > t).all()),
    "count": lambda odds, w, t: float((_met(odds, w) > t).sum()),
}
_FILES = (".yaml", ".yml", ".json")
