"""Rewards of rows as ms-swift's GRPO asks for them: python ms_swift_calls.py < rows.json > scores.json."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.utils import import_external_file


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder, "latent_plugin.py")  # as docs/stacks.md has it
        plugin.write_text("import latent_rewards.serving.adapters.ms_swift\n")
        import_external_file(str(plugin))
    rows, function = json.load(sys.stdin), orms["latent_rewards"](args=None)
    samples = [
        GRPOSample.from_row({
            "messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}],
            "solution": r["reference"],
        })
        for r in rows
    ]  # fmt: skip
    got = compute_rewards_per_func(samples, [function], [None], torch.device("cpu"))
    print(json.dumps({"compute_rewards_per_func": got[:, 0].tolist()}))


if __name__ == "__main__":
    main()
