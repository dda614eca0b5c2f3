"""Lists of replies compared with each other, all in both orders: does the judge agree with itself, and whom to meet?

    export LATENT_REWARDS_DATA=../shared/data
    python -m benchmarks.anchors --judge Qwen/Qwen2.5-Coder-1.5B-Instruct     # reads; keeps it in runs/anchors/
    python -m benchmarks.anchors --table runs/anchors --out benchmarks/results/comparisons-1.5b

Every reply of a list meets every other one, either shown first. From these log-odds come the consistency figures that
`latent-rewards evaluate --consistency-items` gives (position bias, Sage's two, transitivity, score against comparison),
before and after the mean over both orders; and, for `PairwiseReward`, what a reply's score is worth when it meets
everybody, or only anchors: the one in the middle of the pointwise ratings, the best, the worst, or any
(arXiv 2603.16848). `--part 0/4` reads a quarter of the lists.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import readings_file
from benchmarks.probe_sample import read_jsonl
from benchmarks.readings_file import Arrays, cell
from latent_rewards import HFJudge, JudgePrompt, Need, Request, readouts
from latent_rewards.evaluation.benchmarks.rows import Benchmark, Item
from latent_rewards.evaluation.consistency import measure, pairs
from latent_rewards.files.markdown import table
from latent_rewards.files.runs import command, commit
from latent_rewards.judge.prompts import to_text
from latent_rewards.rewards.games import in_both_orders
from latent_rewards.stats.bootstrap import difference, mean_estimate
from latent_rewards.stats.correlation import spearman
from latent_rewards.stats.ranking import expected_gold_of_best
from latent_rewards.stats.strengths import mean_win_log_odds


class File(NamedTuple):
    """How much of a file is read: most lists, replies of each, and characters of prompt and reply together."""

    lists: int
    width: int
    chars: int


FILES = {
    "summeval": File(80, 8, 3500), "topical_chat": File(60, 6, 2500), "alpacaeval": File(60, 8, 1200),
    "gsm8k_solutions": File(200, 4, 1500), "rmb_bon": File(100, 4, 1500),
}  # fmt: skip
WIDTH = max(f.width for f in FILES.values())
LONG = 6  # replies of a list in which to choose whom to meet
POINTWISE, EVERYBODY = "weighted", "everybody"


def lists(folder: Path, share: float = 1.0) -> list[dict[str, Any]]:
    """Lists of every file in turn, by their id's hash: the first replies that are short enough, three at least."""
    parts = []
    for name, file in FILES.items():
        rows = []
        for row in read_jsonl(folder / f"listwise/{name}.jsonl.gz"):
            room = file.chars - len(to_text(row["prompt"]))
            keep = [i for i, r in enumerate(row["responses"]) if len(r) <= room][: file.width]
            if len(keep) >= min(file.width, 3):
                own = {k: [row[k][i] for i in keep] for k in ("responses", "gold")}
                rows.append({"id": str(row["id"]), "prompt": row["prompt"], "source": name, **own})
        rows.sort(key=lambda r: hashlib.sha256(r["id"].encode()).hexdigest())
        parts.append(rows[: max(1, round(share * file.lists))])
    return [row for turn in itertools.zip_longest(*parts) for row in turn if row is not None]


def read(judge: HFJudge, rows: list[dict[str, Any]], index: np.ndarray) -> Arrays:
    """Every reply of M lists against every other, and rated alone.

    Returns:
        (M,) `index` and `source`; (M, N) `gold`, `length` and `weighted`; (M, N, N) `first`, the log-odds that the
        row's reply beats the column's when it is shown first, nats. NaN behind the last reply, and on the diagonal.
    """
    prompt, pointwise = JudgePrompt.load("pairwise"), JudgePrompt.load(POINTWISE)
    assert prompt.labels is not None and pointwise.labels is not None
    games, texts, alone = [], [], []
    for m, row in enumerate(rows):
        replies = row["responses"]
        for i, j in itertools.combinations(range(len(replies)), 2):
            games += [(m, i, j), (m, j, i)]
            texts += in_both_orders({"prompt": row["prompt"]}, replies[i], replies[j])
        alone += [(m, i, {"prompt": row["prompt"], "completion": r}) for i, r in enumerate(replies)]
    compared, rated = judge.read(
        [Request(prompt, texts, Need(True)), Request(pointwise, [a[2] for a in alone], Need(True))]
    )
    assert compared.label_logprobs is not None and rated.label_logprobs is not None
    shape = (len(rows), WIDTH)
    out: Arrays = {"index": index, "source": np.array([row["source"] for row in rows])}
    out |= {name: np.full(shape, np.nan, dtype=np.float32) for name in ("gold", "length", POINTWISE)}
    out["first"] = np.full((*shape, WIDTH), np.nan, dtype=np.float32)
    odds = readouts.log_odds(compared.label_logprobs, prompt.labels.values).numpy()
    out["first"][tuple(np.array(games).T)] = odds
    at = tuple(np.array([a[:2] for a in alone]).T)
    out[POINTWISE][at] = readouts.expected_rating(rated.label_logprobs, pointwise.labels.values).numpy()
    out["gold"][at] = [g for row in rows for g in row["gold"]]
    out["length"][at] = [len(r) for row in rows for r in row["responses"]]
    return out


