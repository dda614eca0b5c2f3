"""Cross-layer scores on real ratings and pairs: raw or normed lens, uniform or tuned weights, against the last layer.

    LATENT_REWARDS_DATA=../shared/data python -m benchmarks.layer_weights_table --judge embedded

Uses (and collects, where missing) the features of `benchmarks.probe_sample`, which hold every layer's label logits.
Weights are tuned on the rated files, five-fold by prompt: a rating is scored by weights that saw none of its prompts.
Writes `benchmarks/results/layer-weights-<judge>.{json,md}`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.model_selection import GroupKFold

from benchmarks.probe_sample import FILES, RATED, arguments, collect
from latent_rewards import JudgePrompt
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import provenance
from latent_rewards.probes.card import table
from latent_rewards.probes.features import Features
from latent_rewards.probes.layer_weights import TuneOptions, tune_layers
from latent_rewards.readouts import cross_layer, expected_rating
from latent_rewards.stats.bootstrap import mean_estimate, mean_of
from latent_rewards.stats.pairs import pair_indices, wins

TUNED_ON = (*RATED, "listwise/topical_chat")
LENSES = ("normed", "raw")


@dataclass
class File:
    """Readable rows of one file; ratings on the scale of the labels."""

    name: str
    logits: dict[str, torch.Tensor]
    last: torch.Tensor
    rating: np.ndarray
    group: np.ndarray
    pair: np.ndarray


def rows_of(name: str, features: Features, values: tuple[float, ...]) -> File:
    """One file; its own lowest and highest rating become the lowest and highest label."""
    read = features.column("read").astype(bool)
    label = features.column("label")[read]
    rating = np.interp(label, [label.min(), label.max()], [min(values), max(values)])
    logits = {lens: torch.tensor(features.column(f"layer_logits_{lens}")[read]) for lens in LENSES}
    last = expected_rating(torch.tensor(features.column("label_logprobs")[read]), values)
    return File(name, logits, last, rating, features.column("group")[read], features.column("pair")[read])


def tuned_scores(files: list[File], lens: str, values: tuple[float, ...], options: TuneOptions) -> list[np.ndarray]:
    """Scores of every file by weights that saw none of their prompts; also where the tuning fell back to uniform."""
    rated = [f for f in files if f.name in TUNED_ON]
    logits = torch.cat([f.logits[lens] for f in rated])
    rating, group = np.concatenate([f.rating for f in rated]), np.concatenate([f.group for f in rated])
    scores = [np.full(len(f.rating), np.nan) for f in files]
    every = np.concatenate([f.group for f in files])
    for _, held in GroupKFold(5, shuffle=True, random_state=42).split(every, groups=every):
        out = np.unique(every[held])
        keep = ~np.isin(group, out)
        weights, _ = tune_layers(logits[keep], rating[keep], values, options)
        for file, score in zip(files, scores, strict=True):
            rows = np.isin(file.group, out)
            if rows.any():
                score[rows] = cross_layer(file.logits[lens][rows], values, weights=weights).numpy()
    return scores


def outcomes(file: File, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) 1, 0.5 or 0 for each pair of answers ordered rightly, tied, wrongly, and its prompt group."""
    better, worse = pair_indices(file.rating, file.pair)
    return wins(score, better, worse), file.group[better]


def rho_draws(score: np.ndarray, rating: np.ndarray, group: np.ndarray, draws: int = 500) -> np.ndarray:
    """(1 + draws,) Spearman's rho, first of the rows, then of bootstrap samples of prompts (the same in every call)."""
    names, index = np.unique(group, return_inverse=True)
    rows = [np.flatnonzero(index == i) for i in range(len(names))]
    rng = np.random.default_rng(42)
    found = [_rho(score, rating)]
    for _ in range(draws):
        drawn = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        found.append(_rho(score[drawn], rating[drawn]))
    return np.array(found)


def interval(draws: np.ndarray) -> tuple[float, float, float]:
    """The first entry, with the 95 % interval of the others."""
    low, high = np.nanquantile(draws[1:], [0.025, 0.975])
    return float(draws[0]), float(low), float(high)


def _rho(score: np.ndarray, rating: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(score), rankdata(rating))[0, 1])


