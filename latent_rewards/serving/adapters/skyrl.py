"""SkyRL: a text environment of one turn.

    from skyrl_gym.envs import register
    register(id="latent_rewards", entry_point="latent_rewards.serving.adapters.skyrl:LatentRewardsEnv")

inside the Ray task that runs the experiment (`skyrl_entrypoint`), and `env_class: latent_rewards` in the data. SkyRL
passes only variables that it names on to Ray: on a cluster that already runs, put LATENT_REWARDS_SERVER and the others
into Ray's `runtime_env`.

Source: SkyRL `skyrl-gym/skyrl_gym/envs/base_text_env.py`, `skyrl/train/generators/skyrl_gym_generator.py`,
`examples/train/multiply/main_multiply.py`, read on 26 November 2026 at commit a956457.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import truth_slots, without_end


class LatentRewardsEnv(BaseTextEnv):
    """Scores the answer to the prompt; `reward_spec.ground_truth` of the data is the reference."""

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.extras = dict(extras or {})
        self.prompt: Any = self.extras.get("prompt")

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Remember what was asked."""
        self.prompt = prompt
        return prompt, {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """One request; the episode ends."""
        spec = self.extras.get("reward_spec") or {}
        truth = truth_slots(spec.get("ground_truth") if isinstance(spec, Mapping) else None, self.extras)
        (score,) = client().score([{"prompt": self.prompt, "completion": without_end(action), **truth}])
        return BaseTextEnvStepOutput(observations=[], reward=score, done=True, metadata={})
