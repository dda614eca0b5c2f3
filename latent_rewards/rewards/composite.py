"""Rewards made of rewards on one judge: differences to a baseline, and ensembles. All are read in one forward."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from latent_rewards.judge.hf import Need, Reading, Request
from latent_rewards.judge.prompts import to_text
from latent_rewards.rewards.base import bounds_of, with_prompt_of
from latent_rewards.rewards.latent import LatentReward, first_reasons


class ContrastiveReward(LatentReward):
    """Score of the completion minus its score where it should not score: what is liked whatever was asked cancels out.

    score = S(completion | prompt) - weight S(baseline)

    Args:
        reward: what is contrasted.
        against: "task" shows the same completion under an empty task, so that phrases which please a judge under any
            task gain nothing; "shuffled" shows the completion's words in another order under the same task.
        weight: of the baseline.
        **options: see `Reward`; the prompt is the contrasted reward's own.

    A baseline with an empty completion is left out on purpose: it is the same for all completions of a prompt, so it
    changes no order among them.
    """

    kind = "contrastive"

    def __init__(
        self,
        reward: LatentReward,
        *,
        against: Literal["task", "shuffled"] = "task",
        weight: float = 1.0,
        **options: Any,
    ) -> None:
        if against not in ("task", "shuffled"):
            raise ValueError(f"against must be 'task' or 'shuffled', got {against!r}")
        if not reward.by_row:
            raise ValueError(f"{reward.__name__} compares the replies to a prompt; without their task there is no such")
        self.reward, self.against, self.weight = reward._as_part(), against, float(weight)
        options.setdefault("name", f"{self.reward.__name__}-vs-{against}")
        super().__init__(reward.judge, **with_prompt_of(reward, options))

    def _prepare(self) -> None:
        """What is contrasted has been checked already."""

    def options(self) -> dict[str, Any]:
        """What is contrasted with what, and how much."""
        return {"reward": self.reward.facts, "against": self.against, "weight": self.weight}

    @property
    def score_range(self) -> tuple[float, float]:
        """From the lowest score less the highest baseline to the highest less the lowest."""
        low, high = bounds_of(self.reward)
        taken = sorted((self.weight * low, self.weight * high)) if self.weight else [0.0, 0.0]
        return low - taken[1], high - taken[0]

    @property
    def inputs(self) -> tuple[str, ...]:
        """As the reward."""
        return self.reward.inputs

    def rows(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As the reward."""
        return self.reward.rows(prompts, completions, columns)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """As the reward."""
        self.reward.check_row(row)

    @property
    def need(self) -> Need:
        """As the reward."""
        return self.reward.need

    def baseline(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row that a row is contrasted with."""
        if self.against == "task":
            return {**row, "prompt": ""}
        return self.reward.prompt.as_judged(row, lambda said: shuffled(to_text(said)))

    def requests(self, rows: Sequence[Mapping[str, Any]]) -> list[Request]:
        """Those of the rows, then those of their baselines."""
        return [*self.reward.requests(rows), *self.reward.requests([self.baseline(r) for r in rows])]

    def reasons(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> list[str]:
        """Those of the rows, then of their baselines."""
        own = len(readings) // 2
        baselines = [self.baseline(r) for r in rows]
        return first_reasons(self.reward.reasons(rows, readings[:own]), self.reward.reasons(baselines, readings[own:]))

    def scores_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) differences, in the reward's units."""
        own = len(readings) // 2
        return self.reward._finish(self.reward.scores_of(rows, readings[:own])) - self.weight * self.reward._finish(
            self.reward.scores_of([self.baseline(r) for r in rows], readings[own:])
        )


class EnsembleReward(LatentReward):
    """Several rewards on one judge as one: the lowest, or the mean, of their standardised scores.

    score = min_i or mean_i of (S_i - location_i) / scale_i

    Args:
        rewards: two or more, on one judge.
        how: "min" (an attack has to fool all of them) or "mean".
        location: of each reward's scores; see `fit`.
        scales: of each reward's scores; see `fit`.
        **options: see `Reward`; each member has its own prompt.

    Raises:
        ValueError: fewer than two rewards, several judges, or statistics that do not fit.
    """

    kind = "ensemble"

    def __init__(
        self,
        rewards: Sequence[LatentReward],
        *,
        how: Literal["min", "mean"] = "min",
        location: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        if how not in ("min", "mean"):
            raise ValueError(f"how must be 'min' or 'mean', got {how!r}")
        if len(rewards) < 2 or any(r.judge is not rewards[0].judge for r in rewards):
            raise ValueError("an ensemble needs two rewards or more on the same judge object")
        self.rewards, self.how = [r._as_part() for r in rewards], how
        self._set(location or [0.0] * len(rewards), scales or [1.0] * len(rewards))
        options.setdefault("name", f"{how}-" + "-".join(r.__name__ for r in self.rewards))
        super().__init__(rewards[0].judge, **with_prompt_of(rewards[0], options))

    def options(self) -> dict[str, Any]:
        """The members with their location and scale, and how they are put together."""
        members = [reward.facts for reward in self.rewards]
        return {"rewards": members, "how": self.how, "location": self.location, "scales": self.scales}

    @property
    def score_range(self) -> tuple[float, float]:
        """The lowest, or the mean, of the members' standardised ends."""
        ends = (np.array([bounds_of(r) for r in self.rewards]).T - self.location) / self.scales
        low, high = ends.min(1) if self.how == "min" else ends.mean(1)
        return float(low), float(high)

    def _set(self, location: Sequence[float], scales: Sequence[float]) -> None:
        n = len(self.rewards)
        if len(location) != n or len(scales) != n or not all(np.isfinite(location)) or not all(s > 0 for s in scales):
            raise ValueError(f"need a finite location and a positive scale for each of {n} rewards")
        self.location, self.scales = [float(x) for x in location], [float(x) for x in scales]

    def fit(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> EnsembleReward:
        """Take location and scale of each reward from its scores of some completions; gives itself back.

        Raises:
            ValueError: a reward scores none of them, or all alike.
        """
        scores = [r.score(prompts, completions, **columns) for r in self.rewards]
        known = [s[~np.isnan(s)] for s in scores]
        flat = [r.__name__ for r, s in zip(self.rewards, known, strict=True) if len(s) < 2 or s.std() == 0]
        if flat:
            raise ValueError(f"{flat} score these {len(prompts)} completions all alike; nothing to standardise by")
        self._set([float(s.mean()) for s in known], [float(s.std()) for s in known])
        return self

    def _prepare(self) -> None:
        """The members have been checked already."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of all rewards."""
        return tuple(dict.fromkeys(name for reward in self.rewards for name in reward.inputs))

    @property
    def required(self) -> tuple[str, ...]:
        """What any reward requires."""
        return tuple(dict.fromkeys(name for reward in self.rewards for name in reward.required))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """As every reward."""
        for reward in self.rewards:
            reward.check_row(row)

    @property
    def need(self) -> Need:
        """As the first reward."""
        return self.rewards[0].need

    def requests(self, rows: Sequence[Mapping[str, Any]]) -> list[Request]:
        """Those of all rewards."""
        return [request for reward in self.rewards for request in reward.requests(rows)]

    def scores_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) standardised; NaN where any reward has no score."""
        parts = []
        for (reward, own), location, scale in zip(self._split(rows, readings), self.location, self.scales, strict=True):
            parts.append((reward._finish(reward.scores_of(rows, own)) - location) / scale)
        stacked = np.stack(parts)
        return stacked.min(0) if self.how == "min" else stacked.mean(0)

    def reasons(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> list[str]:
        """Those of the first reward that has some."""
        return first_reasons(*(reward.reasons(rows, own) for reward, own in self._split(rows, readings)))

    def _split(
        self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]
    ) -> list[tuple[LatentReward, Sequence[Reading]]]:
        out, at = [], 0
        for reward in self.rewards:
            n = len(reward.requests(rows))
            out.append((reward, readings[at : at + n]))
            at += n
        return out


def shuffled(text: str) -> str:
    """The words of a text in an order that depends on the text alone; white space stays where it is."""
    parts = re.split(r"(\s+)", text)
    words = parts[::2]
    random.Random(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()).shuffle(words)
    parts[::2] = words
    return "".join(parts)