def main() -> None:
    logging.getLogger("latent_rewards.probes.layer_weights").setLevel(logging.ERROR)
    parser = arguments(__doc__)
    parser.set_defaults(files=[*FILES, *RATED])
    parser.add_argument("--epochs", type=int, default=1, help="the paper: 1, and 2 for Qwen2.5")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    prompt = JudgePrompt.load("weighted")
    assert prompt.labels is not None
    values = prompt.labels.values
    found = [(rows_of(name, features, values), features.info) for name, _, features in collect(args, prompt)]
    files, info = [f for f, _ in found], found[0][1]
    scores: dict[str, list[np.ndarray]] = {"last layer": [f.last.numpy() for f in files]}
    for lens in LENSES:
        scores[f"uniform, {lens}"] = [cross_layer(f.logits[lens], values).numpy() for f in files]
        if any(f.name in TUNED_ON for f in files):
            scores[f"tuned, {lens}"] = tuned_scores(files, lens, values, TuneOptions(epochs=args.epochs))
    result = provenance("benchmarks.layer_weights_table") | {"judge": info.judge}
    result |= {"revision": info.revision, "prompt_hash": prompt.hash}
    result |= {k: f(files, scores) for k, f in (("ratings", ratings), ("pairs", pairs), ("differences", differences))}
    out = args.out / f"layer-weights-{info.judge}"
    out.with_name(f"{out.name}.json").write_text(to_json(result, indent=1))
    text = f"`{result['command'].strip()}`, commit {result['commit']}, {result['machine']}\n"
    if result["ratings"]:
        text += "\nSpearman's rho with the ratings:\n\n" + table(result["ratings"])
    text += "\nShare of pairs ordered rightly (0.5 is chance):\n\n" + table(result["pairs"])
    text += "\nDifferences of the means over files:\n\n" + table(result["differences"])
    out.with_name(f"{out.name}.md").write_text(text)
    print(text)


def ratings(files: list[File], scores: dict[str, list[np.ndarray]]) -> list[dict]:
    """Rank correlation with the ratings, by rated file."""
    rows = []
    for i, file in enumerate(files):
        if file.name in TUNED_ON:
            found = {k: interval(rho_draws(s[i], file.rating, file.group)) for k, s in scores.items()}
            rows.append({"file": file.name, "n": len(file.rating), **found})
    if rows:
        rows.append({"file": "mean", "n": sum(r["n"] for r in rows)})
        rows[-1] |= {k: float(np.mean([r[k][0] for r in rows[:-1]])) for k in scores}
    return rows


def pairs(files: list[File], scores: dict[str, list[np.ndarray]]) -> list[dict]:
    """Share of pairs ordered rightly, by pairwise and listwise file."""
    rows = []
    for i, file in enumerate(files):
        if (file.pair >= 0).any():
            won = {k: outcomes(file, s[i]) for k, s in scores.items()}
            rows.append(
                {"file": file.name, "n": len(won["last layer"][0])} | {k: mean_estimate(*w)[:3] for k, w in won.items()}
            )
    rows.append(
        {"file": "mean", "n": sum(r["n"] for r in rows)} | {k: float(np.mean([r[k][0] for r in rows])) for k in scores}
    )
    return rows


def differences(files: list[File], scores: dict[str, list[np.ndarray]]) -> list[dict]:
    """Paired differences of the means over files, with intervals that resample prompts within each file."""
    rated = [(i, f) for i, f in enumerate(files) if f.name in TUNED_ON]
    paired = [(i, f) for i, f in enumerate(files) if (f.pair >= 0).any()]
    rows = []
    for a, b in (
        ("uniform, raw", "uniform, normed"), ("tuned, raw", "tuned, normed"), ("uniform, normed", "last layer"),
        ("uniform, raw", "last layer"), ("tuned, normed", "uniform, normed"), ("tuned, raw", "uniform, raw"),
    ):  # fmt: skip
        if a not in scores or b not in scores:
            continue
        row: dict = {"difference": f"{a} - {b}"}
        if rated:
            draws = {k: np.mean([rho_draws(scores[k][i], f.rating, f.group) for i, f in rated], 0) for k in (a, b)}
            row["rho"] = interval(draws[a] - draws[b])
        if paired:
            gaps = []
            for i, f in paired:
                (wa, group), (wb, _) = outcomes(f, scores[a][i]), outcomes(f, scores[b][i])
                gaps.append(mean_estimate(wa - wb, group))
            row["pairs"] = mean_of(gaps)[:3]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
