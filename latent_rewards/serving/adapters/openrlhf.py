"""OpenRLHF: a reward file, or (with nothing of this package installed there) the server's own route.

    --reward.remote_url /path/to/latent_rewards/serving/adapters/openrlhf.py
    --reward.remote_url http://judge:8077/get_reward

Source: OpenRLHF `openrlhf/utils/agent.py` (called with one sample, in a thread).
"""

from __future__ import annotations

from typing import Any

import torch

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import plain_prompt, split_query, truth_slots


def reward_func(queries: list[str], prompts: list[str], labels: list[Any]) -> dict[str, Any]:
    """Rewards of decoded prompt-and-completion texts, special tokens included; a label is the reference."""
    rows = [
        {"prompt": plain_prompt(prompt), "completion": split_query(query, prompt), **truth_slots(label)}
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]
    rewards = torch.tensor(client().score(rows))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"latent_reward": rewards}}
