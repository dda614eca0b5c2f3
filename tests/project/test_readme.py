"""The README is short, begins with what matters, and its tables, tree and figures are those of the project."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import pytest
from pages import README, ROOT, blocks, read, section, tree

from benchmarks import facts_picture, ties_picture
from latent_rewards.rewards import build as rewards

RESULTS = ROOT / "benchmarks" / "results"


def test_it_is_read_to_its_end() -> None:
    assert len(read(README).splitlines()) <= 220


def test_its_first_forty_lines_hold_what_it_is_a_figure_and_working_code() -> None:
    first = "\n".join(read(README).splitlines()[:40])
    assert re.search(r"^!\[.{20,}\]\(benchmarks/results/[\w.-]+\.png\)$", first, re.MULTILINE)
    assert blocks(README, "python")[0] in first, "the first code block is whole"
    assert "rewards" in first.splitlines()[2] and "judge" in first.splitlines()[2]


def test_reward_table_is_complete() -> None:
    rows = re.findall(r"^\| (`.*?) \| (`\w+`) \|", section(README, "What each reward computes"), re.MULTILINE)
    names = [n for cell, _ in rows for n in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(rewards.REWARDS)
    package = importlib.import_module("latent_rewards")
    assert all(hasattr(package, cls.strip("`")) for _, cls in rows)


@pytest.mark.parametrize("path", tree())
def test_tree_names_what_exists(path: str) -> None:
    found = ROOT / path
    assert found.is_dir() if path.endswith("/") else found.is_file()


def test_tree_names_every_room() -> None:
    package = [p for p in (ROOT / "latent_rewards").iterdir() if p.suffix == ".py" or list(p.glob("*.*"))]
    rooms = {f"latent_rewards/{p.name}{'/' if p.is_dir() else ''}" for p in package if not p.name.startswith("__")}
    assert rooms <= set(tree())


def test_the_paper_index_names_what_exists() -> None:
    lines = section(ROOT / "docs" / "papers.md", "Paper index").splitlines()
    rows = [row.split(" | ") for row in lines if row.startswith("| ")][1:]
    assert len(rows) >= 14
    for row in rows:
        for code in re.findall(r"`([^`]+)`", row[3]):
            if code.endswith((".py", "/")):
                assert (ROOT / "latent_rewards" / code).exists(), code
            else:
                module, _, found = code.rpartition(".")
                assert hasattr(importlib.import_module(f"latent_rewards.{module}"), found), code


def result(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def test_the_figures_are_drawn_from_the_committed_results(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    ties_picture.draw(result("latent-vs-likert-1.5b.json"), tmp_path / "latent-vs-likert-1.5b-ties.png")
    facts_picture.draw(result("facts-1.5b.json"), tmp_path / "facts-1.5b.png")
    for drawn in tmp_path.iterdir():
        assert drawn.stat().st_size == pytest.approx((RESULTS / drawn.name).stat().st_size, rel=0.2)


def test_the_headlines_of_the_judge_are_in_its_results() -> None:
    rows = [r for r in section(README, "Headline figures").splitlines() if "1.5B" in r]
    facts, pairs = result("facts-1.5b.json")["scores"], result("pairs-1.5b.json")
    for name in ("verifier less no task", "Likert-10, mean of ten"):
        assert f"{facts[name]['first']['value']:.2f}" in rows[0]
    assert f"{pairs['read']:,} pairs" in rows[1]
    for name in ("pairwise", "verifier", "weighted"):
        less = pairs["pooled"][name]["minus"]["likert10/mean"]
        assert f"`{name}` {less['value']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]" in rows[1]
    first = "\n".join(read(README).splitlines()[:20])
    assert f"{facts['weighted']['first']['value']:.0%}".replace("%", " %") in first
    assert all(f"{pairs['pooled'][n]['accuracy']['value']:.3f}" in first for n in ("weighted", "pairwise", "verifier"))
