"""`--reasoning` and `--unfinished` of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from latent_rewards.cli import options
from latent_rewards.cli.main import app

WHOLE, ANSWER, CUT = "<think>Ten? No.</think>\n\nEleven.", "Eleven.", "<think>Ten? No,"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "A prime?", "completion": c}) + "\n" for c in (WHOLE, ANSWER, CUT)))
    return path


def scored(folder: str, rows: Path, *flags: str) -> tuple[list[float | None], str]:
    out = rows.with_name("out.jsonl")
    command = ["score", "--judge", folder, "--input", str(rows), "--output", str(out), "--overwrite", *flags]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["weighted"] for line in out.read_text().splitlines()], result.output


def test_score(folder: str, rows: Path) -> None:
    stripped, said = scored(folder, rows)
    assert stripped[0] == stripped[1] and stripped[2] is None and "ends inside its thought" in said
    kept, _ = scored(folder, rows, "--reasoning", "keep")
    assert kept[0] != kept[1] == pytest.approx(stripped[1], abs=1e-4) and kept[2] is None
    only, said = scored(folder, rows, "--reasoning", "only")
    assert only[0] is not None and only[1:] == [None, None] and "holds no thought" in said
    assert scored(folder, rows, "--unfinished", "-1.5")[0][2] == -1.5
    assert scored(folder, rows, "--unfinished", "keep")[0][2] is not None


def test_a_reward_that_says_itself_comes_first(folder: str, rows: Path) -> None:
    file = rows.with_name("rewards.yaml")
    file.write_text("weighted: {reasoning: keep, unfinished: keep}\n")
    both, _ = scored(folder, rows, "--reward", str(file), "--reasoning", "only", "--unfinished", "0")
    assert None not in both and both[0] != both[1]


@pytest.mark.parametrize(("flags", "message"), [(["--unfinished", "floor"], "none, keep or a number"),
                                                (["--reasoning", "drop"], "reasoning must be one of")])  # fmt: skip
def test_wrong_values(folder: str, rows: Path, flags: list[str], message: str) -> None:
    command = ["score", "--judge", folder, "--input", str(rows), "--output", str(rows.with_name("x.jsonl")), *flags]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and message in result.output


def test_best_of_n(folder: str, rows: Path) -> None:
    out = rows.with_name("run")
    command = ["best-of-n", "--judge", folder, "--input", str(rows), "--output", str(out), "--reasoning", "strip",
               "--unfinished", "-9", "--batch-size", "4"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (out / "scored.jsonl").read_text().splitlines()]
    found = {row["completion"]: row["score"] for row in lines}
    assert found[CUT] == -9 and found[WHOLE] == found[ANSWER] > -9


@pytest.mark.parametrize("name", ["score", "best-of-n", "evaluate", "serve"])
def test_every_command_that_scores_has_them(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for param in command.params for option in param.opts}
    assert {"--reasoning", "--unfinished"} <= known
    assert options._unfinished("0.5") == 0.5
