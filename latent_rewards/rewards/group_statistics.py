"""What a batch of rewards tells a trainer that compares completions of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latent_rewards.files.keys import prompt_key


def group_statistics(prompts: Sequence[Any], rewards: np.ndarray) -> dict[str, float]:
    """How much a batch of rewards tells GRPO; groups are rows with the same prompt content, wherever they stand.

    Args:
        prompts: B prompts.
        rewards: (B,) with NaN for missing ones.

    Returns:
        `spread`: mean within-group standard deviation; `tie_share`: share of same-prompt pairs with equal rewards;
        `flat_groups`: share of groups of two or more whose rewards are all equal (they give GRPO no gradient);
        `missing`: share of rows without reward. NaN where no group has two rewards.
    """
    groups: dict[str, list[float]] = {}
    for prompt, reward in zip(prompts, rewards, strict=True):
        key = prompt_key(prompt)
        groups.setdefault(key, [])
        if not np.isnan(reward):
            groups[key].append(float(reward))
    several = [np.asarray(g) for g in groups.values() if len(g) > 1]
    if not several:
        nan = float("nan")
        return {"spread": nan, "tie_share": nan, "flat_groups": nan, "missing": _share(np.isnan(rewards))}
    pairs = [(g[:, None] == g[None, :])[np.triu_indices(len(g), 1)] for g in several]
    return {
        "spread": float(np.mean([g.std() for g in several])),
        "tie_share": _share(np.concatenate(pairs)),
        "flat_groups": _share(np.array([g.min() == g.max() for g in several])),
        "missing": _share(np.isnan(rewards)),
    }


def _share(flags: np.ndarray) -> float:
    return float(np.mean(flags)) if len(flags) else float("nan")
