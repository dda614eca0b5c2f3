"""Memory, threads, open files and throughput under mixed random lengths: they must stay flat.

python -m benchmarks.soak --minutes 30 --threads 1     # writes benchmarks/results/soak-<cpu>.json and .png

Every call has another number of prompts, completions and tokens, other layers and depths. Flat means: after the first
fifth of the time (warm-up: caches fill, allocators settle) the largest resident memory is within 2 % of the smallest,
and there are no more threads and open files at the end than there were then. Throughput is tokens per CPU second, of
the last half of that time against the first.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path
from typing import Any

import torch

from latent_rewards import HFJudge
from latent_rewards.engine.tree import TreeForward
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import command, commit, cpu_kind, machine

WARM_UP = 0.2


def rss_mb() -> float:
    """Resident memory of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def call(forward: TreeForward, head: list[int], rng: random.Random, longest: int) -> int:
    """One read of random shape; returns its number of texts."""
    vocab = forward.blocks.config.vocab_size
    sequences = []
    for _ in range(rng.randrange(1, 5)):
        prompt = [rng.randrange(vocab) for _ in range(rng.randrange(1, longest))]
        for _ in range(rng.randrange(1, 9)):
            sequences.append([*head, *prompt, *(rng.randrange(vocab) for _ in range(rng.randrange(1, longest // 2)))])
    positions = [[len(s) - 1] for s in sequences]
    depth = forward.blocks.n_layers
    layers, final = rng.choice([((), True), ((depth // 2,), False), (tuple(range(depth)), True)])
    states = forward.read(sequences, positions, layers=layers, final=final)
    rows = states.final if final else states.inner[layers[0]]
    assert rows is not None and bool(rows.isfinite().all())
    return len(sequences)


def soak(forward: TreeForward, seconds: float, every: float, longest: int) -> tuple[list[dict[str, float]], int]:
    """Readings of the memory, and how many texts were read."""
    rng, texts, readings = random.Random(0), 0, []
    head = [rng.randrange(forward.blocks.config.vocab_size) for _ in range(96)]
    began = due = time.perf_counter()

    def reading() -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - began, "rss_mb": rss_mb(), "cache_mb": forward.cache.nbytes / 1e6,
            "threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd")),
            "cpu_seconds": time.process_time(), "tokens": forward.tokens_run,
        }  # fmt: skip

    while (now := time.perf_counter()) - began < seconds:
        texts += call(forward, head, rng, longest)
        if now >= due:
            readings.append(reading())
            due = now + every
    return [*readings, reading()], texts


def flatness(readings: list[dict[str, float]]) -> float:
    """(largest - smallest) / smallest resident memory after the warm-up."""
    end = readings[-1]["seconds"]
    kept = [r["rss_mb"] for r in readings if r["seconds"] >= WARM_UP * end]
    return max(kept) / min(kept) - 1


def growth(readings: list[dict[str, float]]) -> dict[str, float]:
    """Threads and open files at the end less those after the warm-up; throughput of the last half against the first."""
    end = readings[-1]["seconds"]
    kept = [r for r in readings if r["seconds"] >= WARM_UP * end]
    first, middle, last = kept[0], kept[len(kept) // 2], kept[-1]

    def rate(a: dict[str, float], b: dict[str, float]) -> float:
        return (b["tokens"] - a["tokens"]) / max(1e-9, b["cpu_seconds"] - a["cpu_seconds"])

    return {
        "threads": last["threads"] - first["threads"], "files": last["files"] - first["files"],
        "tokens_per_cpu_second": rate(first, last),
        "throughput_last_half_against_first": rate(middle, last) / max(1e-9, rate(first, middle)),
    }  # fmt: skip


def draw(readings: list[dict[str, float]], path: Path, title: str) -> None:
    """Memory against time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    minutes = [r["seconds"] / 60 for r in readings]
    axis.plot(minutes, [r["rss_mb"] for r in readings], label="resident")
    axis.plot(minutes, [r["cache_mb"] for r in readings], label="of it: prefix cache")
    axis.axvline(WARM_UP * minutes[-1], color="0.7", ls=":")
    axis.set(xlabel="minutes", ylabel="MB", ylim=(0, None), title=title)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, judge, draw."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--every", type=float, default=10, help="seconds between readings")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--longest", type=int, default=600, help="most tokens of a prompt; completions have half of it")
    p.add_argument("--cache-mb", type=int, default=128)
    p.add_argument("--dtype", default="auto")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    judge = HFJudge("embedded", dtype=args.dtype, cache_bytes=args.cache_mb << 20)
    readings, texts = soak(judge.forward, 60 * args.minutes, args.every, args.longest)
    spread, more = flatness(readings), growth(readings)
    report = {
        "command": command("benchmarks.soak", argv),
        "commit": commit(), "machine": machine(), "threads": args.threads, "minutes": args.minutes, "texts": texts,
        "spread_after_warm_up": spread, "flat": spread <= 0.02, "after_warm_up": more, "readings": readings,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"soak-{cpu_kind()}.json").write_text(to_json(report, indent=1) + "\n")
    draw(readings, args.out / f"soak-{cpu_kind()}.png", f"{texts} texts, spread after warm-up {spread:.1%}")
    print(f"{texts} texts in {args.minutes} min; resident memory within {spread:.1%} after the warm-up; {more}")
    return report


if __name__ == "__main__":
    main()
