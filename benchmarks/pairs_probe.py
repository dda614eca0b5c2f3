"""A probe beside the prompted scores of an evaluation of pairs, on the states that it kept: no forward is run.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.pairs_probe runs/eval-pairs-1.5b --out probe \
        --config configs/evaluate/pairs_1.5b.yaml

In distribution: five folds over all sets, no prompt on both sides. Out of distribution: trained on all sets but those
of the pair's own family. Settings are those of `benchmarks.probe_fits`, chosen before on other data. Writes the scores
of every item (`.npz`: benchmark, id, chosen and rejected) and the accuracies (`.json`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.kept_readings import arguments, loaded
from benchmarks.probe_fits import DEFAULT, RECIPES
from benchmarks.probe_sample import FILES
from latent_rewards.evaluation import tables
from latent_rewards.files.outputs import to_json
from latent_rewards.judge.hf import Need
from latent_rewards.probes.cross_validation import out_of_fold
from latent_rewards.probes.examples import prompt_group
from latent_rewards.probes.fit import Data, fit_head
from latent_rewards.probes.networks import state_scores
from latent_rewards.rewards.latent import ProbabilityWeightedReward
from latent_rewards.stats import bootstrap

JUDGE = "Qwen2.5-Coder-1.5B-Instruct"


def family(name: str) -> str:
    """Sets of one family are never on both sides."""
    return FILES[name].family if name in FILES else name


def main() -> None:
    args = arguments(__doc__, rank=2_000_002).parse_args()
    config, judge, sets, readings = loaded(args)
    recipe = RECIPES.get(JUDGE, DEFAULT)
    layer = config.keep_layers[0]
    reward = ProbabilityWeightedReward(judge)
    owners = [(b.name, i) for b in sets for i in b.items]
    rows = [r for b in sets for r in tables.texts(b.items, reward)]
    x = readings.fetch(reward.prompt, rows, Need(hidden=frozenset({layer}))).hidden[layer].numpy()
    known = (
        np.repeat(~np.isnan(x.reshape(len(owners), 2, -1)).any((1, 2)), 2) if x.ndim == 2 else np.zeros(len(x), bool)
    )
    names = np.repeat([n for n, _ in owners], 2)
    data = Data(
        x, np.tile([1.0, 0.0], len(owners)), np.repeat([prompt_group(i.prompt) for _, i in owners], 2),
        np.repeat(np.arange(len(owners)), 2), np.array([float(len(r)) for _, i in owners for r in i.responses]),
        np.unique(names, return_inverse=True)[1],
    )  # fmt: skip
    found = {"in_distribution": np.full(len(x), np.nan), "out_of_distribution": np.full(len(x), np.nan)}
    found["in_distribution"][known] = out_of_fold(data.take(known), recipe.inside)
    kin = np.array([family(n) for n in names])
    for one in np.unique(kin):
        train = known & (kin != one) & ~np.isin(data.group, data.group[kin == one])
        if not train.any():
            continue
        head = fit_head(data.take(train), recipe.fit, n_layers=1)
        test = known & (kin == one)
        found["out_of_distribution"][test] = state_scores(x[test], head, "linear")[:, 0]
    figures = {}
    for name, scores in found.items():
        gap = np.sign(scores[::2] - scores[1::2])
        right = np.where(np.isnan(scores[::2]), np.nan, (gap + 1) / 2)
        figures[name] = bootstrap.mean_estimate(right, data.group[::2]).to_dict()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        f"{args.out}.npz", benchmark=names[::2], id=np.array([i.id for _, i in owners]),
        **{k: v.reshape(-1, 2).astype(np.float32) for k, v in found.items()},
    )  # fmt: skip
    Path(f"{args.out}.json").write_text(to_json({"layer": layer, "recipe": JUDGE, "figures": figures}, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
