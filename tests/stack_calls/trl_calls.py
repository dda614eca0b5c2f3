"""Rewards of rows as TRL's command line finds and calls them: python trl_calls.py < rows.json > scores.json."""

import inspect
import json
import sys

from trl import GRPOConfig, GRPOTrainer  # noqa: F401  # what the command line imports first
from trl.scripts import grpo


def main() -> None:
    rows = json.load(sys.stdin)
    source = inspect.getsource(grpo)
    assert "import_module" in source, "TRL finds --reward_funcs by importing them"
    module, _, name = "latent_rewards.env.verifier".rpartition(".")
    function = getattr(__import__(module, fromlist=[name]), name)
    got = function(
        prompts=[r["prompt"] for r in rows], completions=[r["completion"] for r in rows],
        completion_ids=[[1]] * len(rows), reference=[r["reference"] for r in rows],
    )  # fmt: skip
    print(json.dumps({"--reward_funcs latent_rewards.env.verifier": got}))


if __name__ == "__main__":
    main()
