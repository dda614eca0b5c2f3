"""The probe that comes with the package, and its card."""

from __future__ import annotations

import dataclasses

from benchmarks.probe_fits import LENGTH, OPEN, PROBE, Bench, Recipe, rows_of
from benchmarks.probe_sample import EVERY
from latent_rewards import JudgePrompt
from latent_rewards.probes.cross_validation import out_of_fold
from latent_rewards.probes.fit import Data, fit_head
from latent_rewards.probes.networks import state_scores
from latent_rewards.probes.probe import Probe, ProbeConfig
from latent_rewards.stats.pairs import pair_report


def card_figures(benches: dict[str, Bench], data: Data, recipe: Recipe, rows: list[dict]) -> list[dict]:
    """What a card says of a probe: every benchmark left out in turn, then other prompts of the sources."""
    base = {r["file"]: r["accuracy"] for r in rows if r["scorer"] == LENGTH}
    left = [r for r in rows if r["scorer"] == PROBE and r["file"].startswith("pairwise")]
    keys = ("n", "accuracy", "n matched", "matched", "unseen n matched", "unseen matched")
    out = [
        {"file": r["file"], "trained on": "other benchmarks"}
        | {k: r[k] for k in keys}
        | {"length baseline": base[r["file"]]}
        for r in left
    ]
    score = out_of_fold(data, recipe.fit, n_layers=len(recipe.layers))
    for i, name in enumerate(recipe.sources):
        part = data.take(data.source == i)
        found = pair_report(score[data.source == i], part.label, part.pair, part.group, part.length)
        row = {"file": name, "trained on": "other prompts"}
        row |= {"n": found["n"], "accuracy": found["accuracy"]}
        row |= {"n matched": found["n_matched"], "matched": found["matched"]}
        out.append(
            row | {"unseen n matched": None, "unseen matched": None, "length baseline": found["length_baseline"]}
        )
    return out


def ship(benches: dict[str, Bench], prompt: JudgePrompt, recipe: Recipe, found: dict, to: str) -> None:
    """Train the shipped probe on the sources, and write its card."""
    sources = [benches[s] for s in recipe.sources]
    assert all(EVERY[b.name].licence in OPEN for b in sources)
    data = rows_of(sources, recipe.layers)
    tensors = fit_head(data, recipe.fit, n_layers=len(recipe.layers))
    score = state_scores(data.x, tensors, "linear")[:, 0]
    tensors = {"weight": tensors["weight"] / score.std(), "bias": (tensors["bias"] - score.mean()) / score.std()}
    training = {
        "licence": "apache-2.0",
        "data": [f"{b.name}: {len(b.features)} completions ({EVERY[b.name].licence})" for b in sources],
        "settings": dataclasses.asdict(recipe.fit)
        | {"layers": recipe.layers, "scaled": "training scores have mean 0 and deviation 1"},
        "metrics": card_figures(benches, data, recipe, found["rows"]),
        "command": found["command"],
        "limits": [
            'No figure is of rows that a probe was trained on. "Other benchmarks": probes of the same recipe without '
            'the benchmark in question. "Other prompts": probes of the same recipe without the prompts in question. '
            "Settings were chosen on two fifths of the prompts; the others are the unseen ones.",
            "A 135M judge: it orders answers like those it was trained on, and is near chance on other benchmarks. "
            "Not for training a model that people will use.",
            "On pairs built so that the worse answer looks better (LLMBar adversarial) it is at chance.",
            "Texts of more than about 3,500 characters were left out of training and of the figures.",
        ],
    }
    width = data.x.shape[1] // len(recipe.layers)
    config = ProbeConfig(
        found["judge"],
        found["revision"],
        prompt.hash,
        recipe.layers,
        width,
        objective=recipe.fit.objective,
        training=training,
    )
    Probe(config, tensors, prompt).save(to)
