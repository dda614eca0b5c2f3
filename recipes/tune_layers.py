"""Tune one weight per layer for the cross-layer score on rated examples, once per judge (LAGER).

Source: Lai et al. 2025, "Beyond the Surface"; settings as published.

    python recipes/tune_layers.py --config configs/tune_layers/embedded_cpu.yaml

Prints Spearman's rho on prompts that neither the tuning nor its fallback check saw, for the last layer alone, uniform
and tuned weights, through the raw and the normed lens. Writes the better lens's weights to `output_dir` (load them with
`LayerWeights.load(output_dir).reward(judge)`), `results.json` and `weights.png`.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from transformers.hf_argparser import HfArg

from latent_rewards import HFJudge, JudgePrompt
from latent_rewards.files.outputs import write_json
from latent_rewards.judge.layouts import BadRow
from latent_rewards.probes.card import table
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.examples import gather, sources
from latent_rewards.probes.layer_weights import TuneOptions, tune_layers
from latent_rewards.readouts import cross_layer, expected_rating
from latent_rewards.rewards.layer_weights import LayerWeights


@dataclass
class TuneArguments:
    """What to tune on."""

    data: list[str] = HfArg(default_factory=list, help="JSON Lines files with prompt, response, score.")
    output_dir: str = HfArg(default="runs/tune_layers", help="Folder of the weights.")
    judge: str = HfArg(default="embedded", help="Hub id, folder or 'embedded'.")
    prompt: str = HfArg(default="weighted", help="Judge prompt with labels.")
    dtype: str = HfArg(default="auto", help="Of the judge.")
    max_length: int | None = HfArg(default=None, help="Most tokens the judge reads.")
    limit: int | None = HfArg(default=None, help="Most rows of each file.")
    test_share: float = HfArg(default=0.3, help="Share of prompts for the figures.")
    epochs: int = HfArg(default=1, help="1; the paper takes 2 for Qwen2.5.")
    drop_last: bool = HfArg(default=False, help="Leave out the last layer, as the published code does.")
    seed: int = HfArg(default=42, help="Of the order and the splits.")


def main(args: TuneArguments) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out, prompt = Path(args.output_dir), JudgePrompt.load(args.prompt)
    judge = HFJudge(args.judge, dtype=args.dtype, max_length=args.max_length)
    bad: list[BadRow] = []
    examples, values = gather(args.data, limit=args.limit, bad=bad), prompt.labels.values
    folder = out / "features"
    features = collect_features(judge, prompt, examples, [], folder=folder, layer_logits=("normed", "raw"))
    read = features.column("read").astype(bool)
    rating, group = features.column("label")[read], features.column("group")[read]
    rating = rescaled(rating, features.column("source")[read], values)
    unseen = np.isin(group, np.random.default_rng(args.seed).permutation(np.unique(group))[: _share(group, args)])
    last = expected_rating(torch.tensor(features.column("label_logprobs")[read]), values)
    rows = [{"scorer": "last layer", "n": int(unseen.sum()), "spearman": _rho(last, rating, unseen)}]
    options = TuneOptions(epochs=args.epochs, seed=args.seed, drop_last=args.drop_last)
    found = {}
    for lens in ("normed", "raw"):
        logits = torch.tensor(features.column(f"layer_logits_{lens}")[read])
        weights, facts = tune_layers(logits[~unseen], rating[~unseen], values, options)
        for name, w in (("uniform", None), ("tuned", weights)):
            score = cross_layer(logits, values, weights=w, drop_last=args.drop_last)
            row = {"scorer": f"{name}, {lens}", "n": int(unseen.sum()), "spearman": _rho(score, rating, unseen)}
            rows.append(row)
        found[lens] = (facts["mse_uniform" if facts["uniform"] else "mse_tuned"], weights, facts)
    lens = min(found, key=lambda k: found[k][0])
    _, weights, facts = found[lens]
    record = {"data": sources(args.data, bad), "command": f"python {' '.join(sys.argv)}", "figures": rows, **facts}
    kept = LayerWeights(
        weights, judge.name, judge.revision, prompt.hash, lens, args.drop_last, facts["uniform"], record
    )
    kept.save(out)
    about = {"arguments": dataclasses.asdict(args), "judge_revision": judge.revision, "lens": lens, "figures": rows}
    write_json(out / "results.json", about)
    draw({k: v[1] for k, v in found.items()}, out / "weights.png", judge.name)
    print(table(rows))
    print(f"{lens} lens kept{' (uniform: tuning did not help)' if facts['uniform'] else ''}, saved in {out}")


def rescaled(rating: np.ndarray, source: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Ratings on the scale of the labels: each file's own lowest and highest rating become the lowest and highest."""
    out = np.empty_like(rating)
    for s in np.unique(source):
        rows = source == s
        out[rows] = np.interp(rating[rows], [rating[rows].min(), rating[rows].max()], [min(values), max(values)])
    return out


def draw(weights: dict[str, torch.Tensor], path: Path, judge: str) -> None:
    """The tuned weights by layer, beside the uniform weight."""
    fig = Figure(figsize=(8, 4), layout="constrained")
    ax = fig.subplots()
    for lens, w in weights.items():
        ax.plot(range(len(w)), w, "o-", label=f"{lens} lens")
    ax.axhline(1 / len(w), color="0.5", ls="--", label="uniform")
    ax.set(xlabel="layer (0 is the embedding)", ylabel="weight", title=f"Layer weights of {judge}")
    ax.legend(frameon=False)
    fig.savefig(path, dpi=150)


def _share(group: np.ndarray, args: TuneArguments) -> int:
    return max(1, int(len(np.unique(group)) * args.test_share))


def _rho(score: torch.Tensor, rating: np.ndarray, rows: np.ndarray) -> float:
    return float(spearmanr(score.numpy()[rows], rating[rows]).statistic)


if __name__ == "__main__":
    from trl import TrlParser

    main(*TrlParser(TuneArguments).parse_args_and_config())
