"""How far a score moves with its batch, on real pairs, and what `batch_invariant=True` costs.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.determinism

Three levels, in each dtype: the same batches again (bit-identical); other batches, orders and groupings (how far
ratings and label log-probabilities move, and the share of pairs whose order flips); `batch_invariant=True`
(bit-identical in random batchings), with its cost against the default, by turns on the same texts. What has been read
is kept in `--work`: a run that was stopped, or that ran into `--minutes`, goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.evaluation import benchmarks
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import commit, cpu_kind
from latent_rewards.judge.prompts import to_text

# file -> most pairs, and most characters of a prompt with one response: short texts, so that the run fits a CPU
FILES = {
    "listwise/topical_chat": (450, 1600), "listwise/alpacaeval": (650, 320), "listwise/gsm8k_solutions": (540, 420),
    "pairwise/rm_bench": (90, 200), "pairwise/hh_harmless": (90, 200), "pairwise/llmbar": (60, 200),
    "pairwise/hhh_alignment": (40, 200), "pairwise/autoj": (20, 300), "pairwise/rmb": (20, 300),
    "pairwise/llmeval2": (20, 300), "pairwise/alpacaeval_lenmatched": (20, 400),
}  # fmt: skip
PROMPT, NEED = JudgePrompt.load("weighted"), Need(labels=True)
AGAIN, POOL, COST_TEXTS, COST_ROUNDS = 128, 40, 12, 3
Group = list[dict[str, Any]]


def groups_of(scale: float) -> tuple[list[Group], dict[str, int]]:
    """Rows of the same prompt side by side, and how many pairs each file gives."""
    groups, counts = [], {}
    for name, (most, max_chars) in FILES.items():
        pairs = 0
        for item in benchmarks.load(name).items:
            room = max_chars - len(to_text(item.prompt))
            short = list(dict.fromkeys(r for r in item.responses if len(r) <= room))
            if len(short) >= 2 and pairs < most * scale:
                groups.append([{"prompt": item.prompt, "completion": r} for r in short])
                pairs += len(short) * (len(short) - 1) // 2
        counts[name] = pairs
    return groups, counts


def cut(order: list[int], size: int) -> list[list[int]]:
    """Batches of one size."""
    return [order[i : i + size] for i in range(0, len(order), size)]


def ragged(order: list[int], rng: random.Random, most: int = 48) -> list[list[int]]:
    """Batches of random sizes from 1 to `most`."""
    out = []
    while order:
        size = rng.randint(1, most)
        out.append(order[:size])
        order = order[size:]
    return out


def mixed(groups: list[Group], seed: int) -> list[list[int]]:
    """Groups in random order, each in random order, cut raggedly: company, order, size and grouping all change."""
    rng, start, numbered = random.Random(seed), 0, []
    for group in groups:
        numbered.append(rng.sample(range(start, start + len(group)), len(group)))
        start += len(group)
    rng.shuffle(numbered)
    return ragged(list(itertools.chain.from_iterable(numbered)), rng)


def read(judge: HFJudge, rows: Group, batches: list[list[int]]) -> dict[str, np.ndarray]:
    """`logprobs` (B, K) of the labels, read in the given batches, CPU `seconds` and `tokens` run."""
    assert PROMPT.labels is not None
    judge.read([Request(PROMPT, rows[:1], NEED)])[0]
    out, started, before = np.full((len(rows), len(PROMPT.labels)), np.nan), time.process_time(), tokens_run(judge)
    for batch in batches:
        judge.forget()
        reading = judge.read([Request(PROMPT, [rows[i] for i in batch], NEED)])[0]
        assert reading.label_logprobs is not None
        out[batch] = reading.label_logprobs.numpy()
    return {
        "logprobs": out, "seconds": np.array(time.process_time() - started),
        "tokens": np.array(tokens_run(judge) - before),
    }  # fmt: skip


def tokens_run(judge: HFJudge) -> int:
    """Tokens that the judge's model has been run on."""
    return int(judge.forward.tokens_run)


def ratings(logprobs: np.ndarray) -> np.ndarray:
    """(B,) expected rating, in double precision from the label log-probabilities."""
    assert PROMPT.labels is not None
    p = np.exp(logprobs - logprobs.max(1, keepdims=True))
    return np.asarray((p * np.array(PROMPT.labels.values)).sum(1) / p.sum(1))


def pairs_of(groups: list[Group]) -> np.ndarray:
    """(P, 2) all pairs of rows with one prompt."""
    starts = np.cumsum([0, *map(len, groups)])
    return np.array(
        [
            (s + i, s + j)
            for s, g in zip(starts, groups, strict=False)
            for i, j in itertools.combinations(range(len(g)), 2)
        ]
    )


