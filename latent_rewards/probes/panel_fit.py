"""The regression of a panel: features of labelled completions in, one weight for each out."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from latent_rewards.judge.reading import Reading
from latent_rewards.probes.examples import Example, prompt_group
from latent_rewards.probes.panel_collect import lengths_of
from latent_rewards.probes.questions import Feature, Question, values_of
from latent_rewards.stats.pairs import pair_indices

logger = logging.getLogger(__name__)

Objective = Literal["logistic", "ridge"]
Length = Literal["ignore", "residual"]


@dataclass(frozen=True)
class PanelOptions:
    """How a panel is fitted.

    Attributes:
        objective: "logistic" (pairs as differences, or labels 0 and 1) or "ridge" (ratings); None takes the one that
            fits the labels.
        length: "residual" takes out of every feature what ln(1 + characters) explains of it, "ignore" nothing.
        strengths: inverse L2 strengths C to choose from, by the held-out loss of a grouped cross-validation.
        folds: of that, and of the figures; no prompt is on both sides.
        seed: of the folds.
    """

    objective: Objective | None = None
    length: Length = "ignore"
    strengths: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    folds: int = 5
    seed: int = 42

    def __post_init__(self) -> None:
        if self.objective is not None and self.objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {get_args(Objective)}, got {self.objective!r}")
        if self.length not in get_args(Length):
            raise ValueError(f"length must be one of {get_args(Length)}, got {self.length!r}")
        if not self.strengths or min(self.strengths) <= 0 or self.folds < 2:
            raise ValueError(f"need strengths above 0 and 2 folds or more, got {self.strengths} and {self.folds}")


@dataclass(frozen=True)
class Table:
    """N labelled completions with their F features, none of them NaN.

    Attributes:
        x: (N, F).
        label: (N,) higher is better.
        pair: (N,) pair numbers; all -1 for ratings.
        group: (N,) prompt groups.
        length: (N,) characters as judged.
        source: (N,) names.
    """

    x: np.ndarray
    label: np.ndarray
    pair: np.ndarray
    group: np.ndarray
    length: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray) -> Table:
        """Some rows, by index or mask."""
        return Table(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    @property
    def paired(self) -> bool:
        """Whether rows are compared within pairs or lists."""
        return bool((self.pair >= 0).any())


def table_of(
    features: Sequence[Feature], questions: Sequence[Question], examples: Sequence[Example], readings: Sequence[Reading]
) -> Table:
    """Features and labels of the examples that could be read; of a pair both or none.

    Raises:
        ValueError: pairs and ratings mixed, or nothing could be read; gives the first reason.
    """
    pair = np.array([e.pair for e in examples])
    if (pair >= 0).any() and (pair < 0).any():
        raise ValueError("pairs or lists and ratings do not fit one panel; train on one kind, or make pairs of ratings")
    length = lengths_of(questions, examples)
    x = values_of(features, questions, readings, length)
    bad = ~np.isfinite(x).all(1)
    bad |= np.isin(pair, pair[bad]) & (pair >= 0)
    if bad.all():
        why = next((w for r in readings for w in r.reasons if w), "the judge gave NaN")
        raise ValueError(f"none of {len(examples)} examples could be read: {why}")
    if bad.any():
        logger.warning("left out %d of %d examples that could not be read", int(bad.sum()), len(examples))
    label = np.array([e.label for e in examples], dtype=float)
    group = np.array([prompt_group(e.prompt) for e in examples])
    return Table(x, label, pair, group, length, np.array([e.source for e in examples])).take(~bad)


@dataclass(frozen=True)
class Line:
    """score = bias + sum_f w_f (x_f - m_f) + w_n (ln(1 + n) - m_n), n the characters of the completion.

    Attributes:
        weights: (F,) w.
        location: (F,) m, means over the rows.
        scales: (F,) standard deviations there.
        bias: of the score.
        by_length: w_n; 0 unless length was taken out.
        mean_length: m_n.
        strength: C that was chosen.
    """

    weights: np.ndarray
    location: np.ndarray
    scales: np.ndarray
    bias: float
    by_length: float
    mean_length: float
    strength: float

    def __call__(self, table: Table) -> np.ndarray:
        """(N,) scores."""
        by_length = self.by_length * (_log_length(table) - self.mean_length)
        return self.bias + (table.x - self.location) @ self.weights + by_length


def fit_line(table: Table, options: PanelOptions) -> Line:
    """Fit the regression, its strength by grouped cross-validation.

    Pairs: P(better preferred) = sigmoid(w (x_better - x_worse)), each pair in both directions, no intercept; "ridge"
    fits the difference of the labels instead. Features are divided by their standard deviation over the rows, and the
    penalty is |w|^2 / (2 C) beside the summed logistic loss, |w|^2 / C beside the squared errors.

    With `length="residual"` feature f is x_f - b_f ln(1 + n), b_f its least-squares slope (within pairs or lists), so
    that on these rows no feature goes with length; the score then has the weight -sum_f w_f b_f on ln(1 + n).

    Raises:
        ValueError: too few rows or prompts, or labels that do not fit the objective.
    """
    objective, paired = _objective(table, options), table.paired
    slope = _slope(table) if options.length == "residual" else np.zeros(table.x.shape[1])
    flat = dataclasses.replace(table, x=table.x - np.outer(_log_length(table), slope))
    x, y, rows = _design(flat, objective)
    spread = flat.x.std(0)
    spread = np.where(spread > 1e-6 * table.x.std(0), spread, np.inf)  # what is constant, or all length, weighs nothing
    z = x / spread if paired else (x - flat.x.mean(0)) / spread
    strength = _choose(z, y, table.group[rows], objective, options, intercept=not paired)
    w, bias = _solve(z, y, objective, strength, intercept=not paired)
    w = w / spread
    means = (table.x.mean(0), table.x.std(0), bias, -float(slope @ w), float(_log_length(table).mean()))
    return Line(w, *means, strength)


def _log_length(table: Table) -> np.ndarray:
    return np.log1p(table.length.astype(float))


def _objective(table: Table, options: PanelOptions) -> Objective:
    binary = set(table.label.tolist()) <= {0.0, 1.0}
    found: Objective = options.objective or ("logistic" if table.paired or binary else "ridge")
    if found == "logistic" and not table.paired and not binary:
        raise ValueError("objective 'logistic' without pairs needs labels 0 and 1; use 'ridge' for ratings")
    if np.ptp(table.label) == 0:
        raise ValueError(f"all {len(table)} labels are {table.label[0]:g}: nothing to learn from")
    return found


def _design(table: Table, objective: Objective) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets, and the row whose prompt each belongs to; pairs as differences, in both directions."""
    if not table.paired:
        return table.x, table.label, np.arange(len(table))
    better, worse = pair_indices(table.label, table.pair)
    gap = table.x[better] - table.x[worse]
    size = np.ones(len(gap)) if objective == "logistic" else table.label[better] - table.label[worse]
    low = np.zeros(len(gap)) if objective == "logistic" else -size
    return np.concatenate([gap, -gap]), np.concatenate([size, low]), np.concatenate([better, better])


