"""What each process of `accelerate launch` runs in test_features.py: features of a tiny judge into one folder."""

from __future__ import annotations

import sys

from accelerate import PartialState

from latent_rewards import HFJudge, JudgePrompt
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.examples import Example

ROWS = 22
EXAMPLES = [
    Example(f"Question {i // 2}?", f"Answer {i}: " + "word " * (i % 5), float(i % 2), i // 2) for i in range(ROWS)
]


def collect(judge_folder: str, folder: str) -> None:
    """Features of all examples, in shards of four."""
    judge = HFJudge(judge_folder, dtype="float32", device="cpu")
    collect_features(
        judge, JudgePrompt.load("weighted"), EXAMPLES, [1, 3], folder=folder, dtype="float32", shard_rows=4
    )


if __name__ == "__main__":
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    collect(*sys.argv[1:3])
    state.wait_for_everyone()
