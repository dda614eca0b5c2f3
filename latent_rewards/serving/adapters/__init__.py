"""A judge server in other RL stacks: one small module each, for the entry point that the stack offers.

The server's URL comes from `LATENT_REWARDS_SERVER`, its token from `LATENT_REWARDS_TOKEN`, the name of the reward
from `LATENT_REWARDS_REWARD` (default: the server's first), seconds after which a request is given up from
`LATENT_REWARDS_DEADLINE` (default: a little less than the stack waits, 600 where it waits for ever). A score that
cannot be read is an error here: no reward function of these stacks can leave a row out. What a stack makes of an error
is in docs/stacks.md: most stop, some go on without the sample, or count 0.
"""

from __future__ import annotations

import functools
import os

from latent_rewards.serving.client import RewardClient


@functools.cache
def client(url: str | None = None, reward: str | None = None, *, seconds: float = 600.0) -> RewardClient:
    """The client of this process; connections are pooled. `seconds` is the deadline unless the environment has one."""
    deadline = float(os.environ.get("LATENT_REWARDS_DEADLINE") or seconds)
    return RewardClient(url, reward=reward or os.environ.get("LATENT_REWARDS_REWARD") or None, deadline=deadline)
