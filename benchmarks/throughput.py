"""Pairs per second of everything one might use for the job today, side by side, and of the floor.

LATENT_REWARDS_DATA=<folder> python -m benchmarks.throughput --threads 1 \
    --python vllm=<environment with vllm>/bin/python --python llama.cpp=<environment with llama-cpp-python>/bin/python

Every contestant lives in a process of its own and all stay alive; one works at a time, in turns. Writes
benchmarks/results/throughput-<cpu>-<threads>t.json and .md. A contestant that cannot start is left out with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contestants import CONTESTANTS
from benchmarks.workloads import build, spread
from latent_rewards.engine.loading import EMBEDDED
from latent_rewards.engine.prefix_tree import build_tree
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import command, commit, cpu_kind, machine

HERE = Path(__file__).parent
FULL = ("gemm", "vllm", "ours", "ours-compiled", "ours-half", "ours-half-compiled")
ROWS = [n for n in CONTESTANTS if n not in ("gemm", "reference")]


class Worker:
    """A contestant's process and its pipes."""

    def __init__(self, name: str, python: str, work: Path, threads: int, timeout: float) -> None:
        self.name, self.threads = name, threads
        env = os.environ | {
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }  # fmt: skip
        if python == sys.executable:
            env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        else:
            env.pop("PYTHONPATH", None)
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, str(HERE / "contestants.py"), name, str(work), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env,
        )  # fmt: skip
        self.ready = self._answer(timeout)

    def ask(self, work: str, rows: list[int], timeout: float = 3600) -> dict[str, Any]:
        """Run some pairs of a workload and wait for the figures."""
        assert self.process.stdin is not None
        self.process.stdin.write(to_json({"work": work, "rows": rows}) + "\n")
        self.process.stdin.flush()
        return self._answer(timeout)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _answer(self, timeout: float) -> dict[str, Any]:
        if select.select([self.process.stdout], [], [], timeout)[0]:
            line = self.process.stdout.readline()  # type: ignore[union-attr]
            if line:
                return json.loads(line)
            reason = f"ended with status {self.process.wait()}"
        else:
            reason = f"no answer in {timeout:.0f} s"
        self.close()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        errors = [line for line in lines if "Error" in line] or lines
        raise RuntimeError(f"{self.name}: {reason}: {errors[-1] if errors else 'no message'}")


class Shape(NamedTuple):
    """Sizes of the judge that the floor needs."""

    linear: int  # weights of the decoder blocks' linears
    layers: int
    width: int  # query heads times head width
    windows: tuple[int, ...] = ()  # of the layers that see the last tokens alone


def judge_shape(model: str) -> Shape:
    """Counted from the config: a dense Llama-shaped judge."""
    c = json.loads(Path(model, "config.json").read_text())
    d, f, layers, heads = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["num_attention_heads"]
    head = c.get("head_dim") or d // heads
    per_layer = 2 * d * heads * head + 2 * d * c["num_key_value_heads"] * head + 3 * d * f
    return Shape(layers * per_layer, layers, heads * head)


def floor_flops(ids: list[list[int]], contexts: list[list[int]], shape: Shape) -> tuple[float, int]:
    """FLOPs of running every different prefix of the texts once, and how many tokens that is.

    2 per weight of the decoder's linears, and 4 per width of the queries for each token attended to.
    """
    sequences = [[*row, *max(contexts, key=len)] for row in ids]
    tree = build_tree(sequences, [[] for _ in sequences], min_saving=1)
    tokens = sum(len(n.tokens) for n in tree)
    seen = np.array([p + 1 for n in tree for p in range(n.start, n.end)])
    whole = (shape.layers - len(shape.windows)) * int(seen.sum())
    attended = whole + sum(int(np.minimum(seen, w).sum()) for w in shape.windows)
    return 2.0 * shape.linear * tokens + 4.0 * shape.width * attended, tokens


def start(args: argparse.Namespace, path: Path) -> tuple[dict[str, Worker], dict[str, str]]:
    """Workers of the contestants that start, and the reasons of those that do not."""
    pythons = dict(p.split("=", 1) for p in args.python)
    workers: dict[str, Worker] = {}
    skipped: dict[str, str] = {}
    for name in ["gemm", *args.contestants]:
        if name in ("vllm", "llama.cpp") and name not in pythons:
            skipped[name] = f"no environment given (--python {name}=...)"
        elif name == "llama.cpp" and not args.gguf:
            skipped[name] = "no model given (--gguf FILE, see benchmarks/gguf_f16.py)"
        else:
            try:
                workers[name] = Worker(name, pythons.get(name, sys.executable), path, args.threads, args.start_timeout)
            except (RuntimeError, OSError) as err:
                skipped[name] = str(err)
        print(f"{name}: {skipped.get(name, 'ready')}", flush=True)
    return workers, skipped


