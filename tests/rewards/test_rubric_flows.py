"""Rubric lists where users meet them: a trainer on two ranks, the command line, Best-of-N, a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import launch, serving
from typer.testing import CliRunner

from latent_rewards import HFJudge, RubricReward
from latent_rewards.cli.main import app
from latent_rewards.judge.prompts import to_text
from latent_rewards.serving.client import RewardClient

PROGRAM = Path(__file__).parents[1] / "rubric_ranks.py"


def health(n: int = 10) -> list[dict[str, Any]]:
    """Rows in the schema of HealthBench; the words are ours."""
    return [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"I have had a headache for {i} days. What should I do?"}],
            "completion": "See a doctor." if i % 2 else f"Take {i} tablets and wait.",
            "rubrics": [
                {"criterion": "Says to see a doctor", "points": 5 + i, "tags": ["axis:accuracy"]},
                {"criterion": "Names a dose without a limit", "points": -4, "tags": ["axis:safety", "level:example"]},
                *({"criterion": f"Mentions point {k}", "points": 1, "tags": []} for k in range(i % 3)),
            ],
        }
        for i in range(n)
    ]


def science(n: int = 10) -> list[dict[str, Any]]:
    """Rows in the schema of Rubrics as Rewards; the words are ours."""
    return [
        {
            "question": f"How many electrons has element {i + 1}?",
            "reference_answer": str(i + 1),
            "response": f"It has {i + 1 + i % 2}.",
            "rubric": [
                {"description": "Essential Criteria: gives the atomic number", "title": "Number", "weight": 5},
                {"description": "Optional Criteria: says why", "title": "Reason", "weight": 2},
                {"description": "Pitfall Criteria: speaks of neutrons", "title": "Neutrons", "weight": -1},
            ][: 3 - i % 2],
        }
        for i in range(n)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wanted(folder: str, rows: list[dict[str, Any]], prompt: str, completion: str, rubric: str) -> np.ndarray:
    reward = RubricReward(HFJudge(folder, dtype="float32", device="cpu"), criteria_column=rubric)
    return reward.score([r[prompt] for r in rows], [r[completion] for r in rows], **{rubric: [r[rubric] for r in rows]})


NAMES = [(health, ("prompt", "completion", "rubrics")), (science, ("question", "response", "rubric"))]


@pytest.mark.parametrize(("make", "names"), NAMES, ids=["healthbench", "rubrics-as-rewards"])
def test_published_schemas_on_the_command_line(make: Any, names: Any, folder: str, tmp_path: Path) -> None:
    rows, (prompt, completion, rubric) = make(), names
    judge = ["--judge", folder, "--judge-option", "dtype=float32", "--judge-option", "device=cpu"]
    columns = ["--prompt-column", prompt, "--completion-column", completion, "--criteria-column", rubric]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = ["score", *judge, *columns, "--reward", "rubric_list", "--input", str(source), "--output", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    got, want = [r["rubric_list"] for r in read(out)], wanted(folder, rows, *names)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert all(
        {k: v for k, v in row.items() if k != "rubric_list"} == old for row, old in zip(read(out), rows, strict=True)
    )

    rows[3][rubric] = [{"criterion": "fine", "points": "many"}]
    write(source, rows)
    done = CliRunner().invoke(
        app,
        [
            "score",
            *judge,
            *columns,
            "--reward",
            "rubric_list",
            "--input",
            str(source),
            "--output",
            str(out),
            "--overwrite",
        ],
    )
    assert f"row 4: column '{rubric}': criterion 0: its weight must be a finite number, got 'many'" in done.output
    assert [r["rubric_list"] is None for r in read(out)] == [i == 3 for i in range(10)]


@pytest.mark.parametrize(("make", "names"), NAMES, ids=["healthbench", "rubrics-as-rewards"])
def test_published_schemas_in_best_of_n(make: Any, names: Any, folder: str, tmp_path: Path) -> None:
    rows, (prompt, completion, rubric) = make(4), names
    several = [{**row, completion: f"{row[completion]} {k}"} for row in rows for k in range(3)]
    source = write(tmp_path / "in.jsonl", several)
    done = CliRunner().invoke(app, [
        "best-of-n", "--judge", folder, "--judge-option", "dtype=float32", "--judge-option", "device=cpu",
        "--input", str(source), "--output", str(tmp_path / "run"), "--prompt-column", prompt,
        "--completion-column", completion, "--reward", "rubric_list", "--reward-option", f"criteria_column={rubric}",
        "--threads", "1",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    want = wanted(folder, several, *names).reshape(4, 3)
    chosen = {json.dumps(r[prompt]): to_text(r[completion]) for r in read(tmp_path / "run" / "selected.jsonl")}
    assert len(chosen) == 4
    for i, row in enumerate(rows):
        assert chosen[json.dumps(row[prompt])] == several[3 * i + int(want[i].argmax())][completion]


def test_published_schemas_at_a_server(folder: str, tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.yaml"
    rewards.write_text("health: {reward: rubric_list}\nscience: {reward: rubric_list, criteria_column: rubric}\n")
    options = ["--reward", str(rewards)]
    with serving(folder, tmp_path / "log", *options) as server:
        for name, (make, names) in zip(("health", "science"), NAMES, strict=True):
            rows, (prompt, completion, rubric) = make(), names
            sent = [{"prompt": r[prompt], "completion": r[completion], rubric: r[rubric]} for r in rows]
            want = wanted(folder, rows, *names)
            np.testing.assert_allclose(RewardClient(server.url, reward=name).score(sent), want, atol=1e-5)
            answer = server.http().post("/score", json={"rows": sent, "rewards": [name], "explain": True}).json()
            items = answer["explanations"][name]
            assert [len(x) for x in items] == [len(r[rubric]) for r in rows] and 0 < items[0][0]["p"] < 1
            sent[2][rubric] = [{"criterion": ""}]
            refused = server.http().post("/score", json={"rows": sent, "rewards": [name]})
            assert refused.status_code == 422 and refused.json()["error"]["row"] == 2
            assert f"row 2: column '{rubric}': criterion 0: no text under" in refused.json()["error"]["message"]


def test_two_ranks_train_on_lists_of_their_own(policy: str, folder: str, tmp_path: Path) -> None:
    ranks = launch(PROGRAM, policy, folder, str(tmp_path), timeout=550)
    reward = RubricReward(HFJudge(folder, dtype="float32", device="cpu", max_length=1200))
    prompts = set()
    for facts in ranks:
        assert len(facts["seen"]) == 2
        for call in facts["seen"]:
            want = reward.score(call["prompts"], call["completions"], rubrics=call["rubrics"])
            got = np.array(call["rewards"], dtype=float)
            np.testing.assert_allclose(got, want, rtol=1e-5)
            _, reasons = reward.score_with_reasons(call["prompts"], call["completions"], rubrics=call["rubrics"])
            for prompt, completion, value, why in zip(call["prompts"], call["completions"], got, reasons, strict=True):
                prompts.add(prompt)
                long = prompt == "Count to three."
                unfinished = completion.startswith("<think>")
                assert math.isnan(value) == (long or unfinished), (prompt, completion, why)
                if long and not unfinished:
                    assert str(why).startswith("criterion 1 (too long too long")
    assert len(prompts) >= 3 and all(np.isfinite(row["loss"]) for row in ranks[0]["logs"])