def change(a: np.ndarray, b: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """What differs between two readings of the same rows: nats, rating points, orders of pairs."""
    nats, (x, y) = np.abs(a - b), (ratings(a), ratings(b))
    points, gap = np.abs(x - y), np.abs(x[pairs[:, 0]] - x[pairs[:, 1]])
    flipped = np.sign(x[pairs[:, 0]] - x[pairs[:, 1]]) != np.sign(y[pairs[:, 0]] - y[pairs[:, 1]])
    return {
        "texts": len(a), "pairs": len(pairs), "identical": bool(np.array_equal(a, b)),
        "nats": {"median": float(np.median(nats)), "p99": float(np.quantile(nats, 0.99)), "largest": float(nats.max())},
        "points": {
            "median": float(np.median(points)), "p99": float(np.quantile(points, 0.99)), "largest": float(points.max())
        },
        "flips": float(flipped.mean()), "flipped": int(flipped.sum()),
        "largest_gap_flipped": float(gap[flipped].max()) if flipped.any() else 0.0,
    }  # fmt: skip


def invariance(dtype: str, model: str, rows: Group, batchings: int, most: int) -> dict[str, np.ndarray]:
    """Texts read alone, then random ones of them in random batchings: in how many of these every bit is the same."""
    judge = HFJudge(model, dtype=dtype, device="cpu", batch_invariant=True)
    alone = read(judge, rows, cut(list(range(len(rows))), 1))["logprobs"]
    same = 0
    for seed in range(batchings):
        rng = random.Random(seed)
        drawn = rng.sample(range(len(rows)), most)
        if seed % 2:
            judge.forward.cache.clear()
        some = read(judge, [rows[i] for i in drawn], ragged(list(range(most)), rng, most))["logprobs"]
        same += np.array_equal(some, alone[drawn])
    return {"logprobs": alone, "identical": np.array(same), "batchings": np.array(batchings), "drawn": np.array(most)}


def cost(dtype: str, model: str, rows: Group) -> dict[str, np.ndarray]:
    """CPU seconds of the default and of the batch-invariant judge on the same batch, by turns; nothing kept between."""
    judges = [HFJudge(model, dtype=dtype, device="cpu", batch_invariant=b) for b in (False, True)]
    seconds = []
    for _ in range(COST_ROUNDS):
        for judge in judges:
            judge.read([Request(PROMPT, rows[:1], NEED)])[0]
            judge.forward.cache.clear()
        seconds.append([float(read(judge, rows, [list(range(len(rows)))])["seconds"]) for judge in judges])
    return {"seconds": np.array(seconds)}


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]], until: float) -> dict[str, np.ndarray]:
    """What is in the file, or is made and then put there.

    Raises:
        SystemExit: no time is left.
    """
    if not path.is_file():
        if time.monotonic() > until:
            raise SystemExit(f"time is up before {path.name}; run again to go on")
        made = make()
        np.savez(path.with_suffix(".tmp.npz"), **made)  # type: ignore[arg-type]
        path.with_suffix(".tmp.npz").rename(path)
    with np.load(path) as found:
        return dict(found)


