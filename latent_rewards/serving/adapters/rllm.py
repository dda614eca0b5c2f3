"""rLLM: an evaluator of its agents, and a reward function of its workflows.

    AgentTrainer(..., evaluator=latent_evaluator)  # as it is: `rllm.evaluator` would leave the instruction out
    AgentTrainer(..., workflow_args={"reward_function": latent_reward_fn})

`SimpleWorkflow` calls its reward function in the event loop, so every other rollout waits for each reward; an evaluator
is called in a thread.

Source: rLLM `rllm/eval/{types,_resolution,reward_fns/_helpers}.py`, `rllm/engine/agentflow_engine.py`,
`rllm/workflows/simple_workflow.py`, `rllm/rewards/reward_types.py`, read on 26 November 2026 at commit 9beb6e0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import truth_slots, without_end

# The order in which its workflow looks for them; the last is what a task of its data sets has.
_ASKED = ("messages", "question", "prompt", "problem", "instruction")


class LatentEvaluator:
    """Scores an episode's final answer.

    Its task has no annotation: to one annotated as a dict rLLM passes the metadata alone, without the instruction.
    """

    def evaluate(self, task, episode):
        """The server's reward as an `EvalOutput`; one above 0 is called correct, as rLLM itself does with numbers."""
        from rllm.eval.reward_fns._helpers import extract_answer_text
        from rllm.eval.types import EvalOutput

        if isinstance(task, Mapping):
            facts, asked = task, None
        else:
            facts, asked = task.metadata, task.instruction or None
        if isinstance(asked, list):  # content blocks
            asked = [{"role": "user", "content": asked}]
        reward = _score(facts, extract_answer_text(episode), asked)
        return EvalOutput(reward=reward, is_correct=reward > 0)


latent_evaluator = LatentEvaluator()


def latent_reward_fn(task_info: Mapping[str, Any], action: Any) -> Any:
    """The reward of an answer (a text or an `Action`) to the task, as a `RewardOutput`."""
    from rllm.rewards.reward_types import RewardOutput

    return RewardOutput(reward=_score(task_info, str(getattr(action, "action", action))))


def _score(facts: Mapping[str, Any], said: str, asked: Any = None) -> float:
    if asked is None:
        asked = next((facts[name] for name in _ASKED if facts.get(name) is not None), None)
    if asked is None:
        raise ValueError(f"the task has none of {_ASKED}, and without what was asked nothing can be judged")
    row = {"prompt": asked, "completion": without_end(said), **truth_slots(facts.get("ground_truth"), facts)}
    return client().score([row])[0]
