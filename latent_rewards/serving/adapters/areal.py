"""AReaL: the reward function of its RLVR workflow, one sample a call, in a process pool.

    RLVRWorkflow(reward_fn="latent_rewards.serving.adapters.areal.reward_fn", ...)

AReaL waits 15 seconds, asks three times more, and then counts 0 without an error (`areal/api/reward_api.py`). So
this gives up after 12, with an error; AReaL repeats it as often, and then leaves out the sample with its whole group
and takes the next prompt. Nothing stops: where the judge is away, the run waits for a batch without end. Watch
`rollout/rejected`. Where a judge needs longer, wrap the function in a workflow of your own with
`AsyncRewardWrapper(reward_fn, timeout_seconds=600)` and set LATENT_REWARDS_DEADLINE=590.

Source: AReaL `areal/api/reward_api.py`, `areal/workflow/rlvr.py`, `areal/infra/workflow_executor.py`,
`areal/infra/remote_inf_engine.py`, read on 28 November 2026 at commit cbff54d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import SLOTS, plain_prompt, truth_slots, without_end

SECONDS = 12.0
_TRUTH = ("answer", "solution", "ground_truth", *SLOTS)


def reward_fn(
    prompt: str, completions: str, prompt_ids: Sequence[int], completion_ids: Sequence[int], **data: Any
) -> float:
    """The reward of one completion; `messages` of the data are the prompt, else the decoded one."""
    truth = next((data[name] for name in _TRUTH if data.get(name) is not None), None)
    asked = data.get("messages") or plain_prompt(prompt)
    row = {"prompt": asked, "completion": without_end(completions), **truth_slots(truth, data)}
    (score,) = client(seconds=SECONDS).score([row])
    return score
