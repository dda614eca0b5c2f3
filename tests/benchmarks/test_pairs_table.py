"""The table of pairs, on a handful of scores worked by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys

import numpy as np
import pytest

from benchmarks import pairs_table
from latent_rewards.evaluation.run import SCHEMA

# Chosen and rejected by `weighted` and by one rating, and who is longer: 1 for the chosen.
SCORES = [((7, 5), (6, 6), 1), ((6, 4), (3, 8), -1), ((2, 3), (5, 5), 1), ((9, 1), (9, 1), 1), ((4, None), (2, 1), 1)]


def line(i: int, latent: tuple, rating: tuple, longer: int) -> dict:
    return {
        "benchmark": f"pairwise/{'ab'[i % 2]}", "kind": "pair", "id": str(i), "group": str(i), "subset": f"s{i}",
        "gold": [1, 0], "lengths": [2 + longer, 2],
        "scores": {"weighted": latent, "weighted/argmax": latent, "likert10/one": rating, "length": [2 + longer, 2]},
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    told = {"judge": "j", "judge_revision": "r", "judge_arithmetic": "float32", "machine": "CPU"}
    (tmp_path / "results.json").write_text(json.dumps({"schema": SCHEMA, "run": told}))
    with gzip.open(tmp_path / "scores.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(line(i, *row)) + "\n" for i, row in enumerate(SCORES)))
    probe = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
    order = [4, 3, 2, 1, 0]  # of the file, not of the rows
    np.savez(
        tmp_path / "probe.npz", benchmark=[f"pairwise/{'ab'[i % 2]}" for i in order], id=[str(i) for i in order],
        in_distribution=probe[order], out_of_distribution=-probe[order],
    )  # fmt: skip
    return tmp_path


def test_by_hand(run, monkeypatch) -> None:
    command = [
        "pairs_table",
        str(run),
        "--out",
        str(run / "out"),
        "--probe",
        str(run / "probe.npz"),
        "--resamples",
        "50",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--without", "pairwise/b:s3"])
    pairs_table.main()
    found = json.loads((run / "out.json").read_text())
    assert (found["pairs"], found["read"]) == (5, 4), "a pair that one way has not read is left out of all"
    assert found["sets"]["pairwise/a"] == {"pairs": 3, "read": 2}
    pooled = found["pooled"]
    assert "weighted/argmax" not in pooled
    weighted, one, probe = (pooled[n] for n in ("weighted", "likert10/one", "probe, in distribution"))
    assert (weighted["accuracy"]["value"], one["accuracy"]["value"]) == (0.75, 0.5)
    assert weighted["minus"]["likert10/one"]["value"] == 0.25 and one["minus"] == {}
    assert weighted["length_balanced"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert (weighted["ties"], one["ties"]) == (0, 0.5)
    assert pooled["length"]["length_balanced"]["value"] == 0.5
    assert probe["accuracy"]["value"] == 0.5 and probe["length_balanced"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["by_set"]["pairwise/b"]["weighted"]["value"] == 1
    without = found["without"]
    assert without["read"] == 3 and without["pooled"]["weighted"]["accuracy"]["value"] == pytest.approx(2 / 3)
    page = (run / "out.md").read_text()
    assert "4 of 5 pairs" in page and "partial" in page and "| a, 2 of 3 | b, 2 of 2 |" in page


def test_a_drawn_rating_by_hand() -> None:
    p = np.array([[[0.5, 0.5], [0.5, 0.5]], [[0.25, 0.75], [1, 0]], [[1, 0], [0.25, 0.75]]])
    with np.errstate(divide="ignore"):
        found = pairs_table.drawn(np.log(p), temperature=1)
    np.testing.assert_allclose(found, [0.5, 0.75 + 0.25 / 2, 0.25 / 2])


def test_the_first_are_counted_in_the_order_of_reading(run, monkeypatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["pairs_table", str(run), "--out", str(run / "out"), "--resamples", "20", "--first", "3"]
    )
    pairs_table.main()
    hashes = [hashlib.sha256(str(i).encode()).digest() for i in range(5)]
    first = [i for i in range(5) if sorted(hashes).index(hashes[i]) < 3 and i != 4]  # the last was not read whole
    assert json.loads((run / "out.json").read_text())["read"] == len(first)
