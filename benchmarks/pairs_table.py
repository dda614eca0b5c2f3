"""All ways to read one judge on the same pairs: pooled, by set, length-balanced, and how far each is ahead of ratings.

    python -m benchmarks.pairs_table runs/eval-pairs-1.5b --out benchmarks/results/pairs-1.5b [--probe probe.npz]
        [--readings layers-pairs.npz]

Needs no judge: the scores are those that `evaluate` kept beside its report, `--probe` is of `benchmarks.pairs_probe`,
and `--readings` is what `benchmarks.kept_readings` took out of the cache. Only pairs that every way has read are
counted, so that all differences are paired. `--first 1280` counts the first in the order of reading alone, since the
last slice of a run that was cut off holds some sets more than others; `--without pairwise/rm_bench:safety-refuse` pools
them also without some sets or subsets. "one rating drawn" is what ratings drawn from the probabilities behind
`weighted` would give (temperature 0.7), in expectation: the same words and the same forward, read by sampling.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from benchmarks.facts_table import cell
from latent_rewards.evaluation import scores
from latent_rewards.evaluation.report import write as report
from latent_rewards.evaluation.scores import ItemScores
from latent_rewards.files.markdown import table
from latent_rewards.files.outputs import to_json
from latent_rewards.stats.bootstrap import Estimate, difference, mean_estimate, statistic_estimate

AGAINST = ("likert10/one", "likert10/mean", "likert10/greedy", "likert5/one", "likert5/mean")
LEFT_OUT = ("/argmax", "/mode")  # ties, and nothing else of their own
DRAWN = "weighted, one rating drawn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the evaluation")
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    parser.add_argument("--probe", type=Path)
    parser.add_argument("--readings", type=Path)
    parser.add_argument("--first", type=int, help="so many pairs, in the order in which they were read")
    parser.add_argument("--without", nargs="*", default=[], help="'set' or 'set:beginning of a subset'")
    parser.add_argument("--commit", default="", help="of the code that read the pairs")
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    rows = [r for r in scores.read(args.run / scores.FILE) if r["kind"] == "pair"]
    ways = {name: wins_of(rows, name) for name in rows[0]["scores"] if not name.endswith(LEFT_OUT)}
    for path in (args.probe, args.readings):
        if path:
            ways |= {name: lined_up(rows, path, won) for name, won in extra(path).items()}
    if args.first:
        ways = {name: np.where(turn(rows) < args.first, won, np.nan) for name, won in ways.items()}
    run = report.load(args.run)["run"]
    told = {k: run[k] for k in ("judge", "judge_revision", "judge_arithmetic", "machine")} | {"commit": args.commit}
    found = told | measure(rows, ways, args.without, args.resamples)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.json").write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
    Path(f"{args.out}.md").write_text(markdown(found), encoding="utf-8")


def turn(rows: Sequence[ItemScores]) -> np.ndarray:
    """(N,) place of each pair in the order of reading: that of a hash of its prompt, whatever set it is of."""
    return np.argsort(np.argsort([hashlib.sha256(r["group"].encode()).hexdigest() for r in rows], kind="stable"))


def wins_of(rows: Sequence[ItemScores], name: str) -> np.ndarray:
    """(N,) 1 where the chosen reply is above, 0.5 for a tie, 0 where it is below, NaN where one was not read."""
    return won(np.array([r["scores"][name] for r in rows], dtype=float))


def won(pairs: np.ndarray) -> np.ndarray:
    """(N, 2) chosen and rejected -> (N,) as `wins_of`."""
    return np.where(np.isnan(pairs).any(1), np.nan, (np.sign(pairs[:, 0] - pairs[:, 1]) + 1) / 2)


def drawn(label_logprobs: np.ndarray, temperature: float = 0.7) -> np.ndarray:
    """(N, 2, K) labels in rising order -> (N,) probability that a drawn rating is above, ties counting half."""
    p = softmax(label_logprobs / temperature, axis=-1)
    below = np.cumsum(p, -1) - p
    return (p[:, 0] * below[:, 1]).sum(-1) + (p[:, 0] * p[:, 1]).sum(-1) / 2


def extra(path: Path) -> dict[str, np.ndarray]:
    """What else is known of the pairs, in the order of the file."""
    kept = np.load(path)
    if "out_of_distribution" in kept:
        return {f"probe, {k.replace('_', ' ')}": won(kept[k]) for k in ("in_distribution", "out_of_distribution")}
    labels = kept["weighted/labels"]
    return {DRAWN: drawn(labels.reshape(-1, 2, labels.shape[1]))}


def lined_up(rows: Sequence[ItemScores], path: Path, values: np.ndarray) -> np.ndarray:
    """Values of a file of arrays in the order of the rows; NaN for pairs that it lacks."""
    kept = np.load(path)
    first = kept["response"] == 0 if "response" in kept else slice(None)
    at = dict(zip(zip(kept["benchmark"][first], kept["id"][first], strict=True), values, strict=True))
    return np.array([at.get((r["benchmark"], r["id"]), np.nan) for r in rows])


def measure(
    rows: Sequence[ItemScores], ways: Mapping[str, np.ndarray], without: Sequence[str], resamples: int
) -> dict[str, Any]:
    """Figures over the pairs that every way has read: all together, without some, and by set."""
    read = ~np.isnan(np.array(list(ways.values()))).any(0)
    names = np.array([r["benchmark"] for r in rows])
    longer = np.array([np.sign(r["lengths"][0] - r["lengths"][1]) for r in rows])
    groups = np.array([r["group"] for r in rows])
    sets = {name: read & (names == name) for name in dict.fromkeys(names.tolist())}
    counts = {name: {"pairs": int((names == name).sum()), "read": int(keep.sum())} for name, keep in sets.items()}

    rest = read & ~np.array([f"{r['benchmark']}:{r['subset']}".startswith(tuple(without)) for r in rows])

    def of(keep: np.ndarray) -> dict[str, Any]:
        return figures({n: w[keep] for n, w in ways.items()}, longer[keep], groups[keep], resamples)

    return {
        "pairs": len(rows), "read": int(read.sum()), "sets": counts, "pooled": of(read),
        "without": {"left_out": list(without), "read": int(rest.sum()), "pooled": of(rest)} if without else None,
        "by_set": {
            name: {n: mean_estimate(w[keep], groups[keep], resamples=resamples).to_dict() for n, w in ways.items()}
            for name, keep in sets.items()
        },
    }  # fmt: skip


def figures(
    ways: Mapping[str, np.ndarray], longer: np.ndarray, groups: np.ndarray, resamples: int
) -> dict[str, dict[str, Any]]:
    """Accuracy, the same length-balanced, ties, and both less each rating of `AGAINST`, paired."""

    def both(which: Any) -> dict[str, Estimate]:
        return {n: statistic_estimate(which(w), groups, resamples=resamples) for n, w in ways.items()}

    plain = both(lambda w: lambda i: float(w[i].mean()))
    balanced = both(lambda w: lambda i: balance(w[i], longer[i]))
    return {
        name: {
            "accuracy": plain[name].to_dict(), "length_balanced": balanced[name].to_dict(),
            "ties": None if name == DRAWN else float((w == 0.5).mean()),
            "minus": {o: difference(plain[name], plain[o]).to_dict() for o in AGAINST if o in ways and o != name},
            "minus_balanced": {
                o: difference(balanced[name], balanced[o]).to_dict() for o in AGAINST if o in ways and o != name
            },
        }
        for name, w in ways.items()
    }  # fmt: skip


def balance(won: np.ndarray, longer: np.ndarray) -> float:
    """Mean of the accuracy where the chosen reply is the longer and where it is the shorter."""
    sides = [won[longer == side] for side in (1, -1)]
    return float(np.mean([side.mean() for side in sides])) if all(map(len, sides)) else float("nan")


def markdown(found: Mapping[str, Any]) -> str:
    """What was read, the pooled tables, and accuracy by set."""
    sets, without = found["sets"], found["without"]
    lines = [
        f"`python -m benchmarks.pairs_table`: {found['judge']}, {found['judge_arithmetic']}, {found['machine']}, "
        f"commit {found['commit']}.", "",
        f"{found['read']} of {found['pairs']} pairs were read by every way and are counted"
        + (" (partial: the rest was not read in time)." if found["read"] < found["pairs"] else "."),
        *pooled(found["pooled"]),
    ]  # fmt: skip
    heads = [f"{name.split('/')[-1]}, {sets[name]['read']} of {sets[name]['pairs']}" for name in found["by_set"]]
    body = [[n, *(f"{s[n]['value']:.2f}" for s in found["by_set"].values())] for n in found["pooled"]]
    lines += ["", *table(["accuracy by set", *heads], body), ""]
    if without:
        lines += [
            f"## Without {', '.join(without['left_out'])}: {without['read']} pairs",
            *pooled(without["pooled"]),
            "",
        ]
    return "\n".join(lines)


def pooled(found: Mapping[str, Any]) -> list[str]:
    """A table of accuracies, and two of differences."""
    lines = [
        "",
        *table(
            ["read as", "accuracy, ties half", "length-balanced", "ties"],
            [[n, cell(f["accuracy"]), cell(f["length_balanced"]), _share(f["ties"])] for n, f in found.items()],
        ),
    ]
    for key, title in (("minus", "accuracy minus"), ("minus_balanced", "length-balanced, minus")):
        body = [[n, *(cell(f[key].get(o), "+") for o in AGAINST)] for n, f in found.items()]
        lines += ["", *table([title, *AGAINST], body)]
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    main()
