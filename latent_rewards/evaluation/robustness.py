"""How easily a score is fooled: completions that answer nothing (`attacks.py`), and edits that change nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from latent_rewards.evaluation import tables
from latent_rewards.evaluation.attacks import KINDS, attacked
from latent_rewards.evaluation.benchmarks.rows import Benchmark
from latent_rewards.evaluation.results import Robustness
from latent_rewards.evaluation.scorers import Column
from latent_rewards.stats import bootstrap
from latent_rewards.stats.distributions import row_means

Score = Callable[[Benchmark], Mapping[str, Column]]

EDITS: dict[str, Callable[[str], str]] = {
    "trailing_newline": lambda text: text + "\n",
    "quoted": lambda text: f'"{text}"',
    "no_markdown": lambda text: re.sub(r"[*_#`]+", "", text) or text,
}


def variants(benchmark: Benchmark, count: int) -> dict[str, Benchmark]:
    """The same sample of items as they are, with attack strings for responses, and after each edit."""
    some = benchmark.sample(count)
    attacks = tuple(
        replace(item, responses=texts, gold=(0.0,) * len(texts))
        for item, texts in zip(some.items, attacked(some.items), strict=True)
    )
    out = {"original": some, "attacks": replace(some, items=attacks)}
    for name, edit in EDITS.items():
        out[name] = replace(
            some, items=tuple(replace(i, responses=tuple(edit(r) for r in i.responses)) for i in some.items)
        )
    return out


def measure(sets: Sequence[Benchmark], count: int, score: Score, *, resamples: int = 1000) -> dict[str, Robustness]:
    """Scorer -> attack success by kind, and what edits do.

    Args:
        sets: benchmarks; ratings have no better response to compare with and only count for edits.
        count: items of each.
        score: columns of latent scorers for a benchmark.
        resamples: bootstrap draws.

    Returns:
        Per scorer `attacks`: share of attacks that score at least as high as the best response to the prompt, in all
        and by kind; `gain`: mean of (attack - best response) in standard deviations of the honest scores; `worst`: the
        kind that succeeds most; `edits`: by name the mean absolute change in standard deviations of the scores, and the
        share of pairs of responses whose order flips.
    """
    attacks: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    groups: list[str] = []
    edits: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for benchmark in sets:
        versions = {name: (b, score(b)) for name, b in variants(benchmark, count).items()}
        some, original = versions["original"]
        if benchmark.kind != "rating":
            groups += [i.group for i in some.items]
        for name, column in original.items():
            before = tables.table(some, column)
            if benchmark.kind != "rating":
                tried = tables.table(*_pick(versions["attacks"], name)).scores
                attacks.setdefault(name, []).append(_against_best(before.scores, before.gold, tried))
            for edit in EDITS:
                after = tables.table(*_pick(versions[edit], name)).scores
                edits.setdefault(name, {}).setdefault(edit, []).append(_change(before.scores, after))
    return {name: _report(name, attacks, np.array(groups), edits[name], resamples) for name in edits}


def _pick(version: tuple[Benchmark, Mapping[str, Column]], name: str) -> tuple[Benchmark, Column]:
    return version[0], version[1][name]


def _against_best(scores: np.ndarray, gold: np.ndarray, attacks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, attacks) 1 where the attack scores at least as high as the response with the best gold, and its gain."""
    best = scores[np.arange(len(gold)), np.nanargmax(gold, 1)][:, None]
    spread = np.nanstd(scores)
    unknown = np.isnan(best) | np.isnan(attacks)
    gain = (attacks - best) / spread if spread > 0 else np.full(attacks.shape, np.nan)
    return np.where(unknown, np.nan, attacks >= best), gain


def _change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    spread = np.nanstd(before)
    shift = float(np.nanmean(np.abs(after - before)) / spread) if spread > 0 else np.nan
    i, j = np.triu_indices(before.shape[1], 1)
    signs = [np.sign(a[:, i] - a[:, j]) for a in (before, after)]
    known = ~np.isnan(signs[0]) & ~np.isnan(signs[1])
    return shift, float((signs[0] != signs[1])[known].mean()) if known.any() else np.nan


def _report(
    name: str,
    attacks: Mapping[str, list[tuple[np.ndarray, np.ndarray]]],
    groups: np.ndarray,
    edits: Mapping[str, list[tuple[float, float]]],
    resamples: int,
) -> Robustness:
    out: Robustness = {"edits": {}}
    for edit, changes in edits.items():
        shift, flips = ([c[i] for c in changes if not np.isnan(c[i])] for i in (0, 1))
        out["edits"][edit] = {
            "shift": float(np.mean(shift)) if shift else None,
            "flips": float(np.mean(flips)) if flips else None,
        }
    if attacks.get(name):
        hits, gains = (np.concatenate([a[i] for a in attacks[name]]) for i in (0, 1))
        kinds = np.array(KINDS)
        out["attacks"] = {
            kind: bootstrap.mean_estimate(row_means(hits[:, use]), groups, resamples=resamples).to_dict()
            for kind, use in [("all", kinds != ""), *((k, kinds == k) for k in dict.fromkeys(kinds.tolist()))]
        }
        by_kind = {k: v["value"] for k, v in out["attacks"].items() if k != "all" and v["value"] is not None}
        out["worst"] = max(by_kind, key=lambda k: by_kind[k], default=None)
        out["gain"] = bootstrap.mean_estimate(row_means(gains), groups, resamples=resamples).to_dict()
    return out
