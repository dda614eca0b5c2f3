"""Best-of-N with a judge: picks by hand, and the script on a tiny judge and policy, stopped and gone on."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import facts_table, pick_table

ROW = {"prompt": "q", "answers": ["right", "wrong!", "no", "right"], "gold": [1, 0, 0, 1]}


def test_picks_by_hand():
    row = {**ROW, "scores": {"good": [3, 1, 1, 3], "half": [2, 2, 1, 1], "unread": [None, 0, None, None]}}
    picks = {
        way: pick_table.gold_of_pick(way, row) for way in ("good", "half", "unread", "random", "longest", "oracle")
    }
    assert picks == {"good": 1, "half": 0.5, "unread": 0, "random": 0.5, "longest": 0, "oracle": 1}
    assert not pick_table.tied("good", row)  # the same answer twice
    assert pick_table.tied("half", row)


def test_differences_are_paired():
    rows = [
        {**ROW, "scores": {"good": [3, 1, 1, 3], "Likert-10, greedy": [5, 5, 5, 5]}},
        {**ROW, "scores": {"good": [3, 1, 1, 3], "Likert-10, greedy": [5, 1, 5, 1]}},
        {**ROW, "gold": [1, 1, 1, 1], "scores": {"good": [0, 1, 1, 1], "Likert-10, greedy": [5, 1, 1, 1]}},
    ]
    found = pick_table.measure(rows)
    assert (found["questions"], found["measured"]) == (3, 2)
    good = found["picks"]["good"]
    assert good["gold"]["value"] == 1 and good["minus"]["Likert-10, greedy"]["value"] == 0.5
    assert good["minus"]["random"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2}
    assert set(good["minus"]) == {"random", "longest", "Likert-10, greedy"}


def test_the_best_quarter_by_hand():
    scores, gold = np.array([5.0, 4, 4, 4, 3, 2, 1, 0]), np.array([1.0, 1, 0, 0, 1, 1, 1, 1])
    assert pick_table.quarter(scores, gold) == pytest.approx((1 + 1 / 3) / 2)
    assert pick_table.quarter(np.zeros(8), gold) == pytest.approx(gold.mean())
    rows = [{**ROW, "scores": {"good": [3, 1, 1, 3]}}, {**ROW, "gold": [0, 0, 0, 1], "scores": {"good": [0, 0, 0, 9]}}]
    found = pick_table.measure(rows)["kept_quarter"]
    assert found["good"]["gold"]["value"] == 1 and found["random"]["gold"]["value"] == 3 / 8
    assert found["good"]["minus"]["random"]["value"] == 5 / 8 and "random" not in found["random"]["minus"]


def test_script(folder, policy, tmp_path, monkeypatch, capsys):
    lists = tmp_path / "mine.jsonl"
    lists.write_text(
        "".join(
            json.dumps({"id": str(i), "prompt": f"q{i}", "responses": ["a", "b"], "gold": [1, 0]}) + "\n"
            for i in range(3)
        )
    )
    out = tmp_path / "out" / "pick.json"
    command = [
        "pick_table", "--judge", folder, "--dtype", "float32", "--policy", policy, "--n", "3", "--questions", "4",
        "--lists", str(lists), "--work", str(tmp_path / "work"), "--out", str(out), "--scores",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*command, "weighted"])
    pick_table.main()
    before = json.loads((tmp_path / "work" / "facts.json").read_text())
    ways = ["weighted", "Likert-10, mean of ten", "pairwise, two pivots"]
    monkeypatch.setattr(sys, "argv", [*command, *ways])
    pick_table.main()
    after = json.loads((tmp_path / "work" / "facts.json").read_text())
    assert [row["answers"] for row in after] == [row["answers"] for row in before]
    assert all(row["scores"]["weighted"] == b["scores"]["weighted"] for row, b in zip(after, before, strict=True))
    found = json.loads(out.read_text())
    assert list(found["sets"]) == ["facts", "mine"] and found["sets"]["facts"]["questions"] == 4
    assert list(found["sets"]["mine"]["picks"]) == ["random", "longest", "oracle", *ways]
    assert "## mine" in out.with_suffix(".md").read_text()


def test_facts_table(folder, tmp_path, monkeypatch):
    out = tmp_path / "facts.json"
    command = ["facts_table", "--judge", folder, "--dtype", "float32", "--each", "1", "--batch", "9"]
    monkeypatch.setattr(sys, "argv", [*command, "--work", str(tmp_path / "work"), "--out", str(out)])
    facts_table.main()
    found = json.loads(out.read_text())
    assert found["questions"] == 9 and list(found["scores"]) == list(facts_table.SCORES)
    assert all(0 <= f["first"]["value"] <= 1 for f in found["scores"].values())
    assert out.with_suffix(".md").read_text().count("\n| ") >= 3 * len(facts_table.SCORES)
    one, less = found["scores"]["Likert-10, one rating"], found["scores"]["pairwise"]["minus"]["Likert-10, one rating"]
    assert less["n"] == 9 and "Likert-10, one rating" not in one["minus"]
    assert less["value"] == pytest.approx(found["scores"]["pairwise"]["first"]["value"] - one["first"]["value"])


@pytest.mark.parametrize(("scores", "first", "above"), [([3, 1, 1, 1, 1], 1, 1), ([2, 2, 2, 2, 2], 0.2, 0.5)])
def test_shares_by_hand(scores, first, above):
    found = facts_table.figures(np.array([scores, scores], dtype=float), np.array(["sum", "unit"]))
    assert found["first"]["value"] == pytest.approx(first) and found["above"]["filler"]["value"] == above
    assert found["by_kind"] == pytest.approx({"sum": first, "unit": first})
