"""Over benchmarks: means of the comparing metric, its length control and ties, and all pairs as one benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latent_rewards.evaluation.analysis import Analysis
from latent_rewards.evaluation.benchmarks.rows import Benchmark
from latent_rewards.evaluation.metrics import LENGTH_CONTROLLED
from latent_rewards.evaluation.results import KindSummary, Pooled
from latent_rewards.evaluation.scorers import Column
from latent_rewards.stats.bootstrap import mean_of


def summarise(analyses: Sequence[Analysis]) -> dict[str, KindSummary]:
    """Kind -> scorer -> metric -> mean over the benchmarks of that kind, with an interval from their draws."""
    out: dict[str, KindSummary] = {}
    for kind in dict.fromkeys(a.benchmark.kind for a in analyses):
        some = [a for a in analyses if a.benchmark.kind == kind]
        metrics = [some[0].primary, LENGTH_CONTROLLED[kind], *(m for m in ("ties",) if m in some[0].metrics)]
        out[kind] = {
            "metrics": metrics,
            "benchmarks": [a.benchmark.name for a in some],
            "scorers": {
                name: {m: mean_of([a.estimates[name][m] for a in some]).to_dict() for m in metrics}
                for name in some[0].columns
            },
        }
    return out


def pooled(analyses: Sequence[Analysis]) -> Pooled | None:
    """All pairs of all benchmarks as one, each pair weighing the same; None for fewer than two benchmarks of pairs.

    Ratings and lists are not pooled: their gold is on scales of their own.
    """
    some = [a for a in analyses if a.benchmark.kind == "pair"]
    if len(some) < 2:
        return None
    items = tuple(item for a in some for item in a.benchmark.items)
    columns = {
        name: Column(np.concatenate([a.columns[name].scores for a in some]))
        for name in some[0].columns
        if name != "length" and all(name in a.columns for a in some)
    }
    a = Analysis(Benchmark("pooled", "pair", items), columns, resamples=some[0].resamples, seed=some[0].seed)
    metrics = [a.primary, LENGTH_CONTROLLED["pair"]]
    return {
        "benchmarks": [b.benchmark.name for b in some],
        "items": len(items),
        "scorers": {name: {m: e.to_dict() for m, e in a.estimates[name].items()} for name in a.columns},
        "differences": [d for m in metrics for d in a.differences(m)],
    }
