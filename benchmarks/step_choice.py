"""Choosing among four solutions of a sum by what the judge says after every step, beside reading them whole.

    export LATENT_REWARDS_DATA=../shared/data
    python -m benchmarks.step_choice --judge Qwen/Qwen2.5-Coder-1.5B-Instruct     # reads; keeps it in runs/steps/
    python -m benchmarks.step_choice --table runs/steps --out benchmarks/results/steps-1.5b

Questions of `listwise/gsm8k_solutions` with four solutions each, of which some are right and some wrong; a step is a
line. Every solution is read after each of its steps under `progress` and `step_correct`, and whole under `weighted` and
`verifier`. `--part 0/4` reads a quarter of the questions.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import readings_file
from benchmarks.probe_sample import read_jsonl
from benchmarks.readings_file import Arrays, cell
from latent_rewards import HFJudge, JudgePrompt, Need, Request, StepReward, readouts
from latent_rewards.files.markdown import table
from latent_rewards.files.runs import command, commit
from latent_rewards.rewards.steps import _AGGREGATES as AGGREGATES
from latent_rewards.stats.bootstrap import Estimate, difference, mean_estimate, statistic_estimate
from latent_rewards.stats.ranking import expected_gold_of_best

FILE = "listwise/gsm8k_solutions"
STEPS, WHOLE = ("progress", "step_correct"), ("weighted", "verifier")
MOST_STEPS = 24  # no solution of the file has more
RANDOM, LONGEST = "random", "longest"


def questions(folder: Path, most: int | None) -> list[dict[str, Any]]:
    """The file's questions in the order of their id's hash."""
    rows = read_jsonl(folder / f"{FILE}.jsonl.gz")
    return sorted(rows, key=lambda r: hashlib.sha256(str(r["id"]).encode()).hexdigest())[:most]


def read(judge: HFJudge, rows: list[dict[str, Any]], index: np.ndarray) -> Arrays:
    """Label log-probabilities of every solution of some questions, whole and after each step; a row each.

    Returns:
        (N,) `index` of the solution, `list` of its question, `gold`, `length` in characters, number of `steps`;
        (N, K) of the prompts for whole replies; (N, T, K) of those for steps, NaN behind the last step.
    """
    flat = [(i, row["prompt"], r, g) for i, row in zip(index, rows, strict=True)
            for r, g in zip(row["responses"], row["gold"], strict=True)]  # fmt: skip
    prompts, replies = [f[1] for f in flat], [f[2] for f in flat]
    rewards = [StepReward(judge, prompt=name, split="lines") for name in STEPS]
    plain = [{"prompt": p, "completion": r} for p, r in zip(prompts, replies, strict=True)]
    requests = [Request(JudgePrompt.load(name), plain, Need(True)) for name in WHOLE]
    requests += [request for reward in rewards for request in reward.requests(reward.rows(prompts, replies, {}))]
    found = [reading.label_logprobs for reading in judge.read(requests)]
    counts = np.array([len(rewards[0]._texts(row)) for row in rewards[0].rows(prompts, replies, {})])
    if counts.max() > MOST_STEPS:
        raise ValueError(f"a solution has {counts.max()} steps, {MOST_STEPS} are kept; raise MOST_STEPS")
    at = np.concatenate([np.arange(n) for n in counts])
    out: Arrays = {
        "index": np.concatenate([4 * i + np.arange(len(r["responses"])) for i, r in zip(index, rows, strict=True)]),
        "list": np.array([f[0] for f in flat]), "gold": np.array([f[3] for f in flat], dtype=np.float32),
        "length": np.array([len(r) for r in replies]), "steps": counts,
    }  # fmt: skip
    for name, logprobs in zip((*WHOLE, *STEPS), found, strict=True):
        assert logprobs is not None
        out[name] = logprobs.numpy()
        if name in STEPS:
            out[name] = np.full((len(flat), MOST_STEPS, logprobs.shape[1]), np.nan, dtype=np.float32)
            out[name][np.repeat(np.arange(len(flat)), counts), at] = logprobs.numpy()
    return out


def collect(args: argparse.Namespace) -> Path:
    """Read the questions of a part; the file of its readings."""
    rows = questions(Path(os.environ["LATENT_REWARDS_DATA"]), args.questions)
    return readings_file.read_in_shards(args, "steps", rows, read)


def scores(arrays: Arrays) -> dict[str, np.ndarray]:
    """(N,) scores of every way to read a solution, higher is better."""
    values = {name: JudgePrompt.load(name).labels.values for name in (*STEPS, *WHOLE)}
    out = {LONGEST: arrays["length"].astype(float)}
    for name in WHOLE:
        of = readouts.log_odds if name == "verifier" else readouts.expected_rating
        out[name] = of(torch.tensor(arrays[name]), values[name]).double().numpy()
    for name in STEPS:
        n, t, k = arrays[name].shape
        flat = torch.tensor(arrays[name].reshape(n * t, k))
        curve = readouts.expected_rating(flat, values[name]).double().numpy().reshape(n, t)
        top = max(values[name])
        for how, of_steps in AGGREGATES.items():
            scale = top if how == "product" else 1.0
            out[f"{name}, {how}"] = np.array(
                [of_steps(s[:count] / scale) for s, count in zip(curve, arrays["steps"], strict=True)]
            )
    return out


def picks(score: np.ndarray, arrays: Arrays) -> np.ndarray:
    """(Q,) gold of the best-scored solution of each question, ties shared; NaN where a score is missing."""
    out = []
    for number in np.unique(arrays["list"]):
        own = arrays["list"] == number
        known = not np.isnan(score[own]).any()
        out.append(expected_gold_of_best(score[own], arrays["gold"][own])[-1] if known else np.nan)
    return np.array(out)


def auc(score: np.ndarray, gold: np.ndarray) -> float:
    """P(a right solution scores above a wrong one), ties half."""
    from scipy.stats import rankdata

    right = gold > 0.5
    n, m = int(right.sum()), int((~right).sum())
    return float((rankdata(score)[right].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def figures(arrays: Arrays) -> list[dict[str, Any]]:
    """A row for each way: gold of its pick, less chance, `weighted` and `verifier`; AUC, and less `verifier`'s."""
    numbers = np.unique(arrays["list"])
    chance = np.array([arrays["gold"][arrays["list"] == i].mean() for i in numbers])
    base = mean_estimate(chance, numbers)
    found = scores(arrays)
    made = {name: mean_estimate(picks(s, arrays), numbers) for name, s in found.items()}
    rows = [{"scorer": RANDOM, "pick": base[:3], "n": base.n}]
    areas: dict[str, Estimate] = {}
    for name, score in found.items():
        own = made[name]
        row: dict[str, Any] = {"scorer": name, "pick": own[:3], "n": own.n, "over random": difference(own, base)[:3]}
        row |= {f"over {w}": difference(own, made[w])[:3] for w in WHOLE if w != name}
        known = np.flatnonzero(~np.isnan(score))
        areas[name] = _auc(score[known], arrays["gold"][known], arrays["list"][known])
        row["auc"] = areas[name][:3]
        rows.append(row)
    for row in rows[1:]:  # paired where all that both scored is the same
        own, other = areas[row["scorer"]], areas["verifier"]
        if row["scorer"] != "verifier" and own.n == other.n:
            row["auc over verifier"] = difference(own, other)[:3]
    return rows


