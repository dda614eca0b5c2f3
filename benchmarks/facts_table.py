"""How well each reading of a judge knows the fact set: the right answer against four wrong ones, by kind of question.

    python -m benchmarks.facts_table --judge Qwen/Qwen2.5-Coder-1.5B-Instruct --work runs/facts
        --out benchmarks/results/facts-1.5b.json [--each 10] [--scores weighted pairwise]

Writes the JSON and a table beside it, anew after each score. Readings are kept in `--work`, so that a stopped run goes
on. `--each` takes the first questions of each kind; "pairwise" compares the five answers with each other. Likert
ratings are drawn from the exact label probabilities under a choice constraint. Differences are paired by question.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latent_rewards import HFJudge, Reward, build_reward
from latent_rewards.data.facts import Fact, facts
from latent_rewards.evaluation.kept import KeepingJudge
from latent_rewards.files.markdown import figure, table
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import commit, machine
from latent_rewards.judge.hf import Judge
from latent_rewards.stats.bootstrap import Figure, difference, mean_estimate

WRONG = ("fact", "prose", "hedge", "filler")
SCORES: dict[str, dict[str, object]] = {
    "weighted": {"reward": "weighted"},
    "weighted, hardened prompt": {"reward": "weighted", "prompt": "weighted_hardened"},
    "weighted, asked as Likert-10": {
        "reward": "weighted",
        "prompt": "likert10_guided",
    },  # so that the words are the same
    "weighted less no task": {"reward": "contrastive", "of": "weighted"},
    "verifier": {"reward": "verifier"},
    "verifier less no task": {"reward": "contrastive", "of": "verifier"},
    "Likert-10, one rating": {"reward": "likert10", "guided": True},
    "Likert-10, mean of ten": {"reward": "likert10", "guided": True, "n_samples": 10},
    "Likert-10, greedy": {"reward": "likert10", "guided": True, "temperature": 0},
    "Likert-5, one rating": {"reward": "likert5", "guided": True},
    "Likert-5, mean of ten": {"reward": "likert5", "guided": True, "n_samples": 10},
    "Likert-5, greedy": {"reward": "likert5", "guided": True, "temperature": 0},
    "letters": {"reward": "weighted", "prompt": "letters"},
    "pairwise": {"reward": "pairwise"},
}
AGAINST = tuple(name for name in SCORES if name.startswith("Likert"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--each", type=int, default=0, help="questions of each kind; 0 for all")
    parser.add_argument("--scores", nargs="*", default=list(SCORES), choices=list(SCORES))
    parser.add_argument("--batch", type=int, default=6, help="questions read at once")
    parser.add_argument("--work", type=Path, default=Path("runs/facts"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/facts.json"))
    args = parser.parse_args()
    by_kind = [list(found) for _, found in groupby(facts(), lambda f: f["kind"])]
    rows = [f for found in by_kind for f in found[: args.each or None]]
    plain = HFJudge(args.judge, dtype=args.dtype)
    judge = KeepingJudge(plain, args.work)
    kinds = np.array([f["kind"] for f in rows])
    facts_of_run = {
        "judge": plain.name, "revision": plain.revision, "dtype": str(plain.blocks.model.dtype),
        "device": device_of(plain), "commit": commit(), "questions": len(rows),
    }  # fmt: skip
    found: dict[str, dict[str, object]] = {}
    tops: dict[str, np.ndarray] = {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.scores:
        scores = read(name, judge, rows, args.batch)
        found[name], tops[name] = figures(scores, kinds), first_of(scores)
        for way, less in differences(tops).items():
            found[way]["minus"] = less
        args.out.write_text(to_json(facts_of_run | {"scores": found}, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(write(found, facts_of_run), encoding="utf-8")
    print(args.out.with_suffix(".md").read_text())


def device_of(judge: HFJudge) -> str:
    """What the judge runs on."""
    device = judge.blocks.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine()


def read(name: str, judge: Judge, rows: list[Fact], batch: int) -> np.ndarray:
    """(Q, 5) scores: right, then `WRONG`."""
    options = dict(SCORES[name])
    reward: Reward = build_reward(str(options.pop("reward")), judge, **options)
    out = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        answers = [text for f in some for text in (f["right"], *(f["wrong"][w] for w in WRONG))]
        out.append(reward.score([f["question"] for f in some for _ in range(5)], answers).reshape(-1, 5))
        print(f"{name}: {start + len(some)} of {len(rows)}", flush=True)
    return np.concatenate(out)


def first_of(scores: np.ndarray) -> np.ndarray:
    """(Q,) 1 where the right answer alone is first, one over the number of those that tie with it, else 0."""
    top = scores == scores.max(1, keepdims=True)
    return np.where(top[:, 0], 1 / top.sum(1), 0.0)


def differences(tops: dict[str, np.ndarray]) -> dict[str, dict[str, Figure]]:
    """What each score puts first more often than each of `AGAINST`, on the same questions."""
    found = {name: mean_estimate(first, np.arange(len(first))) for name, first in tops.items()}
    return {
        name: {o: difference(mine, found[o]).to_dict() for o in AGAINST if o in found and o != name}
        for name, mine in found.items()
    }


def figures(scores: np.ndarray, kinds: np.ndarray) -> dict[str, object]:
    """Shares of questions; a tie counts half, and at the top one over the number of those that tie."""
    top = scores == scores.max(1, keepdims=True)
    first = first_of(scores)
    above = 0.5 + 0.5 * np.sign(scores[:, :1] - scores[:, 1:])
    questions = np.arange(len(scores))
    return {
        "first": mean_estimate(first, questions).to_dict(),
        "above": {w: mean_estimate(above[:, i], questions).to_dict() for i, w in enumerate(WRONG)},
        "tied": float((top.sum(1) > 1).mean()),
        "by_kind": {k: float(first[kinds == k].mean()) for k in dict.fromkeys(kinds)},
        "means": dict(zip(("right", *WRONG), scores.mean(0).tolist(), strict=True)),
    }


def cell(found: Mapping[str, Any] | None, sign: str = "") -> str:
    """A figure with its interval, or nothing."""
    return figure(found["value"], found["low"], found["high"], sign=sign) if found else ""


def write(found: dict[str, dict], run: dict[str, object]) -> str:
    """The table and the one by kind."""

    def share(e: dict[str, float]) -> str:
        return f"{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]"

    lines = table(
        ["read as", "right answer first of five", *(f"above {w}" for w in WRONG), "ties at the top"],
        [[n, share(f["first"]), *(share(f["above"][w]) for w in WRONG), f"{f['tied']:.0%}"] for n, f in found.items()],
    )
    kinds = list(next(iter(found.values()))["by_kind"])
    by_kind = table(
        ["first, by kind", *kinds], [[n, *(f"{f['by_kind'][k]:.2f}" for k in kinds)] for n, f in found.items()]
    )
    less = [[n, *(cell(f["minus"].get(o), "+") for o in AGAINST)] for n, f in found.items() if "minus" in f]
    paired = ["", *table(["first, minus", *AGAINST], less)] if less else []
    told = ", ".join(f"{key} {value}" for key, value in run.items())
    head = f"`python -m benchmarks.facts_table`: {told}"
    return "\n".join([head, "", *lines, "", *by_kind, *paired, ""])


if __name__ == "__main__":
    main()