def reference(path: Path, work: dict[str, Any], n: int, threads: int) -> dict[str, Any]:
    """fp32 one-by-one scores of n spread pairs of each workload; kept beside the work file."""
    kept = path.with_name(f"{path.stem}-reference-{n}.json")
    if not kept.exists():
        worker = Worker("reference", sys.executable, path, threads, 600)
        out = {}
        for name, content in work["work"].items():
            rows = spread(len(content["pairs"]), n)
            out[name] = {"rows": rows, **worker.ask(name, rows)["scores"]}
        worker.close()
        kept.write_text(to_json(out))
    return json.loads(kept.read_text())


def rows_of(name: str, total: int, args: argparse.Namespace) -> list[int]:
    """Pairs that a contestant runs: all; the first ones, prompts whole, for llama.cpp; spread ones for the plain."""
    if name in FULL:
        return list(range(total))
    if name == "llama.cpp":
        return list(range(max(1, round(total * args.llama_share))))
    return spread(total, round(total * args.plain_share))


def measure(workers: dict[str, Worker], work: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Runs per contestant and workload; contestants take turns, each round begins with another one."""
    runs: dict[str, Any] = {n: {w: [] for w in work["work"]} for n in workers}
    began = time.time()
    for r in range(args.rounds):
        if r and args.minutes and (time.time() - began) * (r + 1) / r > 60 * args.minutes:
            break
        names = list(workers)
        for name in names[r % len(names) :] + names[: r % len(names)]:
            for each, content in work["work"].items():
                rows = rows_of(name, len(content["pairs"]), args)
                got = workers[name].ask(each, rows)
                runs[name][each].append({**got, "rows": rows})
        print(f"round {r + 1} of {args.rounds} done after {time.time() - began:.0f} s", flush=True)
    return runs


def figures(
    name: str, runs: dict[str, Any], kind: str, truth: dict[str, Any], floors: dict[str, Any]
) -> dict[str, Any]:
    """Medians of one contestant per workload."""
    out: dict[str, Any] = {}
    for each, list_ in runs.items():
        n = len(list_[0]["rows"])
        cpu, wall = median(x["cpu"] for x in list_), median(x["wall"] for x in list_)
        error = None
        if kind:
            at = {row: i for i, row in enumerate(list_[0]["rows"])}
            scores = [(s, at[r]) for r, s in zip(truth[each]["rows"], truth[each][kind], strict=True) if r in at]
            diffs = [abs(run["scores"][i] - s) for run in list_ for s, i in scores]
            error = max(diffs) if diffs else None
        out[each] = {
            "pairs": n, "pairs_per_cpu_second": n / cpu, "pairs_per_second": n / wall,
            "spread": [n / max(x["cpu"] for x in list_), n / min(x["cpu"] for x in list_)],
            "share_of_floor": n / cpu / floors[each]["pairs_per_cpu_second"], "score_error": error,
        }  # fmt: skip
    return {"name": name, "peak_rss_gb": max(x["rss"] for w in runs.values() for x in w), "work": out}


def floors_of(work: dict[str, Any], runs: dict[str, Any]) -> dict[str, Any]:
    """Pairs per second at the measured matrix-product rate, per workload."""
    shape, out = judge_shape(work["model"]), {}
    samples = [x["scores"] for w in runs["gemm"].values() for x in w]
    cpu, wall = (median(s[k] for s in samples) for k in ("flops_per_cpu_second", "flops_per_second"))
    for name, content in work["work"].items():
        flops, tokens = floor_flops(content["ids"], work["contexts"], shape)
        n = len(content["pairs"])
        out[name] = {
            "flops": flops, "unique_tokens": tokens, "tokens": sum(map(len, content["ids"])),
            "flops_per_cpu_second": cpu, "pairs_per_cpu_second": n / (flops / cpu),
            "pairs_per_second": n / (flops / wall),
        }  # fmt: skip
    return out


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    names = list(report["floor"])
    ours = next((r for r in report["contestants"] if r["name"] == "ours"), None)
    head = " | ".join(f"{n}: pairs/CPU s (wall) | ours is | of floor" for n in names)
    lines = [
        f"| contestant | {head} | peak RSS, GB | largest score difference to fp32 |",
        "|---" * (3 * len(names) + 3) + "|",
    ]
    for row in report["contestants"]:
        cells = []
        for n in names:
            w = row["work"][n]
            ratio = f"{ours['work'][n]['pairs_per_cpu_second'] / w['pairs_per_cpu_second']:.2f}x" if ours else "-"
            cells.append(
                f"{w['pairs_per_cpu_second']:.2f} ({w['pairs_per_second']:.2f}) | {ratio} | {w['share_of_floor']:.0%}"
            )
        errors = [w["score_error"] for w in row["work"].values() if w["score_error"] is not None]
        error = f"{max(errors):.3f}" if errors else "-"
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['peak_rss_gb']:.2f} | {error} |")
    cells = [
        f"{f['pairs_per_cpu_second']:.2f} ({f['pairs_per_second']:.2f}) | | 100%" for f in report["floor"].values()
    ]
    lines.append(f"| floor | {' | '.join(cells)} | | |")
    tail = [f"- {name}: left out, {why}" for name, why in report["skipped"].items()]
    rate = next(iter(report["floor"].values()))["flops_per_cpu_second"]
    note = (
        f"{report['threads']} thread(s), median of {report['rounds']} rounds, {report['machine']}, "
        f"{rate / 1e9:.0f} GFLOP/s bf16 per CPU second, commit {report['commit']}. "
        f"Those that share nothing run an even {report['plain_share']:.0%} of the pairs, "
        f"llama.cpp the first {report['llama_share']:.0%}.\n\n    {report['command']}\n"
    )
    return "\n".join([note, *lines, "", *tail, ""])


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--judge", default=EMBEDDED, help="folder of the judge; default the embedded one")
    p.add_argument("--vllm-dtype", default="bfloat16", choices=["bfloat16", "float32"])
    p.add_argument("--limit", type=int, help="pairs per workload; default all")
    p.add_argument("--contestants", nargs="+", default=ROWS, choices=ROWS)
    p.add_argument("--plain-share", type=float, default=0.0625, help="share of the pairs for those that share nothing")
    p.add_argument("--llama-share", type=float, default=0.25, help="share of the pairs for llama.cpp, from the first")
    p.add_argument("--minutes", type=float, help="begin no round that would end later than this")
    p.add_argument("--reference", type=int, default=24, help="pairs of each workload compared with fp32")
    p.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a contestant")
    p.add_argument("--gguf", type=Path, help="F16 model for llama.cpp")
    p.add_argument("--start-timeout", type=float, default=600)
    p.add_argument("--runs", type=Path, default=Path("runs/throughput"), help="folder of the work file")
    p.add_argument("--out", type=Path, default=HERE / "results")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Build, start, measure, report."""
    args, began = arguments(argv), time.time()
    path = build(args.runs, limit=args.limit, model=args.judge)
    work = json.loads(path.read_text()) | {"dtype": args.vllm_dtype}
    path.write_text(to_json(work))
    truth = reference(path, work, args.reference, args.threads)
    if args.gguf:
        path.write_text(to_json(work | {"gguf": str(args.gguf.resolve())}))
    workers, skipped = start(args, path)
    try:
        runs = measure(workers, work, args)
    finally:
        for worker in workers.values():
            worker.close()
    floors = floors_of(work, runs)
    report = {
        "command": command("benchmarks.throughput", argv),
        "commit": commit(), "machine": machine(), "threads": args.threads,
        "rounds": len(next(iter(runs["gemm"].values()))), "llama_share": args.llama_share,
        "plain_share": args.plain_share, "seconds": time.time() - began, "floor": floors, "skipped": skipped,
        "contestants": [
            figures(n, runs[n], workers[n].ready["scores"], truth, floors) for n in workers if n != "gemm"
        ],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    of_judge = "" if args.judge == EMBEDDED else f"-{Path(args.judge).name}"
    name = f"throughput-{cpu_kind()}-{args.threads}t{of_judge}"
    text = json.dumps(report, indent=1, default=lambda x: x.item() if isinstance(x, np.generic) else str(x))
    (args.out / f"{name}.json").write_text(text + "\n")
    (args.out / f"{name}.md").write_text(table(report))
    print(table(report))
    return report


if __name__ == "__main__":
    main()
