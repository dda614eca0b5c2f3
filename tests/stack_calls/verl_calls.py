"""Rewards of rows as verl's reward loop asks for them: python verl_calls.py TOKENIZER < rows.json > scores.json."""

import asyncio
import json
import os
import sys

import numpy as np
import torch
from hydra import compose, initialize_config_module
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager

# The lines of docs/stacks.md, on verl's own defaults.
LINES = [
    "reward.custom_reward_function.path=pkg://latent_rewards.serving.adapters.verl",
    "reward.custom_reward_function.name=compute_score",
    f"+reward.custom_reward_function.reward_kwargs.server={os.environ.pop('LATENT_REWARDS_SERVER')}",
]


def main() -> None:
    rows, tokenizer = json.load(sys.stdin), AutoTokenizer.from_pretrained(sys.argv[1])
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=LINES)

    async def score() -> dict[str, list[float]]:
        function, manager = get_custom_reward_fn(config), load_reward_manager(config, tokenizer)
        out: dict[str, list[float]] = {"get_custom_reward_fn": [], "run_single": []}
        for row in rows:
            info, talk = {"prompt": row["prompt"]}, [{"role": "user", "content": row["prompt"]}]
            asked = {"data_source": "d", "solution_str": row["completion"], "ground_truth": row["reference"]}
            out["get_custom_reward_fn"].append((await function(**asked, extra_info=info))["score"])
            ids = tokenizer(row["completion"], add_special_tokens=False, return_tensors="pt")["input_ids"]
            data = DataProto.from_dict(
                tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
                non_tensors={
                    "data_source": np.array(["d"], dtype=object),
                    "reward_model": np.array([{"ground_truth": row["reference"]}], dtype=object),
                    "extra_info": np.array([{}], dtype=object),
                    "tool_extra_fields": np.array([{"raw_prompt": talk}], dtype=object),  # as the agent loop adds it
                },
            )
            out["run_single"].append((await manager.run_single(data))["reward_score"])
        return out

    print(json.dumps(asyncio.run(score())))


if __name__ == "__main__":
    main()
