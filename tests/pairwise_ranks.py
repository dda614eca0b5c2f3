"""One rank of a small GRPO run on replies against each other: python pairwise_ranks.py POLICY JUDGE OUT."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from latent_rewards import HFJudge, PairwiseReward


def main(policy: str, judge: str, out: str) -> None:
    args = GRPOConfig(
        output_dir=f"{out}/trainer", per_device_train_batch_size=4, num_generations=8, max_completion_length=6,
        max_steps=2, logging_steps=1, report_to="none", bf16=False, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, model_init_kwargs={"dtype": "float32"}, use_cpu=True,
    )  # fmt: skip  # a group of 8 lies on both ranks, 4 on each
    reward = PairwiseReward(HFJudge(judge, dtype="float32", device="cpu"))
    seen: list[Any] = []

    def spy(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float | None]:
        values = reward(prompts=prompts, completions=completions, **kwargs)
        seen.append({"prompts": prompts, "completions": completions, "rewards": values})
        return values

    spy.__name__ = "pairwise"
    data = Dataset.from_list([{"prompt": p} for p in ("Name a prime.", "Say hello.", "Count to three.", "Who?")])
    trainer = GRPOTrainer(policy, reward_funcs=spy, args=args, train_dataset=data)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    Path(out, f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps({"seen": seen, "logs": logs}))
    # With the trainer still held: when it goes, torch waits for threads of gloo that may wait for the interpreter.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
