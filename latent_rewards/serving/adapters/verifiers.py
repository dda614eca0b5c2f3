"""verifiers (v1): a judge that reads probabilities, plugged into a task or called from its code.

    # latent_judge.py, beside your environment: verifiers loads plugins by top-level module name
    from latent_rewards.serving.adapters.verifiers import *
    from latent_rewards.serving.adapters.verifiers import __all__  # by which the loader finds the judge

    --env.taskset.task.judges '[{"id": "latent_judge", "server": "http://judge:8077"}]'

Source: verifiers 0.4.0 `verifiers/v1/{judge,task}.py`, `verifiers/v1/configs/task.py`,
`verifiers/v1/utils/loaders.py`.
"""

from __future__ import annotations

from typing import Any

import verifiers.v1 as vf
from verifiers.v1.judge import judge_question

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import SLOTS, truth_slots

__all__ = ["LatentJudge", "LatentJudgeConfig"]


class LatentJudgeConfig(vf.JudgeConfig):
    """Where the judge server is, which of its rewards to take, and which fields of a task hold question and answer."""

    server: str | None = None
    reward: str | None = None
    question_field: str = ""
    answer_field: str = "answer"


class LatentJudge(vf.Judge[float, LatentJudgeConfig]):
    """The server's reward of the last reply to the task's question."""

    async def score(self, task: vf.TaskData, trace: vf.Trace) -> float:
        """One request; raises when there is no score, which verifiers does not hold against the model."""
        config: Any = self.config
        facts = {name: getattr(task, name, None) for name in SLOTS}
        truth = truth_slots(getattr(task, config.answer_field, None), facts)
        row = {"prompt": judge_question(task, config.question_field), "completion": trace.last_reply, **truth}
        (score,) = await client(config.server, config.reward).score_async([row])
        return score
