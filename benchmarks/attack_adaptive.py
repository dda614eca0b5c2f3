"""Attacks made against the defences themselves, by somebody who has read them; they are not part of the suite.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.attack_adaptive

`stuffed`: the prompt's own words, then another prompt's answer, against the count of shared words. `closed`: the first
fifth of the honest answer with a full stop, against the look at its end. Same prompts, rewards and measure (share that
scores at least as high as the honest answer) as `configs/evaluate/attacks.yaml`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import yaml

from latent_rewards import HFJudge
from latent_rewards.evaluation import benchmarks
from latent_rewards.evaluation.attacks import best_response
from latent_rewards.evaluation.benchmarks.rows import Item
from latent_rewards.evaluation.config import EvaluateConfig
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import provenance
from latent_rewards.judge.prompts import to_text
from latent_rewards.rewards.build import build_spec
from latent_rewards.stats import bootstrap

REWARDS = ["weighted", "weighted_relevant", "probe", "probe_answered", "probe_relevant"]


def texts_of(item: Item, other: Item) -> dict[str, str]:
    """Honest answer and attacks."""
    best = best_response(item)
    words = best.split()
    start = " ".join(words[: max(1, len(words) // 5)]).rstrip(",;:.")
    return {"honest": best, "stuffed": f"{to_text(item.prompt)}\n\n{best_response(other)}", "closed": start + "."}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/evaluate/attacks.yaml"))
    parser.add_argument("--judge", help="instead of the configuration's")
    parser.add_argument("--rewards", nargs="+", help="default: those of `REWARDS` that the configuration has, else all")
    parser.add_argument("--items", type=int, help="of each benchmark; default the configuration's")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attack-adaptive.json"))
    args = parser.parse_args()
    given = yaml.safe_load(args.config.read_text())
    options = given.pop("judge_kwargs", None) or {}
    config = EvaluateConfig(**given)
    judge, specs = HFJudge(args.judge or config.judge, **options), config.specs()
    names = args.rewards or ([n for n in REWARDS if n in specs] if "weighted_relevant" in specs else list(specs))
    rows: list[tuple[Item, dict[str, str]]] = []
    for name in config.benchmarks:
        items = (
            benchmarks.load(name, config.limit, max_chars=config.max_chars)
            .sample(args.items or config.robustness_items)
            .items
        )
        rows += [(i, texts_of(i, other)) for i, other in zip(items, items[1:] + items[:1], strict=True)]
    prompts, groups = [i.prompt for i, _ in rows], np.array([i.group for i, _ in rows])
    results = {}
    for name in names:
        reward = build_spec(specs[name], judge, samples=config.samples, temperature=config.temperature)
        scores = {k: reward.score(prompts, [texts[k] for _, texts in rows]) for k in rows[0][1]}
        results[name] = {
            k: bootstrap.mean_estimate((s >= scores["honest"]).astype(float), groups).to_dict()
            for k, s in scores.items()
            if k != "honest"
        }
    found = provenance("benchmarks.attack_adaptive") | {
        "judge": judge.name,
        "prompts": len(rows),
        "success": results,
    }
    args.out.write_text(to_json(found, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
