"""Over benchmarks: the mean of the comparing metric, of its length control, and of ties, for every scorer."""

from __future__ import annotations

from collections.abc import Sequence

from latent_rewards.evaluation.analysis import Analysis
from latent_rewards.evaluation.metrics import LENGTH_CONTROLLED
from latent_rewards.evaluation.results import KindSummary
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
