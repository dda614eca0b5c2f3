"""What loading a judge costs beside `from_pretrained`: CPU seconds and memory, each in a process of its own, in turns.

    python -m benchmarks.load_cost --judge Qwen/Qwen2.5-Coder-1.5B-Instruct [--rounds 3] [--threads 1]

"transformers": model and tokenizer, and a forward of one text of 64 tokens, since weights that are mapped from a file
are read only then. "ours": `HFJudge` until it has read one reply of as many tokens, its checks at load among it. Memory
is the peak above that of a process that has only imported both: resident, and its anonymous part (the rest are pages of
the file, which the system can take back). Writes `results/load-cost-<judge>.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import commit, cpu_kind

RESULTS = Path(__file__).parent / "results"
TEXT = "Seven is a prime number, and so is eleven; nine is not, since it is three times three. " * 2
GIB = 2.0**30


class Memory(threading.Thread):
    """The most anonymous and resident bytes of this process, looked at every five milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = {"RssAnon": 0, "VmRSS": 0}
        self.over = False

    def run(self) -> None:
        while not self.over:
            self.look()
            time.sleep(0.005)

    def look(self) -> None:
        """Now."""
        status = Path("/proc/self/status").read_text()
        for name in self.most:
            found = re.search(rf"{name}:\s+(\d+) kB", status)
            assert found
            self.most[name] = max(self.most[name], int(found[1]) * 1024)


def child(way: str, judge: str, dtype: str, threads: int) -> dict[str, Any]:
    """One load, in this process."""
    torch.set_num_threads(threads)
    memory = Memory()
    memory.look()
    before = dict(memory.most)
    memory.start()
    began, wall = time.process_time(), time.perf_counter()
    if way == "transformers":
        tokenizer = transformers.AutoTokenizer.from_pretrained(judge)
        model = transformers.AutoModelForCausalLM.from_pretrained(judge, dtype=getattr(torch, dtype))
        with torch.no_grad():
            model(torch.tensor([tokenizer(TEXT)["input_ids"][:64]]), logits_to_keep=1)
    else:
        loaded = HFJudge(judge, dtype=dtype)
        prompt = JudgePrompt("short", "label", "{{ completion }}", labels=JudgePrompt.load("verifier").labels)
        loaded.read([Request(prompt, [{"prompt": "", "completion": TEXT}], Need(labels=True))])
        model = loaded.blocks.model
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    memory.over = True
    memory.join()
    return {
        "cpu_seconds": seconds, "wall_seconds": wall,
        "weights_gib": sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values()) / GIB,
        "peak_gib": (memory.most["VmRSS"] - before["VmRSS"]) / GIB,
        "peak_anonymous_gib": (memory.most["RssAnon"] - before["RssAnon"]) / GIB,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, help="folder or hub id")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--child", nargs=2, metavar=("WAY", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child[0], args.judge, args.child[1], args.threads)))
        return
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for _ in range(args.rounds + 1):  # the first warms the system's cache of files
        for dtype in args.dtypes:
            for way in ("transformers", "ours"):
                told = subprocess.run(
                    [
                        *(sys.executable, "-W", "ignore", "-m", "benchmarks.load_cost", "--judge", args.judge),
                        *("--threads", str(args.threads), "--child", way, dtype),
                    ],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                found.setdefault(dtype, {}).setdefault(way, []).append(json.loads(told.stdout.splitlines()[-1]))
                print(dtype, way, found[dtype][way][-1], flush=True)
    cells: dict[str, Any] = {}
    for dtype, ways in found.items():
        cells[dtype] = {w: {k: statistics.median(r[k] for r in runs[1:]) for k in runs[0]} for w, runs in ways.items()}
        plain, ours = cells[dtype]["transformers"], cells[dtype]["ours"]
        cells[dtype]["cpu_ratio"] = ours["cpu_seconds"] / plain["cpu_seconds"]
        cells[dtype]["peak_over_weights"] = ours["peak_gib"] / ours["weights_gib"]
        cells[dtype]["anonymous_over_weights"] = ours["peak_anonymous_gib"] / ours["weights_gib"]
    name = Path(args.judge).name
    report = {
        "command": f"python -m benchmarks.load_cost --judge <{name}> --rounds {args.rounds} --threads {args.threads}",
        "commit": commit(), "cpu": cpu_kind(), "judge": name, "torch": torch.__version__, "cells": cells,
    }  # fmt: skip
    (RESULTS / f"load-cost-{name}.json").write_text(to_json(report, indent=1) + "\n")
    print(to_json(cells, indent=1))


if __name__ == "__main__":
    main()
