"""How the cost of a latent reward grows: with G, prompt length, completion length, number of rewards, batch budget.

python -m benchmarks.scaling --threads 1     # writes benchmarks/results/scaling-<cpu>-<threads>t.json and .png

Random token ids, so that every length is exact; nothing is kept between runs unless the sweep is about that. Theory:
cost is a straight line in G and in completion length, close to one in prompt length (attention adds a small square),
flat in the number of rewards and in the batch budget. Each point is the least CPU time of the repeats.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latent_rewards import CrossLayerReward, HFJudge, ProbabilityWeightedReward
from latent_rewards.engine.tree import TreeForward
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import command, commit, cpu_kind, machine
from latent_rewards.rewards.base import Reward

HEAD, PROMPT, COMPLETION, G = 96, 512, 64, 8
SWEEPS = ("g", "prompt", "completion", "budget", "rewards")


def texts(g: int, prompt: int, completion: int, *, vocab: int, seed: int = 0) -> list[list[int]]:
    """G random sequences that share a head and a prompt."""
    rng = random.Random(seed)
    shared = [rng.randrange(100, vocab) for _ in range(HEAD + prompt)]
    return [[*shared, 100 + i, *(rng.randrange(100, vocab) for _ in range(completion - 1))] for i in range(g)]


def cost(forward: TreeForward, sequences: list[list[int]], repeats: int) -> tuple[float, int]:
    """(CPU seconds, tokens run) of reading the last state of each sequence with an empty cache."""
    best = float("inf")
    for _ in range(repeats):
        forward.cache.clear()
        forward.tokens_run = 0
        began = time.process_time()
        forward.read(sequences, [[len(s) - 1] for s in sequences])
        best = min(best, time.process_time() - began)
    return best, forward.tokens_run


def rewards_cost(judge: HFJudge, kinds: list[type[Reward]], repeats: int) -> tuple[float, int]:
    """(CPU seconds, forwards) of several rewards on the same rows."""
    rewards = [kind(judge, name=f"r{i}") for i, kind in enumerate(kinds)]
    prompts = ["Explain how tides work. " * 20] * G
    best, forwards = float("inf"), 0
    for r in range(repeats):
        judge.forget()
        judge.forward.cache.clear()
        completions = [f"{r}.{i} The moon pulls on the water of the sea. " * 4 for i in range(G)]
        before, began = judge.forwards, time.process_time()
        for reward in rewards:
            reward.score(prompts, completions)
        best, forwards = min(best, time.process_time() - began), judge.forwards - before
    return best, forwards


def sweep(judge: HFJudge, small: bool, repeats: int, only: Sequence[str] = SWEEPS) -> dict[str, Any]:
    """The sweeps: name -> {"x", "seconds", "tokens"}."""
    forward, vocab = judge.forward, judge.blocks.config.vocab_size
    few: Callable[[list[int]], list[int]] = lambda xs: xs[:2] if small else xs  # noqa: E731
    plans = {
        "completions per prompt (G)": (few([1, 2, 4, 8, 16, 32]), lambda x: (x, PROMPT, COMPLETION)),
        "prompt tokens": (few([64, 256, 512, 1024, 1536]), lambda x: (G, x, COMPLETION)),
        "completion tokens": (few([16, 32, 64, 128, 256]), lambda x: (G, PROMPT, x)),
        "batch budget, tokens (G = 32)": (few([512, 1024, 2048, 4096, 8192]), lambda x: (32, PROMPT, COMPLETION)),
    }
    out: dict[str, Any] = {}
    cost(forward, texts(2, 64, 16, vocab=vocab), 1)
    budget = forward.batch_tokens
    for short, (name, (xs, shape)) in zip(SWEEPS, plans.items(), strict=False):
        points = []
        for x in xs if short in only else ():
            forward.ways.batch_tokens = x if short == "budget" else budget
            points.append(cost(forward, texts(*shape(x), vocab=vocab), repeats))
        if points:
            out[name] = {"x": xs, "seconds": [p[0] for p in points], "tokens": [p[1] for p in points]}
    forward.ways.batch_tokens = budget
    if "rewards" in only:
        xs = few([1, 2, 4, 6])
        points = [rewards_cost(judge, [ProbabilityWeightedReward] * x, repeats) for x in xs]
        out["rewards on one prompt"] = {"x": xs, "seconds": [p[0] for p in points], "forwards": [p[1] for p in points]}
        # Last, since a judge remembers what its rewards need.
        both, _ = rewards_cost(judge, [ProbabilityWeightedReward, CrossLayerReward], repeats)
        out["rewards on one prompt"]["with_cross_layer"] = both
    return out


def line(x: list[int], y: list[float]) -> dict[str, float]:
    """Least-squares line and its R^2."""
    slope, intercept = np.polyfit(x, y, 1)
    left, total = np.square(np.polyval([slope, intercept], x) - y).sum(), np.square(y - np.mean(y)).sum()
    return {"slope": float(slope), "intercept": float(intercept), "r2": float(1 - left / total) if total else 1.0}


def checks(curves: dict[str, Any]) -> dict[str, float]:
    """The figures that the curves stand for."""
    out = {f"R2: {name}": c["line"]["r2"] for name, c in curves.items() if name not in ("rewards on one prompt",)}
    g = curves.get("completions per prompt (G)", {"x": [], "seconds": []})
    at = dict(zip(g["x"], g["seconds"], strict=True))
    if {1, 8, 16} <= at.keys():
        shared = g["line"]["intercept"]
        out["8 -> 16 completions: growth of the completions' own share"] = (at[16] - shared) / (at[8] - shared)
    rewards = curves.get("rewards on one prompt")
    if rewards:
        seconds = rewards["seconds"]
        out["second reward on the same prompt: extra"] = seconds[1] / seconds[0] - 1
        if "with_cross_layer" in rewards:
            out["cross-layer reward on the same prompt: extra"] = rewards["with_cross_layer"] / seconds[0] - 1
    return out


def draw(curves: dict[str, Any], path: Path, title: str) -> None:
    """One panel per sweep; the dashed line is the least-squares fit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 3.2), layout="constrained", squeeze=False)
    for axis, (name, c) in zip(axes[0], curves.items(), strict=True):
        axis.plot(c["x"], c["seconds"], "o-", color="C0")
        axis.plot(c["x"], np.polyval([c["line"]["slope"], c["line"]["intercept"]], c["x"]), "--", color="0.6")
        axis.set(xlabel=name, ylim=(0, 1.1 * max(c["seconds"])))
    axes[0, 0].set_ylabel("CPU seconds per call")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, check, draw."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--only", nargs="+", default=SWEEPS, choices=SWEEPS, help="some of the sweeps")
    p.add_argument("--small", action="store_true", help="two points per curve, to try the script")
    p.add_argument("--dtype", default="auto")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    judge = HFJudge("embedded", dtype=args.dtype)
    curves = sweep(judge, args.small, args.repeats, args.only)
    for c in curves.values():
        c["line"] = line(c["x"], c["seconds"])
    report = {
        "command": command("benchmarks.scaling", argv),
        "commit": commit(), "machine": machine(), "threads": args.threads, "repeats": args.repeats,
        "fixed": {"head": HEAD, "prompt": PROMPT, "completion": COMPLETION, "G": G},
        "checks": checks(curves), "curves": curves,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    part = "" if set(args.only) == set(SWEEPS) else "-" + "-".join(args.only)
    stem = args.out / f"scaling-{cpu_kind()}-{args.threads}t{part}"
    stem.with_suffix(".json").write_text(to_json(report, indent=1) + "\n")
    draw(curves, stem.with_suffix(".png"), f"SmolLM2-135M, {args.threads} thread(s), commit {report['commit']}")
    print(to_json(report["checks"], indent=1))
    return report


if __name__ == "__main__":
    main()
