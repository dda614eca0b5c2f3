"""OpenRLHF: a reward file, or (with nothing of this package installed there) the server's own route.

    --reward.remote_url /path/to/latent_rewards/serving/adapters/openrlhf.py
    --reward.remote_url http://judge:8077/get_reward

Dynamic filtering compares the mean of a group's `scores` with `--algo.dynamic_filtering_range` (0 and 1 by default), so
they are the rewards mapped from their bounds to 0..1, as the route does it; a reward without bounds (log-odds) gives
none, OpenRLHF takes the rewards, and the range has to be in their units.

Source: OpenRLHF 0.11.2 `openrlhf/utils/agent.py` (called with one sample, in a thread),
`openrlhf/trainer/ppo_utils/samples_generator.py`.
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
    rewards, bounds = torch.tensor(client().score(rows)), client().bounds
    found = {"rewards": rewards, "extra_logs": {"latent_reward": rewards}}
    if bounds is not None and bounds[0] < bounds[1]:
        low, high = bounds
        found["scores"] = ((rewards - low) / (high - low)).clamp(0.0, 1.0)
    return found
