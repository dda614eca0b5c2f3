"""Best-of-N and filtering with a judge: how much of what is kept is right, by each way of reading the same judge.

    python -m benchmarks.pick_table --judge Qwen/Qwen2.5-Coder-1.5B-Instruct --policy runs/head-to-head/start
        --lists gsm8k_solutions#300 --work runs/pick --out benchmarks/results/pick-1.5b.json

The set "facts": the policy (as `recipes.head_to_head` teaches it, or any model) answers each question of the fact set
`--n` times at temperature 1; right is a check of strings. Lists of $LATENT_REWARDS_DATA come with answers and gold.
Writes the JSON and a table beside it, anew after each score; answers, gold and scores are in `--work` as <set>.json,
the readings there, too, so that a stopped run goes on. Differences are paired, over the questions whose answers differ.
Filtering keeps the best quarter of all answers to all questions. Likert ratings are drawn as in
`benchmarks.facts_table`: the same answer gets the same rating.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.facts_table import SCORES, cell, device_of
from latent_rewards import HFJudge, build_reward
from latent_rewards.data.facts import facts, is_right
from latent_rewards.engine.loading import resolve_model
from latent_rewards.evaluation import benchmarks
from latent_rewards.evaluation.kept import KeepingJudge
from latent_rewards.files.markdown import table
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import commit
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.hf import Judge
from latent_rewards.judge.prompts import to_text
from latent_rewards.stats.bootstrap import Estimate, difference, mean_estimate, statistic_estimate
from latent_rewards.stats.ranking import expected_gold_of_best
from recipes.head_to_head_policy import DEVICE, sample

READ: dict[str, dict[str, object]] = {
    **{name: options for name, options in SCORES.items() if name != "pairwise"},
    "pairwise, two pivots": {"reward": "pairwise", "opponents": "pivots", "count": 2},
}
AGAINST = ("random", "longest", "Likert-10, one rating", "Likert-10, mean of ten", "Likert-10, greedy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--policy", default="", help="writes the answers to the fact set; empty leaves the set out")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--questions", type=int, default=0, help="of the fact set, spread evenly; 0 for all")
    parser.add_argument("--lists", nargs="*", default=[], help="'name' or 'name#limit'")
    parser.add_argument("--scores", nargs="*", default=list(READ), choices=list(READ))
    parser.add_argument("--batch", type=int, default=4, help="questions read at once")
    parser.add_argument("--work", type=Path, default=Path("runs/pick"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pick.json"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plain = HFJudge(args.judge, dtype=args.dtype)
    judge = KeepingJudge(plain, args.work / "kept")
    told = {
        "judge": plain.name, "revision": plain.revision, "dtype": str(plain.blocks.model.dtype),
        "device": device_of(plain), "commit": commit(), "n": args.n,
    }  # fmt: skip
    found: dict[str, JsonObject] = {}
    for name in [*(["facts"] if args.policy else []), *args.lists]:
        path = args.work / f"{Path(name.partition('#')[0]).name.partition('.')[0]}.json"
        rows = json.loads(path.read_text()) if path.is_file() else fact_rows(args) if name == "facts" else listed(name)
        write_json(path, rows)
        for score in args.scores:
            if score not in rows[0]["scores"]:
                for row, scores in zip(rows, read(score, judge, rows, args.batch), strict=True):
                    row["scores"][score] = [None if np.isnan(s) else s for s in scores]
                write_json(path, rows)
            found[path.stem] = measure(rows)
            write_json(args.out, told | {"sets": found})
            args.out.with_suffix(".md").write_text(markdown(told, found), encoding="utf-8")
    print(args.out.with_suffix(".md").read_text())


def fact_rows(args: argparse.Namespace) -> list[JsonObject]:
    """Answers of the policy to the fact set, and whether they are right."""
    asked = facts()
    picked = np.linspace(0, len(asked) - 1, args.questions or len(asked)).astype(int)
    asked, source = [asked[i] for i in picked], resolve_model(args.policy)
    policy = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).to(DEVICE)
    answers = sample(policy, AutoTokenizer.from_pretrained(source), asked, args.n, 0, 28)
    return [
        {"prompt": f["question"], "answers": texts, "gold": [float(is_right(t, f)) for t in texts], "scores": {}}
        for f, texts in zip(asked, answers, strict=True)
    ]


def listed(spec: str) -> list[JsonObject]:
    """Lists that come with their answers."""
    items = benchmarks.load(spec if "/" in spec or spec.endswith(".jsonl") else f"listwise/{spec}").items
    return [{"prompt": i.prompt, "answers": list(i.responses), "gold": list(i.gold), "scores": {}} for i in items]


def read(name: str, judge: Judge, rows: Sequence[JsonObject], batch: int) -> list[np.ndarray]:
    """Scores of each row's answers."""
    options = dict(READ[name])
    reward = build_reward(str(options.pop("reward")), judge, **options)
    out: list[np.ndarray] = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        prompts = [row["prompt"] for row in some for _ in row["answers"]]
        scores = reward.score(prompts, [text for row in some for text in row["answers"]])
        out += np.split(scores, np.cumsum([len(row["answers"]) for row in some])[:-1])
        print(f"{name}: {start + len(some)} of {len(rows)}", flush=True)
    return out


