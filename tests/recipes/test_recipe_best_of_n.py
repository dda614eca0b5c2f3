"""The selection table: its figures by hand, its configurations, and the whole recipe on tiny models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trl import TrlParser

from recipes import best_of_n, best_of_n_table

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "best_of_n").glob("*.yaml"))


def rows(n: int = 40) -> list[dict[str, Any]]:
    """Lists of four with one good completion, which "right" finds, "wrong" avoids and "silent" says nothing about."""
    rng, out = np.random.default_rng(0), []
    for i in range(n):
        good = int(rng.integers(4))
        gold = [float(j == good) for j in range(4)]
        out.append(
            {
                "prompt": f"q{i}", "completions": ["x" * (1 + (j + i) % 4) for j in range(4)], "gold": gold,
                "right": gold, "wrong": [1 - g for g in gold], "silent": [None] * 4, "likert": [5.0] * 4,
            }
        )  # fmt: skip
    return out


def test_figures_by_hand() -> None:
    data = [*rows(), {"prompt": "all right", "completions": ["a", "b"], "gold": [1.0, 1.0]}]
    found = best_of_n_table.measure(data, ["right", "wrong", "silent", "likert"])
    value = {name: e["gold_of_pick"]["value"] for name, e in found["scorers"].items()}
    assert found["measured"] == 40 and found["prompts"] == 41 and found["without_score"]["silent"] == 160
    expected = {"random": 0.25, "oracle": 1.0, "right": 1.0, "wrong": 0.0, "silent": 0.25, "likert": 0.25}
    assert {k: pytest.approx(value[k]) for k in expected} == expected
    assert value["longest"] == np.mean(
        [r["gold"][max(range(4), key=lambda j: len(r["completions"][j]))] for r in rows()]
    )
    np.testing.assert_allclose(found["scorers"]["right"]["curve"], [0.25, 0.5, 0.75, 1.0])
    gain = found["scorers"]["right"]["minus_likert"]
    assert gain["value"] == gain["low"] == gain["high"] == 0.75
    assert found["scorers"]["right"]["choice"]["n"] == 4 and found["scorers"]["wrong"]["choice"]["turns_down"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_parses(path: Path) -> None:
    (args,) = TrlParser((best_of_n.Arguments,)).parse_args_and_config(["--config", str(path)])
    assert args.output.startswith("runs/") and (args.tasks or args.lists)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert f"-m recipes.best_of_n --config configs/best_of_n/{path.name}" in first


def test_recipe(tmp_path: Path, folder: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    lists = [
        {"id": r["prompt"], "prompt": r["prompt"], "responses": r["completions"], "gold": r["gold"]} for r in rows(6)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lists))
    data, out = str(tmp_path / "mine.jsonl"), str(tmp_path / "out")
    arguments = [
        "--judge", folder, "--judge_kwargs", '{"dtype": "float32", "device": "cpu"}', "--rewards", "weighted",
        "--samples", "2", "--policy", policy, "--n", "2", "--max_new_tokens", "4", "--tasks",
        "chain_sum {max_terms: 2}", "--per_task", "3", "--lists", data, "--output", out,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["best_of_n", *arguments])
    best_of_n.main()
    results = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert set(results["sets"]) == {"reasoning_gym", "mine"}
    measured = results["sets"]["mine"]["scorers"]
    assert list(measured) == ["random", "longest", "oracle", "weighted", "likert10 once", "likert10 mean of 2"]
    text = (tmp_path / "out" / "selection.md").read_text()
    assert "## mine" in text and "| weighted | " in text and (tmp_path / "out" / "selection.png").stat().st_size > 9000
    scored = (tmp_path / "out" / "reasoning_gym" / "run" / "scored.jsonl").read_bytes()
    best_of_n.main()
    assert (tmp_path / "out" / "reasoning_gym" / "run" / "scored.jsonl").read_bytes() == scored


def test_verifier_takes_the_whole_text_or_its_last_number() -> None:
    pytest.importorskip("reasoning_gym")
    args = best_of_n.Arguments(tasks=["chain_sum"], per_task=1)
    (row,) = best_of_n.task_rows("chain_sum {min_terms: 2, max_terms: 2}", args)
    answer = json.loads(row["entry"])["answer"]
    texts = [answer, f"It is 3, no, {answer}.", f"{answer} or 99999", "nothing"]
    assert best_of_n.score_tasks({**row, "completions": texts})["gold"] == [1.0, 1.0, 0.0, 0.0]
