"""One rank of a small GRPO run, started by `accelerate launch`: python grpo_ranks.py POLICY JUDGE OUT [DEEPSPEED.json].

JUDGE is the URL of a judge server, or the folder of a judge to load in this process. Each rank writes what its rewards
were called with and gave; rank 0 writes the trainer's log.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from latent_rewards import CrossLayerReward, HFJudge, ProbabilityWeightedReward, VerifierReward
from latent_rewards.serving import ServerJudge

PROMPTS = ["Name a prime.", "Say hello.", "Count to three.", "What is a dog?"]


def main(policy: str, where: str, out: str, deepspeed: str | None = None) -> None:
    if deepspeed:
        from accelerate.state import DistributedType, PartialState
        from deepspeed import comm, ops

        # Accelerate takes DeepSpeed for accelerators only: with cpu=True it leaves it out, without it sees one process.
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_CPU)

        ops.__compatible_ops__["deepspeed_shm_comm"] = False  # plain gloo: nothing to compile before the first step
        comm.init_distributed(dist_backend="gloo")  # before its configuration asks how many ranks there are
    args = GRPOConfig(
        output_dir=f"{out}/trainer", per_device_train_batch_size=2, num_generations=4, max_completion_length=6,
        max_steps=2, logging_steps=1, report_to="none", bf16=False, save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False, deepspeed=deepspeed, model_init_kwargs={"dtype": "float32"},
        use_cpu=deepspeed is None,
    )  # fmt: skip
    judge: Any = ServerJudge(where) if where.startswith("http") else HFJudge(where, dtype="float32", device="cpu")
    rewards = [ProbabilityWeightedReward(judge), CrossLayerReward(judge), VerifierReward(judge)]
    seen: list[Any] = []

    def spy(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float | None]:
        values = rewards[0](prompts=prompts, completions=completions, **kwargs)
        seen.append({"prompts": prompts, "completions": completions, "rewards": values})
        return values

    spy.__name__ = "weighted"
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer = GRPOTrainer(policy, reward_funcs=[spy, *rewards[1:]], args=args, train_dataset=data)
    facts = {"zero3": deepspeed is not None and any(hasattr(p, "ds_id") for p in trainer.model.parameters())}
    trainer.train()
    if isinstance(judge, HFJudge):
        parameters = dict(judge.blocks.model.named_parameters())
        facts |= {"judge_sharded": any(p.numel() == 0 or hasattr(p, "ds_id") for p in parameters.values()),
                  "judge_nan": any(bool(torch.isnan(p).any()) for p in parameters.values())}  # fmt: skip
    rank = int(os.environ.get("RANK", "0"))
    logs = [row for row in trainer.state.log_history if "loss" in row]
    facts |= {"seen": seen, "forwards": judge.forwards, "logs": logs, "world": int(os.environ.get("WORLD_SIZE", "1"))}
    Path(out, f"rank{rank}.json").write_text(json.dumps(facts))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    # With the trainer still held: when it goes, torch waits for threads of gloo that may wait for the interpreter.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
