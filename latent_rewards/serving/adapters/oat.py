"""oat: a reward oracle.

    class Actor(PPOActor):  # of your run
        def init(self, actor_id, save_path):
            super().init(actor_id, save_path)
            self.oracle = LatentRewardsOracle()

Source: oat `oat/oracles/{base,countdown}.py`, `oat/actors/reward.py`, read on 26 November 2026 at commit c1a074c.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from oat.oracles.base import RewardOracleBase

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import plain_prompt, truth_slots, without_end


class LatentRewardsOracle(RewardOracleBase):
    """Scores responses to inputs; references become those of the judge prompt."""

    def get_reward(
        self, inputs: Sequence[str], responses: Sequence[str], references: Sequence[object], batch_size: int = 4
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """(B,) rewards, in one request, and nothing more to say."""
        rows = [
            {"prompt": plain_prompt(asked), "completion": without_end(said), **truth_slots(truth)}
            for asked, said, truth in zip(inputs, responses, references, strict=True)
        ]
        return torch.tensor(client().score(rows)), {}

    def compare(
        self, inputs: Sequence[str], candidates_A: Sequence[str], candidates_B: Sequence[object], **_: object
    ) -> tuple[np.ndarray, dict[str, float]]:
        """(B,) rewards of A, B being references: how its actors evaluate, the oracles of oat's own maths tasks too."""
        rewards, info = self.get_reward(inputs, candidates_A, candidates_B)
        return rewards.numpy(), info
