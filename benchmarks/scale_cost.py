"""What a finer scale costs: tokens read and CPU time of `letters` and `hundred` against `weighted`.

    python -m benchmarks.scale_cost --rows 16        # writes benchmarks/results/scale-cost.json

The embedded judge in float32, one thread; every prompt reads the same rows in turns, nothing kept between them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.data import open_ended
from latent_rewards.files.runs import provenance

RESULTS = Path(__file__).parent / "results"
PROMPTS = ("weighted", "letters", "hundred")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge = HFJudge("embedded", dtype="float32", device="cpu")
    asked = [row["prompt"] for row in open_ended()][: args.rows]
    said = [f"Here is what I think of it. {text}" for text in asked]
    rewards = {name: ProbabilityWeightedReward(judge, prompt=name) for name in PROMPTS}
    tokens: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in PROMPTS}
    for _ in range(args.repeats + 1):  # the first warms up
        for name, reward in rewards.items():
            judge.forget()
            judge.forward.cache.clear()
            before, started = judge.forward.tokens_run, time.process_time()
            reward.score(asked, said)
            seconds[name].append(time.process_time() - started)
            tokens[name] = judge.forward.tokens_run - before
    took = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    facts = {
        name: {
            "labels": len(reward.values), "nodes": len(judge.trie(reward.prompt).contexts),
            "tokens": tokens[name], "seconds": took[name], "tokens_ratio": tokens[name] / tokens["weighted"],
            "time_ratio": took[name] / took["weighted"],
        }
        for name, reward in rewards.items()
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    out = provenance("benchmarks.scale_cost") | {"rows": len(asked), "repeats": args.repeats, "prompts": facts}
    (RESULTS / "scale-cost.json").write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
