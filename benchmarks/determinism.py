"""How far a score moves with its batch, on real pairs: the largest change, and the share of pairs whose order flips.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.determinism --pairs 600 --dtypes bfloat16 float32

Three levels: the same batch again (bit-identical), other batches, orders and groupings (a bound), and
`batch_invariant=True` (bit-identical for any batching), with its cost on the same texts in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latent_rewards import HFJudge, JudgePrompt, Need, readouts
from latent_rewards.evaluation import benchmarks

FILES = ("hh_harmless", "llmbar", "llmbar_casestudy", "hhh_alignment", "autoj", "rm_bench", "alpacaeval_lenmatched")
PROMPT, NEED = JudgePrompt.load("weighted"), Need(labels=True)


def rows_of(count: int, max_chars: int) -> list[dict[str, Any]]:
    """Two rows for each of `count` pairs, the files taking turns."""
    sets = [list(benchmarks.load(f"pairwise/{name}", max_chars=max_chars).items) for name in FILES]
    turns = [items[k] for k in range(max(map(len, sets))) for items in sets if k < len(items)]
    return [{"prompt": i.prompt, "completion": r} for i in turns[:count] for r in i.responses]


def scores(judge: HFJudge, rows: list[dict[str, Any]], batches: list[list[int]]) -> tuple[np.ndarray, float]:
    """(B,) ratings read in the given batches, and CPU seconds."""
    assert PROMPT.labels is not None
    out, started = np.full(len(rows), np.nan), time.process_time()
    for batch in batches:
        reading = judge.read(PROMPT, [rows[i] for i in batch], NEED)
        assert reading.label_logprobs is not None
        out[batch] = readouts.expected_rating(reading.label_logprobs, PROMPT.labels.values).numpy()
        judge._remembered.clear()
    return out, time.process_time() - started


def cut(order: list[int], size: int) -> list[list[int]]:
    """Batches of one size."""
    return [order[i : i + size] for i in range(0, len(order), size)]


def ragged(n: int, seed: int) -> list[list[int]]:
    """Random order, batches of random sizes from 1 to 48."""
    rng = random.Random(seed)
    order, out = rng.sample(range(n), n), []
    while order:
        size = rng.randint(1, 48)
        out.append(order[:size])
        order = order[size:]
    return out


def change(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Largest and mean change in rating points, share of pairs whose order changes, and whether every bit agrees."""
    signs = [np.sign(x[::2] - x[1::2]) for x in (a, b)]
    return {
        "largest": float(np.nanmax(np.abs(a - b))),
        "mean": float(np.nanmean(np.abs(a - b))),
        "flips": float((signs[0] != signs[1]).mean()),
        "identical": bool(np.array_equal(a, b, equal_nan=True)),
        "pairs": len(a) // 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--max-chars", type=int, default=400)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--invariant-pairs", type=int, default=24, help="pairs read in --batchings random batchings")
    parser.add_argument("--batchings", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/determinism.json"))
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results: dict[str, Any] = {"commit": commit, "machine": platform.processor() or platform.machine()}
    results |= {"threads": torch.get_num_threads(), "judge": args.judge, "max_chars": args.max_chars, "dtypes": {}}
    rows = rows_of(args.pairs, args.max_chars)
    order = list(range(len(rows)))
    for dtype in args.dtypes:
        judge = HFJudge(args.judge, dtype=dtype, device="cpu")
        first, seconds = scores(judge, rows, cut(order, 64))
        some = order[:128]
        again, _ = scores(judge, rows, cut(some, 64))
        facts: dict[str, Any] = {
            "same_batch": change(first[some], again[some]),
            "other_batches": change(first, scores(judge, rows, ragged(len(rows), 1))[0]),
            "spread": float(np.nanstd(first)),
        }
        few = rows[: 2 * args.invariant_pairs]
        invariant = HFJudge(args.judge, dtype=dtype, device="cpu", batch_invariant=True)
        alone, _ = scores(invariant, few, cut(list(range(len(few))), 1))
        same = 0
        for seed in range(args.batchings):
            invariant.forward.cache.clear()
            same += change(alone, scores(invariant, few, ragged(len(few), seed))[0])["identical"]
        invariant.forward.cache.clear()
        costs = [scores(j, few, cut(list(range(len(few))), 64))[1] for j in (invariant, judge)]
        facts["batch_invariant"] = {
            "identical_batchings": same, "batchings": args.batchings, "pairs": args.invariant_pairs,
            "cost": costs[0] / costs[1], "to_default": change(alone, first[: len(few)]),
        }  # fmt: skip
        facts["cpu_seconds"] = seconds
        results["dtypes"][dtype] = facts
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1))
        print(dtype, json.dumps(facts))


if __name__ == "__main__":
    main()