def measure(rows: Sequence[JsonObject]) -> JsonObject:
    """Gold of the pick by each score, and less each of `AGAINST`, on the rows whose answers differ in gold.

    And gold of the best quarter of the answers of all rows.
    """
    differ = [row for row in rows if len(set(row["gold"])) > 1]
    ways = ["random", "longest", "oracle", *rows[0]["scores"]]
    picks = {way: estimate([gold_of_pick(way, row) for row in differ]) for way in ways}
    kept = {way: gold_of_quarter(way, rows) for way in ways}
    mean = float(np.mean([np.mean(row["gold"]) for row in rows]))
    return {
        "questions": len(rows), "measured": len(differ), "mean_gold": mean,
        "picks": {way: {
            "gold": found.to_dict(), "tied": sum(tied(way, row) for row in differ) / len(differ) if differ else None,
            "unread": sum(s is None for row in differ for s in row["scores"].get(way, [])),
            "minus": {o: difference(found, picks[o]).to_dict() for o in AGAINST if o in picks and o != way},
        } for way, found in picks.items()},
        "kept_quarter": {way: {
            "gold": found.to_dict(),
            "minus": {o: difference(found, kept[o]).to_dict() for o in AGAINST if o in kept and o != way},
        } for way, found in kept.items()},
    }  # fmt: skip


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over questions; the same draws for all ways, so that differences are paired."""
    return mean_estimate(np.array(values), np.arange(len(values)), resamples=2000)


def gold_of_quarter(way: str, rows: Sequence[JsonObject]) -> Estimate:
    """Mean gold of the quarter of all answers with the highest scores; the same draws of questions for all ways."""
    scores = np.concatenate([scores_of(way, row) for row in rows])
    gold = np.concatenate([np.array(row["gold"], dtype=float) for row in rows])
    groups = np.repeat(np.arange(len(rows)), [len(row["answers"]) for row in rows])
    return statistic_estimate(lambda at: quarter(scores[at], gold[at]), groups, resamples=1000)


def quarter(scores: np.ndarray, gold: np.ndarray) -> float:
    """Mean gold of the highest quarter; answers that tie at its end count with their mean."""
    n = max(1, len(scores) // 4)
    last = np.sort(scores)[-n]
    above, tied = scores > last, scores == last
    return float((gold[above].sum() + (n - above.sum()) * gold[tied].mean()) / n)


def gold_of_pick(way: str, row: Mapping[str, Any]) -> float:
    """Gold of the highest answer; those that tie count with their mean."""
    return float(expected_gold_of_best(scores_of(way, row), np.array(row["gold"], dtype=float))[-1])


def tied(way: str, row: Mapping[str, Any]) -> bool:
    """Whether several different answers are the highest."""
    scores = scores_of(way, row)
    return len({t for t, s in zip(row["answers"], scores, strict=True) if s == scores.max()}) > 1


def scores_of(way: str, row: Mapping[str, Any]) -> np.ndarray:
    """(N,) scores of a row's answers; one that could not be read comes last."""
    if way == "random":
        return np.zeros(len(row["answers"]))
    if way == "longest":
        return np.array([len(to_text(text)) for text in row["answers"]], dtype=float)
    scores = np.array(row["gold"] if way == "oracle" else row["scores"][way], dtype=float)
    lowest = 0.0 if np.isnan(scores).all() else np.nanmin(scores)
    return np.where(np.isnan(scores), lowest - 1, scores)


def markdown(told: Mapping[str, object], sets: Mapping[str, JsonObject]) -> str:
    """One table a set."""
    lines = [f"`python -m benchmarks.pick_table`: {', '.join(f'{k} {v}' for k, v in told.items())}", ""]
    head = ["pick by", "right", *(f"minus {other}" for other in AGAINST), "ties at the top"]
    for name, found in sets.items():
        lines += [f"## {name}", "", f"{found['measured']} of {found['questions']} questions have answers that differ."]
        body = [
            [
                way,
                cell(f["gold"]),
                *(cell(f["minus"].get(o), "+") for o in AGAINST),
                "-" if f["tied"] is None else f"{f['tied']:.0%}",
            ]
            for way, f in found["picks"].items()
        ]
        lines += ["", *table(head, body), "", "The best quarter of all answers:", ""]
        body = [
            [way, cell(f["gold"]), *(cell(f["minus"].get(o), "+") for o in AGAINST)]
            for way, f in found["kept_quarter"].items()
        ]
        lines += [*table(["kept by", *head[1:-1]], body), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
