"""Is `dtype="auto"` the faster arithmetic here? A judge in float32 and in bfloat16 reads the same texts in turns.

    python -m benchmarks.dtype_choice --judge embedded [--rows 16] [--rounds 3] [--threads 1]

CPU seconds a text, the choice that loading with "auto" makes, and how much slower that is than the better of the two.
Writes `results/dtype-choice-<judge>-<cpu>.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.data import open_ended
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import commit, cpu_kind

RESULTS = Path(__file__).parent / "results"
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    auto = HFJudge(args.judge, dtype="auto", device="cpu")
    chosen = str(auto.blocks.model.dtype).removeprefix("torch.")
    other = next(d for d in DTYPES if d != chosen)
    judges = {chosen: auto, other: HFJudge(args.judge, dtype=other, device="cpu")}
    asked = [row["prompt"] for row in open_ended()][: args.rows]
    said = [f"Here is what I think of it. {text}" for text in asked]
    took: dict[str, list[float]] = {name: [] for name in DTYPES}
    for _ in range(args.rounds + 1):  # the first warms up
        for name in DTYPES:
            judge, reward = judges[name], ProbabilityWeightedReward(judges[name])
            judge.forget()
            judge.forward.cache.clear()
            began = time.process_time()
            reward.score(asked, said)
            took[name].append((time.process_time() - began) / len(asked))
    seconds = {name: statistics.median(each[1:]) for name, each in took.items()}
    name = Path(args.judge).name
    report = {
        "command": f"python -m benchmarks.dtype_choice --judge {name} --rows {args.rows} --threads {args.threads}",
        "commit": commit(), "cpu": cpu_kind(), "torch": torch.__version__, "judge": name, "rounds": args.rounds,
        "cpu_seconds_a_text": seconds, "chosen": chosen, "probe": auto.arithmetic,
        "slower_than_the_better": seconds[chosen] / min(seconds.values()) - 1,
    }  # fmt: skip
    (RESULTS / f"dtype-choice-{name}-{cpu_kind()}.json").write_text(to_json(report, indent=1) + "\n")
    print(to_json(report, indent=1))


if __name__ == "__main__":
    main()
