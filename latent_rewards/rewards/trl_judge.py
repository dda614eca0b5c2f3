"""The pairwise judge that older TRL takes in place of reward functions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from latent_rewards.compat import pairwise_judge_base
from latent_rewards.judge.hf import Judge
from latent_rewards.rewards.base import MissingScoreError
from latent_rewards.rewards.games import sigmoid
from latent_rewards.rewards.pairwise import PairwiseReward


def pairwise_judge(judge: Judge | str = "embedded", **options: Any) -> Any:
    """A judge for `OnlineDPOTrainer(judge=...)`, `NashMDTrainer` and `XPOTrainer` of TRL that has `BasePairwiseJudge`.

    Every pair is read in both orders, as `PairwiseReward` reads it; so `shuffle_order` changes nothing. Asked for
    scores, as NashMD does, it gives P(the first is better).

    Args:
        judge: a judge, or a model name.
        **options: see `PairwiseReward`, all but its opponents. With `on_missing="none"` a pair that cannot be read has
            rank -1, as TRL's judges say it; by default it raises, since the trainers take -1 for "the second won".

    Raises:
        ImportError: this TRL has no judges, or is not installed; says what to use.
    """
    reward = PairwiseReward(judge, opponents="column", column="other", **options)
    return _judge_class(pairwise_judge_base())(reward)


@functools.cache
def _judge_class(base: type) -> type:
    class LatentPairwiseJudge(base):
        """TRL's pairwise judge on a `PairwiseReward`."""

        def __init__(self, reward: PairwiseReward) -> None:
            self.reward = reward

        def judge(
            self,
            prompts: Sequence[Any],
            completions: Sequence[Sequence[Any]],
            shuffle_order: bool = True,
            return_scores: bool = False,
        ) -> list[int] | list[float]:
            """Index of the better completion of each pair, 0 for a tie; or P(the first is better)."""
            d, reasons = _odds(self.reward, prompts, completions)
            missing = np.flatnonzero(np.isnan(d))
            if len(missing) and (return_scores or self.reward.on_missing != "none"):
                why = f"{len(missing)} of {len(d)} pairs cannot be read, first {missing[0]}: {reasons[missing[0]]}"
                raise MissingScoreError(f"{self.reward.__name__}: {why}")
            if return_scores:
                return [float(p) for p in sigmoid(d)]
            return [-1 if np.isnan(x) else int(x < 0) for x in d]

    return LatentPairwiseJudge


def _odds(
    reward: PairwiseReward, prompts: Sequence[Any], completions: Sequence[Sequence[Any]]
) -> tuple[np.ndarray, list[str | None]]:
    """(B,) log-odds that the first of each pair is better, and why a pair has none."""
    wrong = next((i for i, pair in enumerate(completions) if isinstance(pair, str) or len(pair) != 2), None)
    if wrong is not None:
        raise ValueError(f"row {wrong}: expected two completions, got {completions[wrong]!r:.60}")
    firsts, seconds = [pair[0] for pair in completions], [pair[1] for pair in completions]
    return reward.score_with_reasons(list(prompts), firsts, other=seconds)
