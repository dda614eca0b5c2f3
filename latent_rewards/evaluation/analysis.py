"""From scores to figures: every metric of every scorer on a benchmark, with intervals and differences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from scipy.stats import rankdata

from latent_rewards.evaluation import tables
from latent_rewards.evaluation.benchmarks.rows import Benchmark
from latent_rewards.evaluation.calibrate import Calibrated, cross_fitted
from latent_rewards.evaluation.metrics import METRICS, Metric
from latent_rewards.evaluation.results import (
    BenchmarkResult,
    BestOfN,
    Calibration,
    Compression,
    Difference,
    Disagreement,
)
from latent_rewards.evaluation.results import Scorer as ScorerResult
from latent_rewards.evaluation.scorers import Column
from latent_rewards.evaluation.table import Table
from latent_rewards.rewards.likert import mode_agreement
from latent_rewards.stats import bootstrap, distributions
from latent_rewards.stats.bootstrap import Estimate, Figure, none_if_nan
from latent_rewards.stats.ranking import expected_gold_of_best

BINS = 20


def estimate(metric: Metric, table: Table, groups: np.ndarray, *, resamples: int, seed: int = 0) -> Estimate:
    """A metric with its interval; what is no mean gets a third of the draws, since each is computed anew."""
    value = metric(table)
    if isinstance(value, np.ndarray) and value.ndim:
        return bootstrap.mean_estimate(value, groups, resamples=resamples, seed=seed)
    return bootstrap.statistic_estimate(
        lambda rows: float(metric(table.take(rows))), groups, n=int(table.complete.sum()),
        resamples=max(resamples // 3, 100), seed=seed,
    )  # fmt: skip


class Analysis:
    """All figures of one benchmark.

    Args:
        benchmark: its items.
        columns: scorer -> scores of all responses, in order; the length baseline is added.
        resamples: bootstrap draws.
        seed: of the bootstrap.
    """

    def __init__(
        self, benchmark: Benchmark, columns: Mapping[str, Column], *, resamples: int = 1000, seed: int = 0
    ) -> None:
        self.benchmark = benchmark
        self.columns = {**columns, "length": tables.length_column(benchmark)}
        self.tables = {name: tables.table(benchmark, c) for name, c in self.columns.items()}
        self.groups = tables.groups(benchmark)
        self.resamples, self.seed = resamples, seed
        self.metrics = METRICS[benchmark.kind]
        self.primary = next(iter(self.metrics))
        self.estimates: dict[str, dict[str, Estimate]] = {
            name: {m: self._estimate(f, t, self.groups) for m, f in self.metrics.items()}
            for name, t in self.tables.items()
        }

    def to_dict(self) -> BenchmarkResult:
        """The JSON form."""
        b = self.benchmark
        return {
            "name": b.name, "kind": b.kind, "source": b.source, "items": len(b.items),
            "prompts": len(np.unique(self.groups)),
            "texts": sum(len(i.responses) for i in b.items), "over_limit": b.limited, "left_out": dict(b.left_out),
            "bad_rows": [asdict(r) for r in b.bad], "primary": self.primary,
            "scorers": {name: self._scorer(name) for name in self.columns},
            "differences": self.differences(self.primary), "disagreements": self._disagreements(),
        }  # fmt: skip

    def _estimate(self, metric: Metric, table: Table, groups: np.ndarray) -> Estimate:
        return estimate(metric, table, groups, resamples=self.resamples, seed=self.seed)

    def _scorer(self, name: str) -> ScorerResult:
        column, table = self.columns[name], self.tables[name]
        out: ScorerResult = {
            "missing": int(np.isnan(column.scores).sum()),
            "metrics": {m: e.to_dict() for m, e in self.estimates[name].items()},
            "subsets": self._subsets(table),
            "compression": self._compression(column),
            "facts": dict(column.facts),
        }
        if column.samples is not None:
            agreement = mode_agreement(column.samples)
            rows = np.repeat(self.groups, [len(i.responses) for i in self.benchmark.items])
            out["mode_agreement"] = bootstrap.mean_estimate(
                agreement, rows, resamples=self.resamples, seed=self.seed
            ).to_dict()
        calibration = cross_fitted(table, self.benchmark.kind, self.groups)
        if calibration is not None:
            out["calibration"] = self._calibration(calibration)
        if self.benchmark.kind == "list":
            out["best_of_n"] = self._best_of_n(table)
        return out

    def _calibration(self, c: Calibrated) -> Calibration:
        kept, p, y = self.groups[c.rows], c.probabilities, c.outcomes
        ece = bootstrap.statistic_estimate(
            lambda r: distributions.expected_calibration_error(p[r], y[r]),
            kept,
            resamples=max(self.resamples // 3, 100),
            seed=self.seed,
        )
        brier = bootstrap.mean_estimate(distributions.brier(p, y), kept, resamples=self.resamples, seed=self.seed)
        return {"brier": brier.to_dict(), "ece": ece.to_dict(), "curve": distributions.reliability(p, y)}

    def _subsets(self, table: Table) -> dict[str, Figure]:
        names = np.array([i.subset for i in self.benchmark.items])
        if len(set(names)) < 2:
            return {}
        metric = self.metrics[self.primary]
        return {
            str(s): self._estimate(metric, table.take(np.flatnonzero(names == s)), self.groups[names == s]).to_dict()
            for s in sorted(set(names))
        }

    def _compression(self, column: Column) -> Compression:
        known = column.scores[~np.isnan(column.scores)]
        bounds = column.range or ((float(known.min()), float(known.max())) if len(known) else (0.0, 1.0))
        return {
            "modal_share": none_if_nan(distributions.modal_share(known)),
            "tie_rate": none_if_nan(distributions.tie_rate(known)),
            "histogram": {"range": list(bounds), "counts": distributions.histogram(known, bounds, BINS).tolist()},
        }

    def _best_of_n(self, table: Table) -> BestOfN:
        """Mean expected gold of the best of n over the lists that have n responses or more."""
        kept = np.flatnonzero(table.complete)
        rows = [(table.scores[i, known], table.gold[i, known]) for i in kept for known in [~np.isnan(table.gold[i])]]
        curves = [expected_gold_of_best(scores, gold) for scores, gold in rows]
        oracle = [expected_gold_of_best(gold, gold) for _, gold in rows]
        if not curves:
            return {"n": [], "gold": [], "oracle": []}
        width = min(map(len, curves))
        means = [np.mean([c[:width] for c in group], axis=0).tolist() for group in (curves, oracle)]
        return {"n": list(range(1, width + 1)), "gold": means[0], "oracle": means[1]}

    def differences(self, name: str) -> list[Difference]:
        """Paired differences of a metric, each on the items that both scorers have."""
        metric, out = self.metrics[name], []
        known: dict[tuple[str, bytes], Estimate] = {}
        for a, b in itertools.combinations(self.columns, 2):
            rows = np.flatnonzero(self.tables[a].complete & self.tables[b].complete)
            for one in (a, b):
                if (one, rows.tobytes()) not in known:
                    known[one, rows.tobytes()] = self._estimate(metric, self.tables[one].take(rows), self.groups[rows])
            d = bootstrap.difference(known[a, rows.tobytes()], known[b, rows.tobytes()])
            out.append(Difference(first=a, second=b, metric=name, **d.to_dict()))
        return out

    def _disagreements(self, count: int = 5) -> list[Disagreement]:
        """Items on whose responses the scorers' ranks differ most."""
        names = [n for n in self.columns if n != "length"]
        order = np.stack([_percentiles(self.columns[n].scores) for n in names])
        with np.errstate(invalid="ignore"):
            spread = np.array([np.ptp(c[~np.isnan(c)]) if (~np.isnan(c)).sum() > 1 else 0.0 for c in order.T])
        owner = np.repeat(np.arange(len(self.benchmark.items)), [len(i.responses) for i in self.benchmark.items])
        per_item = np.zeros(len(self.benchmark.items))
        np.maximum.at(per_item, owner, spread)
        picked = np.argsort(-per_item, kind="stable")[:count]
        return [
            {
                "id": item.id, "prompt": item.prompt, "responses": list(item.responses), "gold": list(item.gold),
                "scores": {n: [none_if_nan(s) for s in self.columns[n].scores[owner == i]] for n in names},
                "percentiles": {n: [none_if_nan(p) for p in order[k][owner == i]] for k, n in enumerate(names)},
            }
            for i, item in ((i, self.benchmark.items[i]) for i in picked if per_item[i] > 0)
        ]  # fmt: skip


def _percentiles(scores: np.ndarray) -> np.ndarray:
    out, known = np.full(len(scores), np.nan), ~np.isnan(scores)
    if known.any():
        out[known] = (rankdata(scores[known]) - 0.5) / known.sum()
    return out
