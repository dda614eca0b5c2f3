"""Load on a judge server: python -m benchmarks.serve_load --dtype float32 --output benchmarks/results/serve-load.

A real server process, and `clients` that each send one small request after the other, all from one event loop of this
process through `RewardClient`. Every answer is compared with the score of that row in process. Each client has rows of
its own, so that no text is read once for two clients, and four neighbours share a prompt, as in a GRPO group. In
float32 the comparison would see a swapped answer; in bfloat16 scores move with their batch.

The reference is in-process batch scoring: the same rows in one call, dtype and threads as in the server, before and
after the load in the same run. Both are given per CPU second of the process that judges, since other programs may
share the cores (the server's includes all of HTTP), and per second of wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

from latent_rewards import HFJudge, build_reward
from latent_rewards.data import open_ended
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import command, commit, machine
from latent_rewards.serving.client import RewardClient


def rows_of(n: int) -> list[dict[str, str]]:
    """N distinct rows, four answers to each prompt side by side."""
    rows = [{"prompt": r["prompt"], "completion": c} for r in open_ended() for c in r["responses"]]
    if n > len(rows):
        raise SystemExit(f"{n} distinct rows wanted; there are {len(rows)}: fewer clients or rows per request")
    return rows[:n]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


def start(arguments: argparse.Namespace) -> tuple[Any, str]:
    """The server, ready."""
    command = [
        sys.executable, "-c", "from latent_rewards.cli.main import app; app()", "serve", "--judge", arguments.judge,
        "--dtype", arguments.dtype, "--port", "0", "--threads", str(arguments.threads), "--rewards", "weighted",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(m[1] for line in process.stderr if (m := re.match(r"(http://\S+) rewards", line)))
    threading.Thread(target=process.stderr.read, daemon=True).start()
    RewardClient(url, deadline=300).transport.request("GET", "/info")
    return process, url


def in_process(reward: Any, flat: list[dict[str, str]], times: int) -> list[tuple[float, float]]:
    """(rows per CPU second, rows per second) of scoring all rows in one call, for each time."""
    rates = []
    for _ in range(times):
        reward.judge.forget()
        wall, cpu = time.perf_counter(), time.process_time()
        reward.score([r["prompt"] for r in flat], [r["completion"] for r in flat])
        rates.append((len(flat) / (time.process_time() - cpu), len(flat) / (time.perf_counter() - wall)))
    return rates


async def offered_load(url: str, flat: list[Any], want: list[float], options: argparse.Namespace) -> dict[str, Any]:
    """What the clients saw."""
    seconds: list[float] = []
    errors: list[str] = []
    worst, sent = 0.0, 0
    client = RewardClient(url, deadline=600, concurrency=options.clients)
    end, cpu = time.perf_counter() + options.seconds, time.process_time()

    async def work(k: int) -> None:
        nonlocal worst, sent
        mine = slice(k * options.rows, (k + 1) * options.rows)
        while time.perf_counter() < end:
            started, sent = time.perf_counter(), sent + 1
            try:
                got = await client.score_async(flat[mine])
            except Exception as err:
                errors.append(f"{type(err).__name__}: {err}")
                continue
            seconds.append(time.perf_counter() - started)
            worst = max(worst, *(abs(g - w) for g, w in zip(got, want[mine], strict=True)))

    await asyncio.gather(*(work(k) for k in range(options.clients)))
    return {
        "requests": sent, "answers": len(seconds), "rows": len(seconds) * options.rows, "errors": errors,
        "largest_difference": worst, "smallest_gap_between_rows": float(np.diff(np.sort(want)).min()),
        "p50_s": float(np.quantile(seconds, 0.5)), "p99_s": float(np.quantile(seconds, 0.99)),
        "longest_s": max(seconds), "client_cpu_s": time.process_time() - cpu,
    }  # fmt: skip


def loaded(process: Any, url: str, flat: list[Any], want: list[float], options: argparse.Namespace) -> dict[str, Any]:
    """The load, and what it cost the server."""
    metrics = httpx.get(url + "/metrics", trust_env=False).text
    before, cpu, wall = batches(metrics), cpu_seconds(process.pid), time.perf_counter()
    seen = asyncio.run(offered_load(url, flat, want, options))
    cpu, wall = cpu_seconds(process.pid) - cpu, time.perf_counter() - wall
    count = batches(httpx.get(url + "/metrics", trust_env=False).text) - before
    return {**seen, "wall_s": wall, "server_cpu_s": cpu, "rows_per_cpu_s": seen["rows"] / cpu,
            "rows_per_s": seen["rows"] / wall, "batches": count}  # fmt: skip


def batches(metrics: str) -> int:
    """How many batches a server has judged."""
    found = re.search(r"batch_rows_count (\S+)", metrics)
    assert found is not None
    return int(float(found[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1, help="rows per request")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference", type=int, default=2, help="times that all rows are scored in process, twice")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    flat = rows_of(options.clients * options.rows)
    local = HFJudge(options.judge, dtype=options.dtype, device="cpu")
    reward = build_reward("weighted", local)
    want = reward.score([r["prompt"] for r in flat], [r["completion"] for r in flat]).tolist()
    process, url = start(options)
    try:
        loaded(process, url, flat, want, argparse.Namespace(**vars(options) | {"seconds": 0.5}))
        rates = in_process(reward, flat, options.reference)
        seen = loaded(process, url, flat, want, options)
        rates += in_process(reward, flat, options.reference)
    finally:
        process.terminate()
        process.wait(30)
    per_cpu, per_s = (float(np.mean([r[i] for r in rates])) for i in range(2))
    report = {
        "command": command("benchmarks.serve_load"), "commit": commit(), "machine": machine(),
        "judge": options.judge, "dtype": str(local.blocks.model.dtype), "threads": options.threads,
        "clients": options.clients, "rows_per_request": options.rows, **seen,
        "in_process_rows_per_cpu_s": per_cpu, "in_process_rows_per_s": per_s,
        "in_process_each": [[round(x, 3) for x in r] for r in rates],
        "share_of_in_process_per_cpu_s": seen["rows_per_cpu_s"] / per_cpu,
        "share_of_in_process_per_s": seen["rows_per_s"] / per_s,
    }  # fmt: skip
    text = to_json(report, indent=1)
    print(text)
    if options.output:
        options.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
