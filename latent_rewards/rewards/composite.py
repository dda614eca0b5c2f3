"""A reward less what it gives to a baseline, both read in one forward."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from latent_rewards.files.types import number
from latent_rewards.judge.hf import Need, Reading, Request
from latent_rewards.judge.prompts import to_text
from latent_rewards.rewards.base import with_prompt_of
from latent_rewards.rewards.latent import LatentReward, check_members, first_reasons


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
        check_members("ContrastiveReward", reward)
        if not reward.by_row:
            raise ValueError(f"{reward.__name__} compares the replies to a prompt; without their task there is no such")
        self.reward, self.against, self.weight = reward._as_part(), against, number(weight, "weight")
        options.setdefault("name", f"{self.reward.__name__}-vs-{against}")
        super().__init__(reward.judge, **with_prompt_of(reward, options))

    def _prepare(self) -> None:
        """What is contrasted has been checked already."""

    def options(self) -> dict[str, Any]:
        """What is contrasted with what, and how much."""
        return {"reward": self.reward.facts, "against": self.against, "weight": self.weight}

    @property
    def score_range(self) -> tuple[float, float]:
        """From the lowest score less the highest baseline to the highest less the lowest, and the reward's floor."""
        with np.errstate(invalid="ignore"):
            low, high = np.sort(self.reward._finish(np.array(self.reward.score_range))).tolist()
        taken = sorted((self.weight * low, self.weight * high)) if self.weight else [0.0, 0.0]
        floor = [] if self.reward.floor_unfinished is None else [self.reward.floor_unfinished]
        return min(low - taken[1], *floor, np.inf), max(high - taken[0], *floor, -np.inf)

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

    def facts_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> dict[str, Any]:
        """Those of the reward on the rows themselves."""
        return self.reward.facts_of(rows, readings[: len(readings) // 2])

    def scores_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) differences, in the reward's units; the reward's floor for a reply that ends inside its thought."""
        own = len(readings) // 2
        scores, _ = self.reward.rewards_of(rows, readings[:own])
        baselines, _ = self.reward.rewards_of([self.baseline(r) for r in rows], readings[own:])
        return np.where(self.reward.floored(scores, rows), scores, scores - self.weight * baselines)


def shuffled(text: str) -> str:
    """The words of a text in an order that depends on the text alone; white space stays where it is."""
    parts = re.split(r"(\s+)", text)
    words = parts[::2]
    random.Random(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()).shuffle(words)
    parts[::2] = words
    return "".join(parts)