def collect(args: argparse.Namespace) -> Path:
    """Read the lists of a part; the file of its readings."""
    rows = lists(Path(os.environ["LATENT_REWARDS_DATA"]), args.share)
    return readings_file.read_in_shards(args, "anchors", rows, read)


def consistency(arrays: Arrays) -> dict[str, Any]:
    """The tool's own figures, of the first three replies of each list."""
    items, d, first, rated = [], [], [], []
    for m in range(len(arrays["index"])):
        n = int(np.isfinite(arrays["gold"][m]).sum())
        gold = tuple(float(g) for g in arrays["gold"][m, :n])
        items.append(Item(str(arrays["index"][m]), str(arrays["index"][m]), tuple(map(str, range(n))), gold))
        for i, j in pairs(items[-1]):
            shown, swapped = arrays["first"][m, i, j], arrays["first"][m, j, i]
            d.append((shown - swapped) / 2)
            first.append((shown, swapped))
            rated.append((arrays[POINTWISE][m, i], arrays[POINTWISE][m, j]))
    bench = Benchmark("lists", "list", tuple(items))
    scores = {POINTWISE: np.array(rated, dtype=float)}
    return dict(measure(bench, len(items), np.array(d, dtype=float), np.array(first, dtype=float), scores))


def chosen(rated: np.ndarray, count: int) -> dict[str, list[tuple[int, ...]]]:
    """Who is met by all, for each way to choose them; of "any" all choices, whose figures are averaged."""
    order = np.argsort(rated, kind="stable")
    middle = np.argsort(np.abs(rated - np.median(rated)), kind="stable")
    return {
        "the middle": [tuple(middle[:count])], "the best": [tuple(order[-count:])], "the worst": [tuple(order[:count])],
        "any": list(itertools.combinations(range(len(rated)), count)),
    }  # fmt: skip


def met(d: np.ndarray, anchors: tuple[int, ...]) -> np.ndarray:
    """(N,) scores as `PairwiseReward` gives them where only these few meet everybody."""
    known = np.zeros(d.shape, dtype=bool)
    known[list(anchors)] = known[:, list(anchors)] = True
    return mean_win_log_odds(np.where(known, d, np.nan))


def by_opponents(arrays: Arrays, counts: tuple[int, ...] = (1, 2)) -> list[dict[str, Any]]:
    """What a score is worth by whom the replies meet: rank correlation with gold, gold of the pick; paired.

    Gold of the pick is the share of the way from the list's worst reply to its best: files have scales of their own.
    """
    rows = []
    names = [EVERYBODY, *(f"{way}, {k}" for k in counts for way in chosen(np.zeros(3), 1)), POINTWISE, "length"]
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for m in range(len(arrays["index"])):
        n = int(np.isfinite(arrays["gold"][m]).sum())
        gold, first = arrays["gold"][m, :n].astype(float), arrays["first"][m, :n, :n].astype(float)
        gold = (gold - gold.min()) / (np.ptp(gold) or np.nan)
        rated, d = arrays[POINTWISE][m, :n].astype(float), (first - first.T) / 2
        ways = {EVERYBODY: [mean_win_log_odds(d)], POINTWISE: [rated]}
        ways["length"] = [arrays["length"][m, :n].astype(float)]
        for k in counts:
            ways |= {f"{w}, {k}": [met(d, a) for a in some] for w, some in chosen(rated, k).items()}
        for name, scores in ways.items():
            own = [(spearman(s, gold), expected_gold_of_best(s, gold)[-1]) for s in scores]
            values[name].append(tuple(np.mean(own, axis=0)))
    lists_ = arrays["index"]
    made = {
        name: [mean_estimate(np.array([v[i] for v in values[name]], dtype=float), lists_) for i in (0, 1)]
        for name in names
    }
    for name in names:
        row: dict[str, Any] = {"opponents": name, "lists": made[name][0].n, "spearman": made[name][0][:3]}
        row |= {"pick": made[name][1][:3]}
        if name != EVERYBODY:
            row["less everybody"] = difference(made[name][0], made[EVERYBODY][0])[:3]
        if name.startswith("the middle"):
            k = name.split(", ")[1]
            for other in ("the best", "the worst", "any"):
                row[f"less {other}"] = difference(made[name][0], made[f"{other}, {k}"][0])[:3]
        rows.append(row)
    return rows


