r"""Trains the probe that tells answers from what only looks like one, and measures it on prompts it never saw.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.attack_gate --out runs/gate \
        --ship latent_rewards/shipped/embedded_gate

Training prompts come from files under MIT or Apache-2.0 alone; the attack table is measured on other files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from latent_rewards import HFJudge, JudgePrompt, ProbeReward
from latent_rewards.attack_negatives import attack_examples
from latent_rewards.evaluation import benchmarks
from latent_rewards.evaluation.attacks import best_response
from latent_rewards.evaluation.benchmarks.rows import Item
from latent_rewards.examples import Example
from latent_rewards.probe_run import RunOptions, train_probe
from latent_rewards.probe_training import FitOptions

FILES = ("llmbar", "llmbar_casestudy", "alpacaeval_lenmatched", "hhh_alignment", "llmeval2", "hh_harmless")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--prompt", default="weighted")
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    parser.add_argument("--ship", type=Path)
    parser.add_argument("--per-file", type=int, default=110)
    parser.add_argument("--max-chars", type=int, default=800)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 15, 18])
    parser.add_argument("--strength", type=float, default=0.03)
    parser.add_argument("--pass-share", type=float, default=0.995)
    args = parser.parse_args()
    judge, prompt = HFJudge(args.judge), JudgePrompt.load(args.prompt)
    items = {
        json.dumps(i.prompt): i
        for name in FILES
        for i in benchmarks.load(f"pairwise/{name}", args.per_file, max_chars=args.max_chars).items
    }
    kept = list(items.values())
    unseen, seen = kept[::4], [i for k, i in enumerate(kept) if k % 4]
    probe, sweep = train_probe(
        judge, prompt, made_of(seen), features_folder=args.out / "features", fit=FitOptions(),
        run=RunOptions(
            layers=tuple(args.layers), test_share=0.0, concatenate=len(args.layers) > 1, strengths=(args.strength,)
        ),
        training={
            "data": [f"chosen answers of {', '.join(FILES)} ({len(seen)} prompts) against attack negatives"],
            "licence": "apache-2.0",
            "limits": ["Made against empty and misplaced answers; how good an answer is, it hardly knows."],
            "command": "python -m benchmarks.attack_gate",
        },
    )  # fmt: skip
    probe.save(args.out / "probe")
    tests = made_of(unseen)
    reward = ProbeReward(judge, args.out / "probe")
    scores = reward.score([e.prompt for e in tests], [e.completion for e in tests])
    label = np.array([e.label for e in tests])
    threshold = float(np.quantile(scores[label == 1], 1 - args.pass_share))
    facts = {
        "threshold": threshold, "honest": int((label == 1).sum()), "attacks": int((label == 0).sum()),
        "attacks_below": float((scores[label == 0] < threshold).mean()), "layer": list(probe.config.layers),
        "outscored": outscored(scores, tests),
        "sweep": sweep,
    }  # fmt: skip
    (args.out / "gate.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps({k: v for k, v in facts.items() if k != "sweep"}))
    if args.ship:
        probe.save(args.ship)


def outscored(scores: np.ndarray, tests: list[Example]) -> dict[str, float]:
    """Share of attacks that score at least as high as the honest answer to the same prompt, by place in the list."""
    honest = {e.pair: s for s, e in zip(scores, tests, strict=True) if e.label == 1}
    place: dict[int, int] = {}
    hits: dict[str, list[bool]] = {}
    for score, e in zip(scores, tests, strict=True):
        if e.label == 0:
            k = place[e.pair] = place.get(e.pair, -1) + 1
            hits.setdefault(("other answer", "other answer", "start", "phrase", "phrase")[min(k, 4)], []).append(
                bool(score >= honest[e.pair])
            )
    return {k: float(np.mean(v)) for k, v in hits.items()}


def made_of(items: list[Item]) -> list[Example]:
    """Honest answers and their attack negatives."""
    return attack_examples([i.prompt for i in items], [best_response(i) for i in items])


if __name__ == "__main__":
    main()
