"""The reasoning condition: the judge writes feedback first, then the latent score is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latent_rewards.files.types import number, whole
from latent_rewards.judge.fingerprint import layout_of
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.base import Reward, bounds_of, with_prompt_of
from latent_rewards.rewards.latent import LatentReward


class ReasonedReward(Reward):
    """A latent reward read after feedback that the judge wrote itself, or the mean over several feedbacks.

    Args:
        reward: the latent reward; its prompt has a `feedback` slot, as `weighted_reasoned` has.
        feedback_prompt: prompt of kind "generate" that asks for feedback; a rating at its end is cut off.
        rationales: feedbacks per completion; one is greedy, several are sampled and their scores averaged.
        temperature: for several.
        max_new_tokens: of one feedback.
        seed: of the sampling.
        **options: see `Reward`.

    Raises:
        ValueError: the reward's prompt has no `feedback` slot, or the feedback prompt is not for writing.

    Source: Lai et al. 2025 (LAGER), reasoning condition; the mean over rationales follows the use of several rationales
    in reasoning judges.
    """

    kind: ClassVar[str] = "reasoned"

    def __init__(
        self,
        reward: LatentReward,
        *,
        feedback_prompt: str | Path | JudgePrompt = "likert10",
        rationales: int = 1,
        temperature: float = 0.7,
        max_new_tokens: int = 128,
        seed: int = 42,
        **options: Any,
    ) -> None:
        own = reward.prompt
        self.reward, self.by_row = reward._as_part(), reward.by_row
        self.feedback_prompt = JudgePrompt.load(feedback_prompt).with_thoughts(
            own.reasoning, own.thought_tags, keep_unfinished=own.unfinished == "keep", opened=own.opened
        )
        if "feedback" not in reward.prompt.slots:
            raise ValueError(
                f"prompt {reward.prompt.name!r} has no {{{{ feedback }}}} slot; use prompt='weighted_reasoned'"
            )
        if self.feedback_prompt.kind != "generate":
            raise ValueError(f"prompt {self.feedback_prompt.name!r} is of kind 'label'; feedback needs kind 'generate'")
        self.rationales, self.seed = whole(rationales, "rationales"), whole(seed, "seed")
        self.max_new_tokens = whole(max_new_tokens, "max_new_tokens")
        if self.rationales < 1 or self.max_new_tokens < 1:
            raise ValueError(f"rationales and max_new_tokens must be at least 1, got {rationales} and {max_new_tokens}")
        self.temperature = number(temperature, "temperature") if self.rationales > 1 else 0.0
        options.setdefault("name", f"{self.reward.__name__}-reasoned")
        super().__init__(reward.judge, **with_prompt_of(reward, options))

    def options(self) -> dict[str, Any]:
        """The reward, and how the feedback is drawn."""
        return {
            "reward": self.reward.facts, "feedback_prompt": self.feedback_prompt.hash,
            "feedback_layout": layout_of(self.judge, self.feedback_prompt), "rationales": self.rationales,
            "temperature": self.temperature, "max_new_tokens": self.max_new_tokens, "seed": self.seed,
        }  # fmt: skip

    @property
    def score_range(self) -> tuple[float, float]:
        """The reward's bounds."""
        return bounds_of(self.reward)

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rows = self.rows(prompts, completions, {k: v for k, v in columns.items() if k != "feedback"})
        texts = self.judge.generate(
            self.feedback_prompt, rows, n=self.rationales, temperature=self.temperature,
            max_new_tokens=self.max_new_tokens, seed=self.seed,
        )  # fmt: skip
        scores, facts = [], {"metrics": {}, "reasons": ["the judge wrote no feedback"] * len(rows)}
        floor = self.reward.floor_unfinished
        for k in range(self.rationales):
            feedback = [(t[k] or "").split("[RESULT]")[0].strip() for t in texts]
            score, facts = self.reward._rewards(prompts, completions, {**columns, "feedback": feedback})
            mute = [t[k] is None and (floor is None or s != floor) for t, s in zip(texts, score, strict=True)]
            scores.append(np.where(mute, np.nan, score))
        stacked = np.stack(scores)
        seen = (~np.isnan(stacked)).sum(0)
        return np.where(seen > 0, np.nansum(stacked, 0) / np.maximum(seen, 1), np.nan), facts
