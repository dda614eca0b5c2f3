"""Grouped bootstrap intervals: rows of one prompt or item are drawn together, since they are not independent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple, TypedDict

import numpy as np

Statistic = Callable[[np.ndarray], float]


class Figure(TypedDict):
    """An estimate as JSON holds it: its interval, and None where there is none; `n` rows have a value."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Estimate(NamedTuple):
    """A figure with its interval over so many groups; `draws` are the resampled values it was read from."""

    value: float
    low: float
    high: float
    n: int
    groups: int
    draws: np.ndarray

    def to_dict(self) -> Figure:
        """JSON form; NaN becomes None."""
        return {
            "value": none_if_nan(self.value),
            "low": none_if_nan(self.low),
            "high": none_if_nan(self.high),
            "n": self.n,
        }


def mean_estimate(
    values: np.ndarray, groups: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of per-row values with a percentile interval over groups.

    Args:
        values: (N,) NaN marks a row without a value; such rows are left out.
        groups: (N,) group of each row; whole groups are drawn.
        resamples: number of draws.
        level: nominal coverage.
        seed: same seed and same groups give the same draws, so differences of two estimates are paired.

    Returns:
        The estimate; NaN interval with fewer than two groups.

    Source: Efron and Tibshirani 1993, ch. 8 and 13 (cluster resampling, percentile interval).
    """
    known = ~np.isnan(values)
    _, index = np.unique(groups, return_inverse=True)
    total = np.bincount(index, np.where(known, values, 0.0))
    count = np.bincount(index, known.astype(float))
    value = total.sum() / count.sum() if count.sum() else np.nan
    draws = np.full(resamples, np.nan)
    for start in range(0, resamples if len(total) else 0, 100):
        picked = _picks(len(total), resamples, seed)[start : start + 100].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws[start : start + 100] = (picked @ total) / (picked @ count)
    return _estimate(float(value), draws, int(known.sum()), len(total), level)


def statistic_estimate(
    statistic: Statistic,
    groups: np.ndarray,
    *,
    n: int | None = None,
    resamples: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Any statistic of rows with a percentile interval over groups.

    Args:
        statistic: row indices -> figure; called once per draw.
        groups: (N,) group of each row.
        n: number of rows with a value, for the record; default N.
        resamples: number of draws.
        level: nominal coverage.
        seed: as in `mean_estimate`.
    """
    _, index = np.unique(groups, return_inverse=True)
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
    value = float(statistic(np.arange(len(groups)))) if len(groups) else np.nan
    rng = np.random.default_rng(seed)
    draws = np.full(resamples, np.nan)
    if len(groups):
        for r in range(resamples):
            picked = rng.integers(len(members), size=len(members))
            draws[r] = statistic(np.concatenate([members[i] for i in picked]))
    return _estimate(value, draws, len(groups) if n is None else n, len(members) if len(groups) else 0, level)


def difference(first: Estimate, second: Estimate, *, level: float = 0.95) -> Estimate:
    """First minus second, paired: both must come from the same rows, groups and seed.

    Raises:
        ValueError: the two have different numbers of draws.
    """
    if len(first.draws) != len(second.draws):
        raise ValueError(f"paired estimates need the same draws, got {len(first.draws)} and {len(second.draws)}")
    draws = first.draws - second.draws
    return _estimate(first.value - second.value, draws, min(first.n, second.n), first.groups, level)


def mean_of(estimates: Sequence[Estimate], *, resamples: int = 2000, level: float = 0.95) -> Estimate:
    """Mean of estimates on different data, each weighing the same; those without a value are left out.

    Their draws are independent, so the interval is that of the mean of one draw of each.
    """
    known = [e for e in estimates if not np.isnan(e.value)]
    if not known:
        return _estimate(np.nan, np.full(resamples, np.nan), 0, 0, level)
    if len(known) == 1:
        return known[0]
    rng = np.random.default_rng(0)
    some = [e.draws[~np.isnan(e.draws)] for e in known]
    draws = np.mean([rng.choice(d, resamples) if len(d) else np.full(resamples, np.nan) for d in some], axis=0)
    n, groups = (sum(getattr(e, k) for e in known) for k in ("n", "groups"))
    return _estimate(float(np.mean([e.value for e in known])), draws, n, groups, level)


@functools.lru_cache(maxsize=2)
def _picks(n_groups: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, n_groups) how often each group is drawn; kept, since all scorers of a benchmark share it."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples).astype(np.uint16)


def _estimate(value: float, draws: np.ndarray, n: int, n_groups: int, level: float) -> Estimate:
    kept = draws[~np.isnan(draws)]
    if n_groups < 2 or len(kept) < 2 or np.isnan(value):
        return Estimate(value, np.nan, np.nan, n, n_groups, draws)
    tail = _tail(n_groups, level)
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n, n_groups, draws)


def _tail(n_groups: int, level: float) -> float:
    """Quantile to read off, widened so that few groups do not give intervals that are too short.

    Source: Hesterberg 2015, "expanded percentile"; Student's quantile by the Cornish-Fisher series.
    """
    nu = n_groups - 1
    z = NormalDist().inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    return NormalDist().cdf(-t * (n_groups / nu) ** 0.5)


def none_if_nan(value: float) -> float | None:
    """A number as JSON holds it."""
    return None if np.isnan(value) else float(value)
