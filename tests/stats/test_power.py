"""How many rows would do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from latent_rewards.stats.bootstrap import mean_estimate
from latent_rewards.stats.power import about, rows_needed


def test_by_hand() -> None:
    # half width as large as the difference: (1.960 + 0.842) / 1.960 squared is 2.043 times the rows
    assert rows_needed(0.1, 0.0, 0.2, 100) == math.ceil(100 * ((1.959964 + 0.841621) / 1.959964) ** 2) == 205
    assert rows_needed(-0.1, -0.2, 0.0, 100) == 205
    assert rows_needed(0.05, -0.05, 0.15, 100) == 818  # half the difference needs four times the rows
    assert rows_needed(1 / 3, -1 / 6, 1 / 2, 6) == 30  # six rows look like 13, which nobody should rely on
    assert rows_needed(0.0, -1, 1, 100) is None and rows_needed(0.1, math.nan, math.nan, 100) is None


def test_so_many_rows_separate_four_draws_of_five() -> None:
    rng = np.random.default_rng(0)
    first = mean_estimate(rng.normal(0.2, 1, 400), np.arange(400))
    n = rows_needed(0.2, 0.2 - (first.high - first.low) / 2, 0.2 + (first.high - first.low) / 2, 400)
    assert n is not None
    draws = rng.normal(0.2, 1, (2000, n))
    separated = draws.mean(1) - 1.96 * draws.std(1, ddof=1) / n**0.5 > 0
    assert separated.mean() == pytest.approx(0.8, abs=0.05)


def test_two_digits() -> None:
    assert [about(n) for n in (7, 99, 205, 1234, 12345)] == ["7", "99", "210", "1,300", "13,000"]
