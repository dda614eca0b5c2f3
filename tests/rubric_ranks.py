"""One rank of a small GRPO run with a rubric list for each row: python rubric_ranks.py POLICY JUDGE OUT [THOUGHTS]."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from latent_rewards import HFJudge, RubricReward

ROWS = [
    {"prompt": "Name a prime.", "rubrics": ["It names a number.", {"criterion": "It is prime.", "points": 3}]},
    {"prompt": "Say hello.", "rubrics": ["It greets."]},
    {"prompt": "Count to three.", "rubrics": ["It counts.", "too long " * 900]},  # cannot be read
    {"prompt": "What is a dog?", "rubrics": [f"Criterion {i} holds." for i in range(9)]},
]


def main(policy: str, judge: str, out: str) -> None:
    args = GRPOConfig(
        output_dir=f"{out}/trainer", per_device_train_batch_size=4, num_generations=4, max_completion_length=6,
        max_steps=2, logging_steps=1, report_to="none", bf16=False, save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, model_init_kwargs={"dtype": "float32"}, use_cpu=True,
    )  # fmt: skip
    reward = RubricReward(HFJudge(judge, dtype="float32", device="cpu", max_length=1200))
    seen: list[Any] = []

    def spy(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float | None]:
        completions = [c if i % 4 else f"<think>{c}" for i, c in enumerate(completions)]  # one of a group never answers
        values = reward(prompts=prompts, completions=completions, **kwargs)
        seen.append({"prompts": prompts, "completions": completions, "rubrics": kwargs["rubrics"], "rewards": values})
        return values

    spy.__name__ = "rubric_list"
    # TRL hands columns on as they stand in the data; one JSON text a row, since Arrow wants one type for all items.
    data = Dataset.from_list([{**row, "rubrics": json.dumps(row["rubrics"])} for row in ROWS])
    trainer = GRPOTrainer(policy, reward_funcs=spy, args=args, train_dataset=data)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    Path(out, f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps({"seen": seen, "logs": logs}))
    # With the trainer still held: when it goes, torch waits for threads of gloo that may wait for the interpreter.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