def _solve(
    z: np.ndarray, y: np.ndarray, objective: Objective, strength: float, *, intercept: bool
) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression, Ridge

    if objective == "logistic":
        found = LogisticRegression(C=strength, fit_intercept=intercept, max_iter=2000).fit(z, y)
        return found.coef_[0], float(np.ravel(found.intercept_)[0]) if intercept else 0.0
    found = Ridge(alpha=1 / strength, fit_intercept=intercept).fit(z, y)
    return found.coef_, float(found.intercept_) if intercept else 0.0


def _choose(
    z: np.ndarray, y: np.ndarray, group: np.ndarray, objective: Objective, options: PanelOptions, *, intercept: bool
) -> float:
    losses = np.zeros(len(options.strengths))
    for train, test in folds_of(group, options):
        if objective == "logistic" and len(set(y[train])) < 2:
            continue
        for i, strength in enumerate(options.strengths):
            w, bias = _solve(z[train], y[train], objective, strength, intercept=intercept)
            made = bias + z[test] @ w
            loss = np.logaddexp(0, made) - y[test] * made if objective == "logistic" else (made - y[test]) ** 2
            losses[i] += loss.sum()
    return options.strengths[int(losses.argmin())]


def folds_of(group: np.ndarray, options: PanelOptions) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and to test on, no prompt on both sides.

    Raises:
        ValueError: fewer prompts than folds.
    """
    from sklearn.model_selection import GroupKFold

    prompts = len(np.unique(group))
    if prompts < options.folds:
        raise ValueError(f"{prompts} different prompts cannot make {options.folds} folds; label more, or lower `folds`")
    made = GroupKFold(options.folds, shuffle=True, random_state=options.seed)
    return list(made.split(np.zeros(len(group)), groups=group))


def _slope(table: Table) -> np.ndarray:
    """(F,) slope of every feature on ln(1 + characters); within pairs or lists where there are any."""
    _, index = np.unique(table.pair if table.paired else np.zeros(len(table)), return_inverse=True)
    count = np.bincount(index)[:, None]

    def centred(v: np.ndarray) -> np.ndarray:
        sums = np.stack([np.bincount(index, column) for column in v.T], axis=1)
        return v - (sums / count)[index]

    n, x = centred(_log_length(table)[:, None]), centred(table.x)
    spread = float((n * n).sum())
    return (n * x).sum(0) / spread if spread > 0 else np.zeros(table.x.shape[1])
