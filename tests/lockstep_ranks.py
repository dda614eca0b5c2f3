"""One rank of a judge that two ranks share: python lockstep_ranks.py JUDGE OUT [tp], started by torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from latent_rewards import HFJudge, ProbabilityWeightedReward, Request
from latent_rewards.judge.lockstep import LockstepJudge


def main(folder: str, out: str, mode: str = "whole") -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    options = {"tp_plan": "auto"} if mode == "tp" else {"device": "cpu"}
    reward = ProbabilityWeightedReward(LockstepJudge(HFJudge(folder, dtype="float32", **options)))
    facts: dict[str, object] = {"scores": []}
    for step in range(2):
        n = (3, 0)[rank] if step == 0 else (1, 2)[rank]  # different numbers of rows, one rank without any
        rows = [f"{rank} {step} {i}" for i in range(n)]
        values = (
            reward.score(rows, rows) if n else reward.judge.read([Request(reward.prompt, [], reward.need)])[0].reasons
        )
        facts["scores"].append([rows, list(map(float, values))])  # type: ignore[attr-defined]
    try:
        bad = [{"prompt": "p"}] if rank else [{"prompt": "p", "completion": "c"}]
        reward.judge.read([Request(reward.prompt, bad, reward.need)])[0]
    except ValueError as err:
        facts["error"] = str(err)
    if mode == "tp":
        weight = reward.judge.judge.blocks.layers[0].mlp.up_proj.weight
        facts["local"] = list((weight.to_local() if hasattr(weight, "to_local") else weight).shape)
    Path(out, f"rank{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
