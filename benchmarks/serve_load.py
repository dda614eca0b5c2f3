"""Load on a judge server: python -m benchmarks.serve_load --clients 64 --seconds 60 --output benchmarks/results/serve.

A real server process and `clients` threads that each send one small request after the other; every answer is compared
with the score of that row in process. Each client has rows of its own, so that no text is read once for two clients.
In float32 the comparison would see a swapped answer; in bfloat16 scores move with their batch. Throughput is compared
with in-process batch scoring of the same rows in this run, per CPU second of the process that judges, since other
programs may share the cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
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
        sys.executable, "-c", "from latent_rewards.cli import app; app()", "serve", "--judge", arguments.judge,
        "--dtype", arguments.dtype, "--port", "0", "--threads", str(arguments.threads), "--rewards", "weighted",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(m[1] for line in process.stderr if (m := re.match(r"(http://\S+) rewards", line)))
    threading.Thread(target=process.stderr.read, daemon=True).start()
    RewardClient(url, deadline=300).transport.request("GET", "/info")
    return process, url


def offered_load(url: str, flat: list[Any], want: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    """What the clients saw."""
    seconds: list[float] = []
    worst, errors, answers = 0.0, [], 0
    end, lock = time.perf_counter() + options.seconds, threading.Lock()
    client = RewardClient(url, deadline=300, concurrency=options.clients)

    def work(k: int) -> None:
        nonlocal worst, answers
        rows = flat[k * options.rows : (k + 1) * options.rows]
        while time.perf_counter() < end:
            started = time.perf_counter()
            try:
                got = client.score(rows)
            except Exception as err:
                errors.append(f"{type(err).__name__}: {err}")
                continue
            took = time.perf_counter() - started
            off = max(abs(g - want[r["prompt"] + r["completion"]]) for g, r in zip(got, rows, strict=True))
            with lock:
                seconds.append(took)
                answers += len(rows)
                worst = max(worst, off)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spread = np.sort(list(want.values()))
    return {"requests": len(seconds), "rows": answers, "errors": errors, "largest_difference": worst,
            "smallest_gap_between_rows": float(np.diff(spread).min()), "p50_s": float(np.quantile(seconds, 0.5)),
            "p99_s": float(np.quantile(seconds, 0.99)), "longest_s": max(seconds)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1, help="rows per request")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    flat = rows_of(options.clients * options.rows)
    local = HFJudge(options.judge, dtype=options.dtype, device="cpu")
    reward = build_reward("weighted", local)
    prompts, completions = [r["prompt"] for r in flat], [r["completion"] for r in flat]
    want = {p + c: float(s) for p, c, s in zip(prompts, completions, reward.score(prompts, completions), strict=True)}
    batch = options.clients * options.rows
    rates = []
    for _ in range(3):
        local.forget()
        started, cpu = time.perf_counter(), time.process_time()
        reward.score(prompts, completions)
        rates.append((batch / (time.process_time() - cpu), batch / (time.perf_counter() - started)))
    process, url = start(options)
    try:
        offered_load(url, flat, want, argparse.Namespace(**vars(options) | {"seconds": 3.0}))
        before, wall = cpu_seconds(process.pid), time.perf_counter()
        seen = offered_load(url, flat, want, options)
        spent, wall = cpu_seconds(process.pid) - before, time.perf_counter() - wall
        metrics = httpx.get(url + "/metrics", trust_env=False).text
    finally:
        process.terminate()
        process.wait(30)
    in_process = float(np.median([r[0] for r in rates]))
    report = {
        "command": "python -m benchmarks.serve_load " + " ".join(sys.argv[1:]), "machine": platform.machine(),
        "judge": options.judge, "clients": options.clients, "rows_per_request": options.rows, "wall_s": wall, **seen,
        "rows_per_cpu_s": seen["rows"] / spent, "in_process_rows_per_cpu_s": in_process,
        "share_of_in_process": seen["rows"] / spent / in_process, "rows_per_s": seen["rows"] / wall,
        "client_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "batches": int(float(re.search(r"batch_rows_count (\S+)", metrics)[1])),  # type: ignore[index]
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
