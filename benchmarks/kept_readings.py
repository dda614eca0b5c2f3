"""What an evaluation read of each text, out of its cache: label log-probabilities, and label logits of every layer.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.kept_readings runs/eval-summeval-1.5b --out layers.npz \
        --config configs/evaluate/summeval_1.5b.yaml

So layers can be weighed anew, or contrasted with each other, without the judge. Layer logits are in half precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import yaml

from latent_rewards import HFJudge
from latent_rewards.evaluation import benchmarks, tables
from latent_rewards.evaluation.config import EvaluateConfig
from latent_rewards.evaluation.readings import Readings
from latent_rewards.files.cache import Cache
from latent_rewards.rewards.build import build_spec
from latent_rewards.rewards.cross_layer import CrossLayerReward
from latent_rewards.rewards.latent import ProbabilityWeightedReward, VerifierReward

MOST_LABELS = 20  # more of them take more room than they are worth


def loaded(args: argparse.Namespace) -> tuple[EvaluateConfig, HFJudge, list[benchmarks.Benchmark], Readings]:
    """The run as it was configured, its judge, benchmarks and cache."""
    given = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    options = given.pop("judge_kwargs", None) or {}
    config = EvaluateConfig(**given)
    judge = HFJudge(args.judge or config.judge, **options)
    limit = args.limit or config.limit
    sets = [
        benchmarks.load(name, limit, max_chars=config.max_chars, per_prompt=config.per_prompt)
        for name in config.benchmarks
    ]
    return config, judge, sets, Readings(judge, Cache(args.run / "cache", rank=args.rank))


def arguments(description: str | None, rank: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the evaluation")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--judge", help="instead of the configuration's")
    parser.add_argument("--limit", type=int, help="instead of the configuration's")
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(rank=rank)
    return parser


def main() -> None:
    args = arguments(__doc__, rank=2_000_001).parse_args()
    config, judge, sets, readings = loaded(args)
    found: dict[str, np.ndarray] = {}
    texts = [(b.name, i.id, k) for b in sets for i in b.items for k in range(len(i.responses))]
    for name, spec in config.specs().items():
        reward = build_spec(spec, judge, samples=config.samples, temperature=config.temperature)
        if not isinstance(reward, CrossLayerReward | ProbabilityWeightedReward | VerifierReward):
            continue
        rows = [r for b in sets for r in tables.texts(b.items, reward)]
        reading = readings.fetch(reward.prompt, rows, reward.need)
        assert reading.label_logprobs is not None or reading.layer_label_logits
        if reading.label_logprobs is not None and reading.label_logprobs.shape[1] <= MOST_LABELS:
            found[f"{name}/labels"] = reading.label_logprobs.numpy()
        for lens, logits in reading.layer_label_logits.items():
            found[f"{name}/layers/{lens}"] = logits.numpy().astype(np.float16)
    found["benchmark"], found["id"] = (np.array([t[k] for t in texts]) for k in (0, 1))
    found["response"] = np.array([t[2] for t in texts])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **found)
    print({k: v.shape for k, v in found.items()})


if __name__ == "__main__":
    main()
