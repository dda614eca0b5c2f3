"""Rewards that are one pure readout of what the judge has read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latent_rewards import readouts
from latent_rewards.files.types import number
from latent_rewards.judge.hf import Judge, Need, Reading
from latent_rewards.judge.reading import Request
from latent_rewards.rewards.base import Reward

logger = logging.getLogger(__name__)

Readout = Literal["mean", "lower", "median", "mode", "sd"]


class LatentReward(Reward):
    """A reward that is one pure readout of the judge's `Reading`.

    Attributes:
        staged: what is read depends on what was read before, so `requests` itself has the judge read.
    """

    staged = False

    @property
    def need(self) -> Need:
        """What this readout asks of the forward."""
        return Need(labels=True)

    def readout(self, reading: Reading) -> Tensor:
        """(B,) scores of a reading; rewards that ask for several readings have `scores_of` instead."""
        raise NotImplementedError(f"{type(self).__name__} is no readout of one reading; use scores_of")

    def requests(self, rows: Sequence[Mapping[str, Any]]) -> list[Request]:
        """What the judge has to read to score B rows."""
        wanted = {"prompt", "completion", *self.prompt.slots}  # rows may hold what other rewards take
        return [Request(self.prompt, [{k: v for k, v in row.items() if k in wanted} for row in rows], self.need)]

    def scores_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) float64 scores, NaN where there is none, from the readings of `requests(rows)`."""
        scores = self.readout(readings[0])
        return torch.where(torch.isfinite(scores), scores, torch.nan).double().numpy()

    def _prepare(self) -> None:
        missing = {
            "labels": self.need.labels,
            "hidden": bool(self.need.hidden),
            "layer_logits": bool(self.need.layer_logits),
            "target": self.need.target,
        }
        lacks = sorted(k for k, v in missing.items() if v and k not in self.judge.capabilities)
        if lacks:
            raise ValueError(
                f"{type(self).__name__} needs {lacks}, which judge {self.judge.name!r} cannot give (it gives "
                f"{sorted(self.judge.capabilities)}); use an HFJudge, or our judge server around one"
            )
        self.judge.check(self.prompt, self.need)

    def _read_together(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> float:
        """One forward for all rewards that a trainer has on this judge: it is about to call them on the same rows.

        Which ones it has is what it called since it last called this one, so a reward's first call reads for itself
        alone. Rewards of other prompts cost their questions only. Left alone: rewards that these rows lack a column
        for, and calls outside a trainer, whose rows no other reward may ever see.
        """
        from_trainer = {"trainer_state", "completion_ids", "log_metric"} & columns.keys()
        if not from_trainer or not prompts:
            return 0.0
        together: list[Request] = []
        sharing, started = [], time.perf_counter()
        rewards = sorted(self.judge.readers.called(self), key=lambda r: r.__name__)
        for reward in rewards if len(rewards) > 1 else ():
            given = {"prompt", "completion", *(k for k, v in columns.items() if v is not None)}
            if set(reward.required) <= given:
                together += reward.requests(reward.rows(prompts, completions, columns))
                sharing.append(reward)
        if len(together) < 2:
            return 0.0
        try:
            self.judge.read(together)
        except ValueError as err:  # the reward that cannot be read says so itself, if it is called
            logger.debug("reading one reward at a time: %s", err)
        spent = time.perf_counter() - started
        self.judge.readers.share(sharing, spent)
        return self.judge.readers.settle(self) - spent

    @property
    def values(self) -> tuple[float, ...]:
        """Value of each label of the prompt."""
        assert self.prompt.labels is not None
        return self.prompt.labels.values

    def _label_range(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rows = self.rows(prompts, completions, columns)
        if not rows:
            return np.zeros(0), {"metrics": {}, "reasons": []}
        return self._scored(rows, self.judge.read(self.requests(rows)), columns)

    def _scored(
        self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """(B,) scores, and what to log, of what has been read."""
        mass = readings[0].label_mass
        metrics = {} if mass is None else {"label_mass": float(mass.nanmean())}
        facts = {"metrics": metrics, "reasons": self.reasons(rows, readings)}
        if "log_metric" in columns or "log_extra" in columns:
            more = self.facts_of(rows, readings)
            facts |= {"metrics": metrics | more.get("metrics", {}), "extra": more.get("extra", {})}
        return self.scores_of(rows, readings), facts

    def reasons(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> list[str]:
        """(B,) why each row has no score, if it has none: what the first reading says that could not read it."""
        every = zip(*(reading.reasons for reading in readings), strict=True)
        return [next((why for why in row if why), UNKNOWN) for row in every]

    def rewards_of(
        self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]
    ) -> tuple[np.ndarray, list[str | None]]:
        """(B,) rewards from the readings of `requests(rows)`, as this reward gives them alone, and why a row has none.

        Scaled, clipped, and with its floor for replies that end inside their thought.
        """
        scores = self.scores_of(rows, readings)
        why = self.reasons_first(scores, self.reasons(rows, readings), [row["completion"] for row in rows])
        return self.finish(scores, why), why

    def floored(self, rewards: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(B,) which of these rewards are the floor of a reply that ends inside its thought."""
        if self.floor_unfinished is None:
            return np.zeros(len(rows), dtype=bool)
        cut = np.array([self.prompt.ends_in_thought(row["completion"]) for row in rows], dtype=bool)
        return cut & (rewards == self.floor_unfinished)

    def facts_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> dict[str, Any]:
        """What else a trainer's log shows: "metrics" (name -> float) and "extra" (column -> B texts)."""
        return {}


UNKNOWN = "the judge gave NaN"


def uncertainty(reading: Reading, values: Sequence[float]) -> dict[str, float]:
    """Mean standard deviation of the label distribution over the rows that were read, as a metric; none without any."""
    assert reading.label_logprobs is not None
    spread = readouts.variance(reading.label_logprobs, values).sqrt()
    return {} if bool(spread.isnan().all()) else {"uncertainty": float(spread.nanmean())}


def first_reasons(*several: Sequence[str]) -> list[str]:
    """For each row the first reason that says anything, of the reasons that members of a reward give."""
    return [next((why for why in row if why != UNKNOWN), UNKNOWN) for row in zip(*several, strict=True)]


class ProbabilityWeightedReward(LatentReward):
    """Expected rating under the judge's label distribution, in rating points (0..10 with the default prompt).

    Args:
        judge: a judge, or a model name.
        readout: of the distribution: "mean"; "lower" the mean less `k` standard deviations (risk-averse); "median",
            "mode"; or "sd", the standard deviation itself, which says how unsure the judge is.
        k: standard deviations of "lower".
        **options: see `Reward`.

    Source: Girrbach et al. 2025, eq. 1 (arXiv 2509.24678), for the mean.
    """

    kind = "weighted"

    def __init__(
        self, judge: Judge | str = "embedded", *, readout: Readout = "mean", k: float = 1.0, **options: Any
    ) -> None:
        if readout not in _READOUTS:
            raise ValueError(f"readout must be one of {tuple(_READOUTS)}, got {readout!r}")
        self.of_distribution, self.k = readout, number(k, "k")
        if self.k < 0:
            raise ValueError(f"k must be at least 0 standard deviations, got {k}")
        super().__init__(judge, **options)

    def _default_name(self) -> str:
        return super()._default_name() + ("" if self.of_distribution == "mean" else f"-{self.of_distribution}")

    def options(self) -> dict[str, Any]:
        """What is taken of the distribution, where it is not the mean."""
        k = {"k": self.k} if self.of_distribution == "lower" else {}
        return {} if self.of_distribution == "mean" else {"readout": self.of_distribution, **k}

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest label value; half their distance for "sd", and for "lower" what two labels can reach."""
        low, high = self._label_range()
        if self.of_distribution == "sd":
            return 0.0, (high - low) / 2
        reach = (1 - np.sqrt(1 + self.k**2)) / 2 if self.of_distribution == "lower" else 0.0
        return low + (high - low) * float(reach), high

    def readout(self, reading: Reading) -> Tensor:
        """(B,) rating points."""
        assert reading.label_logprobs is not None
        return _READOUTS[self.of_distribution](reading.label_logprobs, self.values, self.k)

    def facts_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> dict[str, Any]:
        """Mean standard deviation of the ratings."""
        return {"metrics": uncertainty(readings[0], self.values)}


class VerifierReward(LatentReward):
    """P(yes) to a yes/no question, or its log-odds.

    Args:
        judge: a judge, or a model name.
        output: "p" in [0, 1], renormalised over yes and no, or "log_odds", which keeps resolution where p saturates.
        **options: see `Reward`.

    Source: Girrbach et al. 2025, eq. 2.
    """

    kind = "verifier"
    default_prompt = "verifier"

    def __init__(
        self, judge: Judge | str = "embedded", *, output: Literal["p", "log_odds"] = "p", **options: Any
    ) -> None:
        if output not in ("p", "log_odds"):
            raise ValueError(f"output must be 'p' or 'log_odds', got {output!r}")
        self.output = output
        super().__init__(judge, **options)
        if set(self.values) != {0.0, 1.0}:
            raise ValueError(
                f"VerifierReward needs labels with values 0 and 1; prompt {self.prompt.name!r} has {self.values}"
            )

    def options(self) -> dict[str, Any]:
        """The output."""
        return {"output": self.output}

    @property
    def score_range(self) -> tuple[float, float]:
        """0 to 1; log-odds have no ends."""
        return self._label_range() if self.output == "p" else super().score_range

    def readout(self, reading: Reading) -> Tensor:
        """(B,) probability or nats."""
        assert reading.label_logprobs is not None
        function = readouts.p_yes if self.output == "p" else readouts.log_odds
        return function(reading.label_logprobs, self.values)

    def facts_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> dict[str, Any]:
        """Mean standard deviation of the answer, sqrt(p (1 - p))."""
        return {"metrics": uncertainty(readings[0], self.values)}


# (B, K) label log-probabilities, (K,) values, k -> (B,); see `ProbabilityWeightedReward`.
_READOUTS: dict[str, Callable[[Tensor, Sequence[float], float], Tensor]] = {
    "mean": lambda logp, v, k: readouts.expected_rating(logp, v),
    "lower": readouts.lower_bound,
    "median": lambda logp, v, k: readouts.quantile(logp, v, 0.5),
    "mode": lambda logp, v, k: readouts.mode(logp, v),
    "sd": lambda logp, v, k: readouts.variance(logp, v).sqrt(),
}


def check_members(owner: str, *members: object, example: str = "VerifierReward(judge)") -> None:
    """What a reward is made of.

    Raises:
        TypeError: a member is no reward that is read from a forward; says what one looks like.
    """
    for member in members:
        if not isinstance(member, LatentReward):
            raise TypeError(f"{owner} is made of rewards, as in {owner}({example}), not of a {type(member).__name__}")
