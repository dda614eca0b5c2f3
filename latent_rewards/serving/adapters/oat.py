"""oat: a reward oracle.

    class Actor(...):  # of your run
        def __init__(self, ...): ...; self.oracle = LatentRewardsOracle()

Source: oat `oat/oracles/base.py`, read on 26 November 2026.
"""

from __future__ import annotations

from typing import Any

import torch
from oat.oracles.base import RewardOracleBase

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import plain_prompt, truth_slots, without_end


class LatentRewardsOracle(RewardOracleBase):
    """Scores responses to inputs; references become those of the judge prompt."""

    def get_reward(
        self, inputs: list[str], responses: list[str], references: list[Any], batch_size: int = 4
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """(B,) rewards, in one request, and nothing more to say."""
        rows = [
            {"prompt": plain_prompt(asked), "completion": without_end(said), **truth_slots(truth)}
            for asked, said, truth in zip(inputs, responses, references, strict=True)
        ]
        return torch.tensor(client().score(rows)), {}
