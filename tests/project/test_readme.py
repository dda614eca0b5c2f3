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
from recipes import head_to_head_report

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
    picks = result("pick-facts-1.5b.json")["sets"]["facts"]["picks"]
    for name, said in (
        ("weighted", "`weighted`"),
        ("verifier", "`verifier`"),
        ("Likert-10, mean of ten", "mean of ten"),
    ):
        gold = picks[name]["gold"]
        assert f"{said} {gold['value']:.2f} [{gold['low']:.2f}, {gold['high']:.2f}]" in rows[0]
    assert f"{pairs['read']:,} pairs" in rows[2]
    for name in ("pairwise", "verifier", "weighted"):
        less = pairs["pooled"][name]["minus"]["likert10/mean"]
        assert f"`{name}` {less['value']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]" in rows[2]


def test_the_headline_from_few_right_answers_is_in_its_results() -> None:
    (row,) = [r for r in section(README, "Headline figures").splitlines() if "from 10 % right" in r]
    few = result("head-to-head-1.5b-few-right.json")["runs"]
    for said, other in (("the mean of ten ratings by", "likert_mean_of_ten"), ("of one by", "likert")):
        value, low, high = head_to_head_report.minus("weighted", other, few)
        assert f"{said} {value:+.2f} [{low:+.2f}, {high:+.2f}]" in row


def test_the_first_screen_is_in_its_results() -> None:
    first = read(README).splitlines()[:22]
    runs, few = (result(f"head-to-head-1.5b{start}.json")["runs"] for start in ("", "-few-right"))
    facts, pairs = result("facts-1.5b.json")["scores"], result("pairs-1.5b.json")["pooled"]
    picks = result("pick-facts-1.5b.json")["sets"]["facts"]["picks"]
    for start, run, fact, pick in (
        ("`verifier`", "verifier", "verifier", "verifier"), ("`weighted`", "weighted", "weighted", "weighted"),
        ("Likert-10: mean", "likert_mean_of_ten", "Likert-10, mean of ten", "Likert-10, mean of ten"),
        ("Likert-10: one", "likert", "Likert-10, one rating", "Likert-10, one rating"), ("gold", "gold", "", "oracle"),
    ):  # fmt: skip
        cells = next(line for line in first if line.startswith(f"| {start}")).split(" | ")
        found = head_to_head_report.runs_of(run, runs)
        ends = head_to_head_report.right_after(found)
        assert len(found) == 3 and cells[1] == "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * x for x in ends))
        if run != "likert":
            less = head_to_head_report.minus(run, "likert", runs)
            assert cells[2] == "{:+.0f} [{:+.0f}, {:+.0f}]".format(*(100 * x for x in less))
        if fact:
            assert cells[4].startswith(f"{100 * facts[fact]['first']['value']:.0f} %")
        shown = f"{100 * picks[pick]['gold']['value']:.0f} %" if pick in picks else "-"
        assert cells[5].removesuffix(" |") == shown
        if seldom := head_to_head_report.runs_of(run, few):
            shown = head_to_head_report.right_after(seldom)
            assert cells[3] == "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * x for x in shown))
        else:
            assert cells[3] == "-"
    text = "\n".join(first)
    assert f"{pairs['pairwise']['accuracy']['value']:.3f}" in text
    assert f"less no task {100 * facts['verifier less no task']['first']['value']:.0f} %" in text
    others = [
        head_to_head_report.ends(head_to_head_report.runs_of(n, runs)).mean() * 100
        for n in ("guarded", "contrast", "contrast_verifier")
    ]
    flattered = result("head-to-head-1.5b-flattery.json")["runs"]
    weighted, verifier, likert, contrast, guarded = (
        head_to_head_report.ends(head_to_head_report.runs_of(n, flattered)).mean() * 100
        for n in ("weighted", "verifier", "likert", "contrast", "guarded")
    )
    said = f"`weighted` ends at {weighted:.0f} % right, `verifier` at {verifier:.0f} % (one seed), one rating at "
    assert f"{said}{likert:.0f} %" in text and f"with rules (`guarded`) at {guarded:.0f} %" in text
    assert f"\ntask (`contrastive`) at {contrast:.0f} % (two seeds)" in text
    said = "rules end at {:.0f} % (one), `contrastive` at {:.0f} % (two), of `verifier` at {:.0f} % (one)".format(
        *others
    )
    assert said in text