def figures(arrays: Arrays) -> dict[str, Any]:
    """All figures, by source and of all lists together; anchors where lists are long enough to choose."""
    read_ = ~np.isnan(np.where(np.isfinite(arrays["gold"]), arrays[POINTWISE], 0.0)).any(1)
    arrays = {k: v[read_] for k, v in arrays.items()}
    out: dict[str, Any] = {"unread": int((~read_).sum()), "consistency": {}, "opponents": {}}
    for source in ("all", *sorted(set(arrays["source"]))):
        rows = np.ones(len(arrays["index"]), bool) if source == "all" else arrays["source"] == source
        own = {k: v[rows] for k, v in arrays.items()}
        out["consistency"][source] = {"lists": int(rows.sum()), **consistency(own)}
        rows &= np.isfinite(arrays["gold"]).sum(1) >= LONG
        if rows.any():
            out["opponents"][source] = by_opponents({k: v[rows] for k, v in arrays.items()})
    return out


def page(result: dict[str, Any]) -> str:
    """The tables."""
    keys = [k for k in result["consistency"]["all"] if k not in ("lists", "conflict", "conflict_one_order")]
    keys += [f"{c}: {POINTWISE}" for c in ("conflict_one_order", "conflict")]
    sources = list(result["consistency"])
    cells = []
    for key in keys:
        name, _, scorer = key.partition(": ")
        found = [result["consistency"][s].get(name) for s in sources]
        cells.append([key, *(_figure(f[scorer] if scorer and f else f) for f in found)])
    heads = [f"{s} ({result['consistency'][s]['lists']} lists)" for s in sources]
    lines = ["# Lists compared with each other", "", said(result), "", "## Does the judge agree with itself?", ""]
    lines += [*table(["figure", *heads], cells), "", "## Whom to meet", ""]
    for source, rows in result["opponents"].items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"{source}:", "", *table(keys, [[cell(row.get(k)) for k in keys] for row in rows]), ""]
    return "\n".join(lines)


def said(result: dict[str, Any]) -> str:
    """How it was measured."""
    return (
        f"`{result['command']}`; commit {result['commit']}, {result['judge']}, {result['device']}. All replies of a "
        "list against each other in both orders. Figures of agreement are of the first three replies of each, as "
        "`latent-rewards evaluate --consistency-items` gives them. Spearman is with gold within a list, the mean over "
        "lists of six replies or more; the pick is where gold of the best-scored reply stands between the list's "
        "lowest (0) and highest (1). 'The middle, 2' are the two replies nearest to the median "
        "of the pointwise ratings, and so on; 'any' is the mean over all choices. 95 % intervals are bootstrap "
        "intervals over lists, differences paired (of Spearman)."
    )


def _figure(found: Any) -> str:
    if found is None or found["value"] is None:
        return ""
    low, high = ("" if found[k] is None else f"{found[k]:.3f}" for k in ("low", "high"))
    return f"{found['value']:.3f} [{low}, {high}] {found['n']}"


def tabulate(folder: Path, out: Path, judge: str | None) -> None:
    """Figures of the readings in a folder."""
    about, arrays = readings_file.load_all(sorted(folder.glob("anchors-*.npz")))
    head = {"command": command("benchmarks.anchors"), "commit": commit(), "judge": judge or about["judge"]}
    result = about | head | figures(arrays)
    readings_file.write(out, result, page(result))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--root", type=Path, default=Path("runs/anchors"), help="folder of the readings")
    parser.add_argument("--share", type=float, default=1.0, help="of the lists of each file")
    parser.add_argument("--part", default="0/1", help="which part of the lists, as in 0/4")
    parser.add_argument("--shard", type=int, default=5, help="lists read at once")
    parser.add_argument("--batch-tokens", type=int, help="most tokens of one forward")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="make the tables of the readings in this folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/comparisons-judge"), help="no ending")
    parser.add_argument("--name", help="name of the judge, where it was loaded from a folder")
    args = parser.parse_args()
    if args.table is None:
        print(collect(args))
    else:
        tabulate(args.table, args.out, args.name)


if __name__ == "__main__":
    main()
