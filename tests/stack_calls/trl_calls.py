"""Rewards of rows as TRL's `trl grpo` calls them: python trl_calls.py TOKENIZER < rows.json > scores.json.

The script's own parser and `main` build the trainer; in place of training it is asked for the rewards of the rows.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOTrainer
from trl.scripts.grpo import main as grpo
from trl.scripts.grpo import make_parser

REWARD = "latent_rewards.env.verifier"


def write_policy(folder: str, tokenizer_folder: str) -> None:
    """A tiny policy, written by the transformers that is here: older ones do not read newer folders."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{tokenizer_folder}/tokenizer.json", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


class Asked(Exception):
    """The trainer is built, and has said what it was asked."""


def main() -> None:
    rows, scores = json.load(sys.stdin), []

    def ask(trainer: GRPOTrainer, **_: object) -> None:
        inputs = [{"prompt": r["prompt"], "reference": r["reference"]} for r in rows]
        prompts, completions = [r["prompt"] for r in rows], [r["completion"] for r in rows]
        scores.extend(trainer._calculate_rewards(inputs, prompts, completions, [[1]] * len(rows))[:, 0].tolist())
        raise Asked

    with tempfile.TemporaryDirectory() as folder, patch.object(GRPOTrainer, "train", ask):
        data, policy = Path(folder, "data"), f"{folder}/policy"
        data.mkdir()
        (data / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        write_policy(policy, sys.argv[1])
        line = ["--model_name_or_path", policy, "--dataset_name", str(data), "--output_dir", f"{folder}/out",
                "--reward_funcs", REWARD, "--use_cpu", "--bf16", "False", "--report_to", "none"]  # fmt: skip
        try:
            grpo(*make_parser().parse_args_and_config(line, fail_with_unknown_args=False))
        except Asked:
            print(json.dumps({f"trl grpo --reward_funcs {REWARD}": scores}))


if __name__ == "__main__":
    main()
