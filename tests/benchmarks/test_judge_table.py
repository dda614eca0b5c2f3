"""Committed tables of an evaluation: differences by hand, with pair sets and without."""

from __future__ import annotations

import pytest

from benchmarks import judge_table


def benchmark(name: str, kind: str, value: float) -> dict:
    found = {"first": "a", "second": "b", "value": value, "low": value - 0.1, "high": value + 0.2, "n": 10}
    metric = "accuracy" if kind == "pair" else "spearman"
    return {
        "name": f"{kind}/{name}", "kind": kind, "primary": metric, "items": 10, "scorers": {"a": {}, "b": {}},
        "differences": [found],
    }  # fmt: skip


def test_pairs_are_averaged_and_ratings_stand_set_by_set() -> None:
    pairs = {"benchmarks": [benchmark("one", "pair", 0.1), benchmark("two", "pair", 0.3)]}
    assert judge_table.paired(pairs, "b") == [["a", "+0.200", "[+0.094, +0.306]", "20"]]
    ratings = {"benchmarks": [benchmark("one", "rating", 0.1), benchmark("two", "rating", 0.3)]}
    lines = judge_table.differences(ratings, "a")
    assert lines[0] == "## Paired difference of spearman to a"
    assert "| b | -0.100 [-0.300, -0.000] | -0.300 [-0.500, -0.200] |" in lines
    with pytest.raises(SystemExit, match="there are"):
        judge_table.differences(ratings, "c")
