"""What share of a GRPO step on CPU the judge takes, beside writing the completions and the update.

    python -m benchmarks.step_share [--judge embedded] [--groups 4 8 16] [--steps 3] [--tokens 48]

TRL's GRPOTrainer with the embedded policy (LoRA, bfloat16) and one reward, `weighted`; a step is one prompt with G
completions of at most `--tokens` tokens. Figures are of the median step, the first left out: its seconds, those of the
judge (`weighted/seconds`), and how these split into encoding, forward and readout (`judge.spent`). Writes
`results/step-share-<judge>-<cpu>.json`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.data import open_ended
from latent_rewards.engine.loading import resolve_model
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import commit, cpu_kind

RESULTS = Path(__file__).parent / "results"


def measure(judge: HFJudge, g: int, steps: int, tokens: int) -> dict[str, Any]:
    """Seconds of the median step and of the judge in it."""
    asked = [[{"role": "user", "content": row["prompt"]}] for row in open_ended()[: steps + 1]]
    rows, before = Dataset.from_dict({"prompt": asked}), replace(judge.spent)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=resolve_model("embedded"), reward_funcs=ProbabilityWeightedReward(judge), train_dataset=rows,
            peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            args=GRPOConfig(
                output_dir=folder, per_device_train_batch_size=g, num_generations=g, max_steps=steps + 1,
                max_completion_length=tokens, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
                bf16=True, gradient_checkpointing=False, beta=0.0, disable_tqdm=True, shuffle_dataset=False,
                model_init_kwargs={"dtype": "bfloat16"},
            ),
        )  # fmt: skip
        trainer.train()
    logs = [row for row in trainer.state.log_history if "step_time" in row][1:]
    parts = {name: getattr(judge.spent, name) - s for name, s in asdict(before).items()}
    step = statistics.median(row["step_time"] for row in logs)
    judged = statistics.median(row["weighted/seconds"] for row in logs)
    return {
        "completions": g, "tokens_a_completion": statistics.mean(row["completions/mean_length"] for row in logs),
        "step_seconds": step, "judge_seconds": judged, "judge_share": judged / step,
        "judge_split": {name: s / sum(parts.values()) for name, s in parts.items()},
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge = HFJudge(args.judge, device="cpu")
    assert judge.forward.usable, judge.forward.sharing
    cells = [measure(judge, g, args.steps, args.tokens) for g in args.groups]
    name = Path(args.judge).name
    report = {
        "command": f"python -m benchmarks.step_share --judge {name} --groups {' '.join(map(str, args.groups))} "
        f"--steps {args.steps} --tokens {args.tokens} --threads {args.threads}",
        "commit": commit(), "cpu": cpu_kind(), "torch": torch.__version__, "judge": name,
        "arithmetic": judge.arithmetic, "groups": cells,
    }  # fmt: skip
    (RESULTS / f"step-share-{name}-{cpu_kind()}.json").write_text(to_json(report, indent=1) + "\n")
    print(to_json(report, indent=1))


if __name__ == "__main__":
    main()
