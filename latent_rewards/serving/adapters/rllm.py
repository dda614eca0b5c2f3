"""rLLM: a reward function of its agents and environments.

    SingleTurnEnvironment(..., reward_fn=latent_reward_fn)     # from latent_rewards.serving.adapters.rllm

Source: rLLM `rllm/rewards/reward_fn.py`, read on 26 November 2026 at commit 33f147a.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rllm.rewards.reward_types import RewardOutput

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import truth_slots, without_end

_ASKED = ("question", "prompt", "problem")


def latent_reward_fn(task_info: Mapping[str, Any], action: Any) -> RewardOutput:
    """The reward of an answer to the task's `question`; its `ground_truth` is the reference.

    Raises:
        ValueError: a task without question.
    """
    asked = next((task_info[name] for name in _ASKED if task_info.get(name) is not None), None)
    if asked is None:
        raise ValueError(f"the task has none of {_ASKED}, and without what was asked nothing can be judged")
    said = without_end(str(getattr(action, "action", action)))
    row = {"prompt": asked, "completion": said, **truth_slots(task_info.get("ground_truth"), task_info)}
    (score,) = client().score([row])
    return RewardOutput(reward=score, metadata={})
