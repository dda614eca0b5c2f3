"""How many rows would tell a difference from chance, by what was seen on those there are."""

from __future__ import annotations

import math
from statistics import NormalDist

MOST_ROWS = 50_000  # a need of more rows than this is more than one would collect
FEWEST = 30  # rows below which neither the approximation nor an interval is worth much


def rows_needed(
    value: float, low: float, high: float, n: int, *, power: float = 0.8, level: float = 0.95
) -> int | None:
    """Rows that would separate a difference from zero, were it as large as seen and its rows as varied.

    The interval's half width h stands for z_(level) standard errors on n rows, and a standard error falls with the
    root of the rows, so n' = n ((z_level + z_power) / z_level * h / |value|)^2.

    Args:
        value: the difference.
        low: lower end of its interval.
        high: upper end.
        n: rows it was seen on.
        power: chance of a separated interval on so many rows.
        level: coverage of the interval.

    Returns:
        The number of rows, at least `FEWEST`; None where there is no difference or no interval to go by.

    Source: the normal approximation of a paired test's sample size, e.g. Cohen 1988, ch. 2.
    """
    if not value or not n or math.isnan(value) or math.isnan(low) or math.isnan(high):
        return None
    z_level, z_power = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)
    half = (high - low) / 2
    return max(FEWEST, math.ceil(n * ((z_level + z_power) / z_level * half / abs(value)) ** 2))


def about(rows: int) -> str:
    """A number of rows as it is worth saying: two digits of it, with a thousands' mark."""
    digits = max(0, len(str(rows)) - 2)
    return f"{math.ceil(rows / 10**digits) * 10**digits:,}"
