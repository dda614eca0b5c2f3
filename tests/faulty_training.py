"""A small GRPO run that something happens to; test_faults.py calls it, or starts it alone or as two ranks.

python tests/faulty_training.py POLICY JUDGE OUT FAULT
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PROMPTS = ["Name a prime.", "Say hello.", "Count to three.", "What is a dog?"]
STEPS = 4


class Recorded:
    """A reward that writes down what it gave at each step, and lets a fault happen before step 2.

    Faults: "wait" (says so in a file and sleeps), "die" (rank 1 is killed), "hang" (rank 1 sleeps), "raise".
    """

    def __init__(self, reward: Any, out: Path, fault: str) -> None:
        self.reward, self.out, self.fault, self.__name__ = reward, out, fault, reward.__name__

    def __call__(self, **kwargs: Any) -> list[float | None]:
        step, rank = kwargs["trainer_state"].global_step, int(os.environ.get("RANK", "0"))
        if step == 2 and (rank == 1 or self.fault in ("wait", "raise")):
            self._happen(rank)
        rewards = self.reward(**kwargs)
        line = {"step": step, "rank": rank, "rewards": rewards, "completions": kwargs["completions"]}
        with (self.out / "rewards.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return rewards

    def _happen(self, rank: int) -> None:
        if self.fault == "raise":
            raise RuntimeError("the judge's device is gone")
        if self.fault == "die":
            (self.out / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault in ("wait", "hang"):
            (self.out / "here").write_text(str(time.time()))
            time.sleep(600)


def train(policy: str, judge: Any, out: Path, fault: str = "", *, resume: bool = False, **changes: Any) -> Any:
    """Four steps with a checkpoint after each; the trainer comes back."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from latent_rewards import HFJudge, ProbabilityWeightedReward

    reward = ProbabilityWeightedReward(HFJudge(judge) if isinstance(judge, str) else judge, name="kept")
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "max_steps": STEPS,
        "logging_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "steps",
        "save_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": 1e-2, "seed": 3,
    }  # fmt: skip
    args = GRPOConfig(output_dir=str(out), **options | changes)
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer = GRPOTrainer(policy, reward_funcs=Recorded(reward, out, fault), args=args, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def recorded(out: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was rewarded there; a step that was done again counts as it was done last."""
    return {line["step"]: line for line in map(json.loads, (out / "rewards.jsonl").read_text().splitlines())}


if __name__ == "__main__":
    if (
        "DDP_TIMEOUT" in os.environ
    ):  # what `ddp_timeout` does on an accelerator; on CPU transformers does not pass it on
        from datetime import timedelta

        import torch

        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=int(os.environ["DDP_TIMEOUT"])))
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
