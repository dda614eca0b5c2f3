"""rLLM: an evaluator of its agents, and a reward function of its workflows.

    AgentTrainer(..., evaluator=rllm.evaluator(latent_evaluator))
    AgentTrainer(..., workflow_args={"reward_function": latent_reward_fn})

Source: rLLM `rllm/eval/{rollout_decorator,reward_fns/_helpers}.py`, `rllm/workflows/simple_workflow.py`,
`rllm/rewards/reward_types.py`, read on 26 November 2026 at commit 9beb6e0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import truth_slots, without_end

_ASKED = ("messages", "question", "prompt", "problem")  # the order in which its workflow looks for them


def latent_evaluator(task: Any, episode: Any) -> float:
    """The reward of an episode's final answer to the task; rLLM calls one above 0 correct."""
    from rllm.eval.reward_fns._helpers import extract_answer_text

    facts = task if isinstance(task, Mapping) else {"question": task.instruction or None} | dict(task.metadata)
    return _score(facts, extract_answer_text(episode))


def latent_reward_fn(task_info: Mapping[str, Any], action: Any) -> Any:
    """The reward of an answer (a text or an `Action`) to the task, as a `RewardOutput`."""
    from rllm.rewards.reward_types import RewardOutput

    return RewardOutput(reward=_score(task_info, str(getattr(action, "action", action))))


def _score(facts: Mapping[str, Any], said: str) -> float:
    asked = next((facts[name] for name in _ASKED if facts.get(name) is not None), None)
    if asked is None:
        raise ValueError(f"the task has none of {_ASKED}, and without what was asked nothing can be judged")
    row = {"prompt": asked, "completion": without_end(said), **truth_slots(facts.get("ground_truth"), facts)}
    return client().score([row])[0]
