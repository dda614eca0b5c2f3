"""Tables of reports in Markdown, and figures with their intervals to fill them with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; a bar inside a cell is escaped."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def figure(value: float | None, low: float | None = None, high: float | None = None, *, sign: str = "") -> str:
    """A figure with its interval; "-" where there is none, and no interval where that is missing.

    Args:
        value: None or NaN is missing; so for the others.
        low: lower end.
        high: upper end.
        sign: "+" shows it of positive numbers, too.
    """
    if value is None or math.isnan(value):
        return "-"
    between = low is not None and high is not None and not math.isnan(low)
    return f"{value:{sign}.3f}" + (f" [{low:{sign}.3f}, {high:{sign}.3f}]" if between else "")