def measure(
    dtype: str, args: argparse.Namespace, groups: list[Group], until: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of one dtype, and its log-probabilities read in ordinary batches."""
    rows, pairs = list(itertools.chain.from_iterable(groups)), pairs_of(groups)
    order = list(range(len(rows)))
    plain = HFJudge(args.judge, dtype=dtype, device="cpu")

    def step(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        path = args.work / f"{dtype}-{name}.npz"
        return {} if args.partial and not path.is_file() else kept(path, make, until)

    few = order[:AGAIN]
    short = sorted(rows, key=lambda r: len(to_text(r["prompt"])) + len(r["completion"]))[:POOL]
    first = step("ordered", lambda: read(plain, rows, cut(order, 64)))
    again = step("again", lambda: read(fresh(plain), rows[:AGAIN], cut(few, 64)))
    other = step("mixed", lambda: read(fresh(plain), rows, mixed(groups, 1)))
    alone = step("invariant", lambda: invariance(dtype, args.judge, short, args.batchings, args.drawn))
    ratio = step("cost", lambda: cost(dtype, args.judge, short[:COST_TEXTS]))
    x = ratings(first["logprobs"])
    near = pairs[(pairs < AGAIN).all(1)]
    facts: dict[str, Any] = {
        "spread": {"gap": float(np.abs(x[pairs[:, 0]] - x[pairs[:, 1]]).mean()), "all": float(x.std())},
        "cpu_seconds": float(first["seconds"]), "tokens": int(first["tokens"]),
    }  # fmt: skip
    if again:
        facts["same_batches"] = change(first["logprobs"][:AGAIN], again["logprobs"], near)
    if other:
        facts["other_batches"] = change(first["logprobs"], other["logprobs"], pairs)
    if alone and ratio:
        seconds = ratio["seconds"]
        facts["batch_invariant"] = {
            "identical_batchings": int(alone["identical"]), "batchings": int(alone["batchings"]), "pool": POOL,
            "drawn": int(alone["drawn"]), "cost_ratio": (seconds[:, 1] / seconds[:, 0]).tolist(),
            "cost_texts": COST_TEXTS,
        }  # fmt: skip
    return facts, first["logprobs"]


def fresh(judge: HFJudge) -> HFJudge:
    """The judge with nothing kept of earlier prompts."""
    judge.forward.cache.clear()
    judge.forget()
    return judge


def as_text(results: dict[str, Any]) -> str:
    """The figures as a page of Markdown."""
    head = (
        "# Determinism\n\n`python -m benchmarks.determinism`; "
        f"commit {results['commit']}, {results['judge']} judge, `{results['prompt']}` prompt, "
        f"{results['machine']}, torch {results['torch']}, {results['threads']} thread. "
        f"{sum(results['pairs'].values())} pairs of real responses, kept short ({', '.join(results['pairs'])}; the "
        "limits stand in the JSON file beside this).\n\n"
    )
    rows = []
    for dtype, facts in results["dtypes"].items():
        changes = {"same batches again": "same_batches", "other batches, order, grouping": "other_batches"}
        rows += [_line(dtype, name, facts[k]) for name, k in changes.items() if k in facts]
    if "between_dtypes" in results:
        rows.append(_line(" against ".join(results["dtypes"]), "same batches", results["between_dtypes"]))
    names = (
        "dtype|read again in|pairs|bit-identical|nats: median|99 %|largest|points: median|99 %|largest|orders flipped"
    )
    lines = [f"| {' | '.join(names.split('|'))} |", "|" + "---|" * len(names.split("|")), *rows, ""]
    for dtype, facts in results["dtypes"].items():
        text = f"{dtype}: the two scores of a pair lie {facts['spread']['gap']:.3f} points apart on average."
        if "other_batches" in facts:
            text += f" The widest gap that flipped is {facts['other_batches']['largest_gap_flipped']:.3f} points."
        else:
            text += " Other batches have not been measured yet."
        if "batch_invariant" in facts:
            found = facts["batch_invariant"]
            text += (
                f" `batch_invariant=True`: {found['identical_batchings']} of {found['batchings']} random batchings "
                f"({found['drawn']} of {found['pool']} texts each) gave every bit of the same texts read alone; CPU "
                f"time against the default on {found['cost_texts']} texts, three rounds by turns: "
                f"{', '.join(f'{c:.2f}' for c in found['cost_ratio'])}."
            )
        lines.append(text + "\n")
    return head + "\n".join(lines)


def _line(dtype: str, name: str, found: dict[str, Any]) -> str:
    nats, points = ([f"{found[k][q]:.2g}" for q in ("median", "p99", "largest")] for k in ("nats", "points"))
    flips = f"{found['flipped']} ({100 * found['flips']:.2f} %)"
    cells = [dtype, name, str(found["pairs"]), "yes" if found["identical"] else "no", *nats, *points, flips]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 2,000 pairs")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batchings", type=int, default=100)
    parser.add_argument("--drawn", type=int, default=8, help="texts in each of them")
    parser.add_argument("--minutes", type=float, default=1e6, help="start nothing new after this")
    parser.add_argument("--partial", action="store_true", help="read nothing, report what has been read")
    parser.add_argument("--work", type=Path, default=Path("runs/determinism"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/determinism.json"))
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    args.work.mkdir(parents=True, exist_ok=True)
    groups, counts = groups_of(args.scale)
    results: dict[str, Any] = {
        "commit": commit(), "machine": cpu_kind(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "judge": args.judge, "prompt": PROMPT.name, "pairs": counts,
        "filter": {k: f"prompt and response of at most {chars} characters" for k, (_, chars) in FILES.items()},
    }  # fmt: skip
    measured = {dtype: measure(dtype, args, groups, until) for dtype in args.dtypes}
    results["dtypes"] = {dtype: facts for dtype, (facts, _) in measured.items()}
    if len(measured) == 2:
        (_, a), (_, b) = measured.values()
        results["between_dtypes"] = change(a, b, pairs_of(groups))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(to_json(results, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(as_text(results))


if __name__ == "__main__":
    main()
