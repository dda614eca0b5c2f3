"""What a panel asks about a completion, and the numbers that it takes of each answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from latent_rewards import readouts
from latent_rewards.judge.prompts import JudgePrompt, to_text
from latent_rewards.judge.reading import Lens, Need, Reading, Request

LENGTH = "length"
"""Name of the feature ln(1 + characters of the completion)."""


@dataclass(frozen=True)
class Question:
    """One thing that the judge is asked about every completion.

    Attributes:
        name: short name, unique in a panel.
        prompt: a prompt with labels.
        criterion: fills the prompt's `{{ criterion }}` slot, where it has one.
        sign: -1 where a high value speaks against a completion, else 1; says which way it counts as a scorer alone.
    """

    name: str
    prompt: JudgePrompt
    criterion: str = ""
    sign: int = 1

    def __post_init__(self) -> None:
        slots = self.prompt.slots
        if self.prompt.labels is None:
            raise ValueError(f"question {self.name!r}: prompt {self.prompt.name!r} has no labels to read")
        if "other" in slots:
            raise ValueError(f"question {self.name!r}: prompt {self.prompt.name!r} compares replies; a panel reads one")
        if ("criterion" in slots) != bool(self.criterion.strip()):
            said = "needs a criterion" if "criterion" in slots else f"has no slot for criterion {self.criterion!r}"
            raise ValueError(f"question {self.name!r}: prompt {self.prompt.name!r} {said}")

    def text(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row as this question's prompt wants it."""
        own = {slot: row[slot] for slot in ("prompt", "completion", *self.prompt.slots) if row.get(slot) is not None}
        return own | ({"criterion": self.criterion} if self.criterion else {})


def requests_of(
    questions: Sequence[Question], rows: Sequence[Mapping[str, Any]], lenses: frozenset[Lens] = frozenset()
) -> list[Request]:
    """One request for each question; the judge reads them in one forward, task and completion once for all."""
    return [Request(q.prompt, [q.text(row) for row in rows], Need(True, layer_logits=lenses)) for q in questions]


@dataclass(frozen=True)
class Feature:
    """One number that a panel takes of a completion.

    Attributes:
        question: which question's reading; "" for the length.
        statistic: one of `STATISTICS`.
    """

    question: str
    statistic: str

    @property
    def name(self) -> str:
        """As cards and tables show it."""
        return f"{self.question}/{self.statistic}" if self.question else self.statistic


def features_of(questions: Sequence[Question], statistics: Sequence[str]) -> tuple[Feature, ...]:
    """Every statistic of every question.

    Raises:
        ValueError: no question, two of one name, or an unknown statistic.
    """
    names = [q.name for q in questions]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a panel needs questions with different names, got {names}")
    if not statistics or (unknown := sorted(set(statistics) - set(STATISTICS))):
        raise ValueError(f"unknown statistics {unknown if statistics else []}; known are {list(STATISTICS)}")
    return tuple(Feature(name, statistic) for name in names for statistic in dict.fromkeys(statistics))


def lenses_of(features: Sequence[Feature]) -> frozenset[Lens]:
    """Lenses through which label logits of every layer are wanted."""
    return frozenset(lens for lens in get_args(Lens) if any(f.statistic == lens for f in features))


def values_of(
    features: Sequence[Feature], questions: Sequence[Question], readings: Sequence[Reading], lengths: np.ndarray
) -> np.ndarray:
    """(B, F) float64 features of B completions; NaN where a reading is.

    Args:
        features: F of them.
        questions: of the panel.
        readings: one for each question, B rows each.
        lengths: (B,) characters of the completions, as judged.
    """
    by_name = {q.name: (q, r) for q, r in zip(questions, readings, strict=True)}
    columns = []
    for feature in features:
        if feature.question:
            question, reading = by_name[feature.question]
            assert question.prompt.labels is not None
            found = STATISTICS[feature.statistic](reading, question.prompt.labels.values).double()
            columns.append(torch.where(torch.isfinite(found), found, torch.nan).numpy())
        else:
            columns.append(np.log1p(lengths.astype(float)))
    return np.stack(columns, axis=1) if columns else np.zeros((len(lengths), 0))


def judged_length(prompt: JudgePrompt, row: Mapping[str, Any]) -> int:
    """Characters of a completion as the judge sees it, thoughts treated."""
    return len(to_text(prompt.as_judged(row)["completion"]))


def _mean(logits: Tensor, values: Sequence[float]) -> Tensor:
    """Expected label value; of yes and no the log-odds, which keep resolution where P saturates."""
    of = readouts.log_odds if set(values) == {0.0, 1.0} else readouts.expected_rating
    return of(logits, values)


def _of_layers(lens: Lens) -> Callable[[Reading, Sequence[float]], Tensor]:
    return lambda reading, values: _mean(reading.layer_label_logits[lens].float().mean(1), values)


def _of_labels(of: Callable[[Tensor, Sequence[float]], Tensor]) -> Callable[[Reading, Sequence[float]], Tensor]:
    def read(reading: Reading, values: Sequence[float]) -> Tensor:
        assert reading.label_logprobs is not None
        return of(reading.label_logprobs, values)

    return read


def _log_mass(reading: Reading, values: Sequence[float]) -> Tensor:
    assert reading.label_mass is not None
    return reading.label_mass.double().log()


# Of a question's reading and its label values, (B,) each. "mean": rating points, or nats for yes and no; "sd": standard
# deviation of the label distribution; "entropy": nats; "mass": ln of the labels' share of all tokens' probability;
# "normed", "raw": as the mean, of label logits averaged over all layers, through that lens.
STATISTICS: dict[str, Callable[[Reading, Sequence[float]], Tensor]] = {
    "mean": _of_labels(_mean),
    "sd": _of_labels(lambda logp, values: readouts.variance(logp, values).sqrt()),
    "entropy": _of_labels(lambda logp, values: readouts.entropy(logp)),
    "mass": _log_mass,
    "normed": _of_layers("normed"),
    "raw": _of_layers("raw"),
}
CRITERIA = {
    "asked": "The reply does what the task asks for, all of it.",
    "true": "Everything that the reply states is true.",
    "error": "The reply contains a mistake.",
    "padding": "The reply contains something that the task has no use for.",
}
"""What a panel asks by default besides its prompts, under the prompt `criterion`."""
_AGAINST = ("error", "padding")


def default_questions() -> tuple[Question, ...]:
    """A rating, a verdict, a rating of accuracy, and four criteria, two of which speak against a reply."""
    prompts = [Question(name, JudgePrompt.load(name)) for name in ("weighted", "verifier", "aspect_accuracy")]
    criterion = JudgePrompt.load("criterion")
    asked = [Question(name, criterion, text, -1 if name in _AGAINST else 1) for name, text in CRITERIA.items()]
    return (*prompts, *asked)
