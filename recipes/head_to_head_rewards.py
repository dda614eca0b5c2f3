"""The rewards of the head-to-head, as a run's configuration names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latent_rewards import GuidedLikertReward, Reward, build_reward
from latent_rewards.judge.hf import Judge, Reading
from latent_rewards.rewards.likert import sample_ratings


class FreshRatings(GuidedLikertReward):
    """Ratings drawn anew for every answer of every step, as a judge that is asked again gives them."""

    def ratings(self, reading: Reading, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(B, n_samples) ratings; the stream goes on from call to call."""
        if self.temperature == 0:
            return super().ratings(reading, rows)
        assert reading.label_logprobs is not None
        self._stream = getattr(self, "_stream", None) or np.random.default_rng(self.seed)
        drawn = self._stream.random((len(rows), self.n_samples))
        return sample_ratings(reading.label_logprobs.double().numpy(), self.values, drawn, self.temperature)


def make_reward(options: Mapping[str, Any], judge: Judge, seed: int) -> Reward | None:
    """The reward of a run; None for gold. Guided ratings are drawn anew each time."""
    options = dict(options)
    kind = str(options.pop("reward"))
    if kind == "gold":
        return None
    if kind in ("likert5", "likert10") and options.pop("guided", False):
        return FreshRatings(judge, scale_points=5 if kind == "likert5" else 10, seed=seed, **options)
    return build_reward(kind, judge, **options)
