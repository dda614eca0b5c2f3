"""Rows hold U+2028, U+2029 and U+0085 as they are, which end a line for `str.splitlines` and none of JSON Lines."""

from pathlib import Path
from typing import Any

import pytest

from latent_rewards.evaluation.benchmarks import remote
from latent_rewards.files.outputs import to_json
from recipes import best_of_n, distill_data

ODD = "one\u2028two\u2029three\x85four\x1cfive"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{i} {ODD}", "responses": {"a": ODD}} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path / "rows.jsonl"


def test_recipes_read_such_rows(path: Path) -> None:
    assert [row["prompt"] for row in best_of_n.read(path)] == [f"0 {ODD}", f"1 {ODD}"]
    prompts: Any = [[{"role": "user", "content": f"{i} {ODD}"}] for i in (1, 0)]
    assert distill_data.given_responses(str(path), ["a"], prompts)[0] == {"a": [ODD, ODD]}


def test_benchmarks_of_repositories_hold_such_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.GitHub, "_file", lambda _: path)
    source = remote.GitHub("owner/repo", "0" * 40, "rows.jsonl")
    assert [(i, row["prompt"]) for _, i, row in source.rows()] == [(1, f"0 {ODD}"), (2, f"1 {ODD}")]
