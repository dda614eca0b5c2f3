"""One rank of a run whose jury learns its statistics: python jury_ranks.py OUT, started by torchrun."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import torch.distributed as dist
from contracts import FakeJudge, trl_kwargs

from latent_rewards import EnsembleReward, ProbabilityWeightedReward, VerifierReward


def ensemble(**options: object) -> EnsembleReward:
    judges = [FakeJudge(), FakeJudge()]
    members = [ProbabilityWeightedReward(judges[0]), VerifierReward(judges[1])]
    return EnsembleReward(members, how="mean", running=True, **options)


def main(out: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    together, own = (
        ensemble(statistics=Path(out, f"{ranks}.json"), ranks=ranks, name=f"{ranks}-{rank}") for ranks in ("all", "own")
    )
    raw = []
    for step in range(3):
        n = (3, 0)[rank] if step == 1 else (1, 2)[rank]
        rows = [f"{rank} {step} {i}" for i in range(n)]
        for reward in (together, own):
            reward(prompts=rows, completions=rows, **trl_kwargs(n))
        raw.append(np.stack([m.score(rows, rows) for m in together.rewards]).reshape(2, n).tolist())
    said: list[str] = []

    def elsewhere() -> None:
        try:
            together(prompts=["p"], completions=["c"], **trl_kwargs(1))
        except RuntimeError as err:
            said.append(str(err))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    facts = {
        "location": together.location, "scales": together.scales, "raw": raw, "own": own.location,
        "same text": together.score(["p"] * 2, ["x", "y"]).tolist(), "members": together.standard.members,
        "in a thread": said[0],
    }  # fmt: skip
    Path(out, f"rank{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
