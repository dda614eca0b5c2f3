"""What the Best-of-N pipeline costs over the judge itself, and whether its memory stays flat.

    python -m benchmarks.best_of_n --pairs 20000 --out benchmarks/results/best-of-n-embedded.json

Needs LATENT_REWARDS_DATA with `single/halueval_general`. Short pairs: 8 completions of some 60 characters to a prompt,
one of them its own, seven written for other prompts. One thread. After every tenth shard (`--every`) its batches are
read again by `HFJudge.read` and the readout alone, so that both figures come from the same minutes of the same machine.
A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch

from latent_rewards import HFJudge, Request
from latent_rewards.best_of_n import BestOfNConfig, Selection
from latent_rewards.best_of_n.config import Manifest
from latent_rewards.best_of_n.finish import Finisher
from latent_rewards.best_of_n.groups import batches, layout_of, open_input
from latent_rewards.best_of_n.plan import ForwardReader, make_plan
from latent_rewards.best_of_n.run import make_folder, specs
from latent_rewards.best_of_n.shards import ShardStore
from latent_rewards.best_of_n.work import Engine, Worker
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import command, commit


def write_pairs(path: Path, pairs: int) -> None:
    """Short pairs, neighbours sharing a prompt."""
    source = Path(os.environ["LATENT_REWARDS_DATA"]) / "single" / "halueval_general.jsonl.gz"
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with path.open("w", encoding="utf-8") as out:
        for i in range(pairs):
            p, j = divmod(i, 8)
            row, other = rows[p % len(rows)], rows[(p + 37 * j) % len(rows)]
            pair = {
                "id": i,
                "prompt": row["prompt"][:90],
                "completion": f"{other['response'][:60]}{'.' * (p // len(rows))}",
            }
            out.write(to_json(pair) + "\n")


def resident() -> int:
    """Resident memory now, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--judge", default="embedded", help="a folder of another judge; then name a --reward for it")
    parser.add_argument("--reward", default="probe:embedded")
    parser.add_argument("--every", type=int, default=10, help="shards between two readings by the engine alone")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/best-of-n-benchmark"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    pairs = args.work / "pairs.jsonl"
    write_pairs(pairs, args.pairs)
    config = BestOfNConfig(
        input=str(pairs), output=str(args.work / "run"), rewards=[args.reward], threads=1, judge={"model": args.judge},
        selection=Selection(method="top-fraction", fraction=0.1, over="all"),
    )  # fmt: skip
    folder = make_folder(Path(config.output))
    engine = Engine(config, HFJudge(args.judge, batch_tokens=4096, compile=args.compile))
    facts = engine.facts()
    started = time.process_time()
    source = open_input(config)
    plan = make_plan(source, layout_of(config, source), config)
    planning = time.process_time() - started
    Manifest(folder).agree({**config.scoring(), "input": plan.facts(), "reward_specs": specs(config), **facts})
    store, log = ShardStore(folder), args.work / "log.jsonl"
    worker = Worker(engine, plan, source, store)
    warm_up(engine, plan, source)
    for i in range(len(plan.shards)):
        if not store.done(i):
            entry = measure(worker, engine, plan, source, i, alone=i % args.every == 0)
            with log.open("a") as file:
                file.write(to_json(entry) + "\n")
    started = time.process_time()
    summary = Finisher(config, plan, store, folder).finish()
    finishing = time.process_time() - started
    result = report([json.loads(line) for line in log.open()], planning + finishing, args, summary)
    print(to_json(result, indent=1))
    if args.out:
        args.out.write_text(to_json(result, indent=1) + "\n")


def warm_up(engine: Engine, plan: Any, source: Any) -> None:
    """Compile and fill the allocator before anything is timed."""
    some = next(iter(batches(ForwardReader(source, plan, engine.config).shard(0), engine.config.batch_size)))
    read_alone(engine, some)


def read_alone(engine: Engine, groups: list[Any]) -> int:
    """The engine itself: one read and one readout of a batch, which it has forgotten."""
    (reward,) = engine.rewards.values()
    engine.judge.forget()
    rows = [{"prompt": g.prompt, "completion": c} for g in groups for c in g.completions]
    scores = reward.readout(engine.judge.read([Request(reward.prompt, rows, reward.need)])[0])
    engine.judge.forget()
    return len(scores)


def measure(worker: Worker, engine: Engine, plan: Any, source: Any, i: int, *, alone: bool) -> dict[str, Any]:
    """One shard through the pipeline, and through the engine alone where asked."""
    started = time.process_time()
    worker.do(i)
    entry = {"shard": i, "pairs": plan.shards[i][2], "cpu": time.process_time() - started, "pid": os.getpid()}
    entry |= {"rss": resident(), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if alone:
        groups = list(batches(ForwardReader(source, plan, engine.config).shard(i), engine.config.batch_size))
        started = time.process_time()
        for batch in groups:
            read_alone(engine, batch)
        entry["engine_cpu"] = time.process_time() - started
    return entry


def report(log: list[dict[str, Any]], around: float, args: Any, summary: dict[str, Any]) -> dict[str, Any]:
    """Rates per CPU second: of the pipeline with planning and finishing, and of the engine, on the same shards."""
    pairs = sum(e["pairs"] for e in log)
    both = [e for e in log if "engine_cpu" in e]
    same = sum(e["pairs"] for e in both)
    share = around * same / pairs
    pipeline, engine = same / (sum(e["cpu"] for e in both) + share), same / sum(e["engine_cpu"] for e in both)
    done, at = 0, {}
    for e in log:
        done += e["pairs"]
        for mark in (2000, 5000, 10_000, 15_000, 20_000):
            if done >= mark and mark not in at:
                at[mark] = {"rss_mib": round(e["rss"] / 2**20), "peak_mib": round(e["peak"] / 2**20)}
    return {
        "command": command("benchmarks.best_of_n"),
        "commit": commit(), "pairs": pairs, "processes": len({e["pid"] for e in log}),
        "pairs_per_cpu_second": pairs / (sum(e["cpu"] for e in log) + around),
        "on_the_same_shards": {"pairs": same, "pipeline": pipeline, "engine": engine, "ratio": pipeline / engine},
        "plan_and_finish_cpu_seconds": around, "memory": at, "summary": summary,
    }  # fmt: skip


if __name__ == "__main__":
    main()
