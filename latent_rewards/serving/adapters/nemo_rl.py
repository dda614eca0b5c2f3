"""NeMo-RL: an environment of one turn.

    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.environments.utils import register_env
    name = "latent_rewards.serving.adapters.nemo_rl.LatentRewardsEnvironment"
    ACTOR_ENVIRONMENT_REGISTRY[name] = PY_EXECUTABLES.SYSTEM
    register_env("latent_rewards", name)

    env: {latent_rewards: {server: http://judge:8077}}
    data: {default: {env_name: latent_rewards}}

The user's content is the prompt as the chat template renders it (the messages themselves are not there); a usual
template is taken apart again, and a system message that the template puts in by itself is one of the prompt. What
the data processor puts into `extra_env_info` under `ground_truth` is the reference.

Source: NeMo-RL `nemo_rl/environments/{interfaces,utils,reward_model_environment}.py`, `nemo_rl/data/processors.py`,
read on 26 November 2026 at commit 7ea279a.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import plain_turns, truth_slots, without_end


@ray.remote
class LatentRewardsEnvironment(EnvironmentInterface):
    """Scores the last message of each log, given those before it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.client = client(config.get("server"), config.get("reward"))

    def step(self, message_log_batch: list[list[dict[str, Any]]], metadata: list[Any]) -> Any:
        """One request for the whole batch; every episode ends."""
        logs = [[{"role": m["role"], "content": m["content"]} for m in log] for log in message_log_batch]
        rows = []
        for log, about in zip(logs, metadata, strict=True):
            facts = about if isinstance(about, dict) else {}
            truth = truth_slots(facts.get("ground_truth"), facts)
            rows.append({"prompt": plain_turns(log[:-1]), "completion": without_end(log[-1]["content"]), **truth})
        scores = self.client.score(rows)
        n = len(scores)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": f"Environment: {score}"} for score in scores],
            metadata=[None] * n, next_stop_strings=[None] * n, rewards=torch.tensor(scores),
            terminateds=torch.ones(n, dtype=torch.bool), answers=[log[-1]["content"] for log in logs],
        )  # fmt: skip

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """Mean reward."""
        rewards = batch["total_reward"] if "total_reward" in batch else batch.get("rewards")
        return batch, {} if rewards is None else {"latent_rewards/mean": float(torch.as_tensor(rewards).float().mean())}