def _auc(score: np.ndarray, gold: np.ndarray, group: np.ndarray) -> Estimate:
    return statistic_estimate(lambda rows: auc(score[rows], gold[rows]), group)


def page(result: dict[str, Any]) -> str:
    """The table."""
    keys = ("scorer", "n", "pick", "over random", "over weighted", "over verifier", "auc", "auc over verifier")
    cells = [[cell(row.get(key)) for key in keys] for row in result["rows"]]
    said = (
        f"`{result['command']}`; commit {result['commit']}, {result['judge']}, {result['device']}. "
        f"{result['questions']} questions with four solutions each, {result['steps']:.1f} steps a solution. The pick "
        "is the share of questions in which the best-scored solution is right; AUC is of all solutions, right against "
        "wrong. 95 % intervals are bootstrap intervals over questions, differences paired."
    )
    return "\n".join(["# Steps as choosers among four solutions", "", said, "", *table(list(keys), cells), ""])


def tabulate(folder: Path, out: Path, judge: str | None) -> None:
    """Figures of the readings in a folder."""
    about, arrays = readings_file.load_all(sorted(folder.glob("steps-*.npz")))
    result = about | {
        "command": command("benchmarks.step_choice"), "commit": commit(), "judge": judge or about["judge"],
        "questions": len(np.unique(arrays["list"])), "steps": float(arrays["steps"].mean()), "rows": figures(arrays),
    }  # fmt: skip
    readings_file.write(out, result, page(result))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--root", type=Path, default=Path("runs/steps"), help="folder of the readings")
    parser.add_argument("--questions", type=int, help="take only the first so many")
    parser.add_argument("--part", default="0/1", help="which part of the questions, as in 0/4")
    parser.add_argument("--shard", type=int, default=24, help="questions read at once")
    parser.add_argument("--batch-tokens", type=int, help="most tokens of one forward")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="make the table of the readings in this folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/steps"), help="of the table, no ending")
    parser.add_argument("--name", help="name of the judge, where it was loaded from a folder")
    args = parser.parse_args()
    if args.table is None:
        print(collect(args))
    else:
        tabulate(args.table, args.out, args.name)


if __name__ == "__main__":
    main()
