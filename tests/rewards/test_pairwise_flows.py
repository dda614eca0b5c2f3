"""Replies against each other where users meet them: trainers, Best-of-N, evaluation, a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import launch, serving
from typer.testing import CliRunner

from latent_rewards import HFJudge, PairwiseReward, compare
from latent_rewards.cli.main import app
from latent_rewards.serving.client import RewardClient

PROGRAM = Path(__file__).parents[1] / "pairwise_ranks.py"
LISTS = [
    {"prompt": "Name a prime.", "completions": ["Seven.", "Nine.", "Eleven is prime.", "I do not know.", "Two."]},
    {"prompt": "Say hello.", "completions": ["Hello!", "No.", "Good day to you."]},
    {"prompt": "Who?", "completions": ["Me."]},
]


def judge_of(folder: str) -> HFJudge:
    return HFJudge(folder, dtype="float32", device="cpu")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def invoke(*command: str) -> str:
    done = CliRunner().invoke(app, list(command))
    assert done.exit_code == 0, done.output
    return done.output


def test_two_ranks_with_a_part_of_each_group(policy: str, folder: str, tmp_path: Path) -> None:
    ranks = launch(PROGRAM, policy, folder, str(tmp_path), timeout=550)
    reward = PairwiseReward(judge_of(folder))
    for facts in ranks:
        assert len(facts["seen"]) == 2
        for call in facts["seen"]:
            assert len(call["prompts"]) == 4 and len(set(call["prompts"])) == 1
            got = np.array(call["rewards"], dtype=float)
            np.testing.assert_allclose(got, reward.score(call["prompts"], call["completions"]), atol=5e-5)
            assert got.sum() == pytest.approx(0, abs=1e-5)
    for row in ranks[0]["logs"]:
        assert np.isfinite(row["loss"]) and row["pairwise/alone"] == 0 and 0 < row["pairwise/comparisons"] <= 6 / 4


def test_online_dpo(policy: str, folder: str, tmp_path: Path) -> None:
    from test_trainers import Calls, online_dpo

    spy = Calls(PairwiseReward(judge_of(folder)))
    online_dpo(policy, spy, tmp_path).train()
    (kwargs, out), *_ = spy.seen
    assert out[0] == -out[2] and out[1] == -out[3], "the two completions of each prompt"
    found = compare(judge_of(folder), kwargs["prompts"][0], kwargs["completions"][0], kwargs["completions"][2])
    assert out[0] == pytest.approx(found.log_odds, abs=5e-5)


@pytest.mark.parametrize("reward", ["pairwise", "guarded", "mean"])
def test_scored_rows_of_a_prompt_stay_together_whatever_is_made_of_them(
    folder: str, tmp_path: Path, reward: str
) -> None:
    rows = [{"prompt": row["prompt"], "completion": text} for row in LISTS[:2] for text in row["completions"]]
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    made = {
        "pairwise": ["--reward", "pairwise"],
        "guarded": ["--reward", "guarded", "--reward-option", "of=pairwise", "--reward-option", "floor=-50"],
        "mean": ["--reward", "ensemble", "--reward-option", "of=[pairwise, {reward: pairwise, name: again}]"],
    }
    invoke(
        "score", "--judge", folder, "--judge-option", "dtype=float32", "--judge-option", "device=cpu", *made[reward],
        "--input", str(source), "--output", str(out), "--batch-size", "2",
    )  # fmt: skip
    want = PairwiseReward(judge_of(folder)).score([r["prompt"] for r in rows], [r["completion"] for r in rows])
    (name,) = read(out)[0].keys() - {"prompt", "completion", "reason"}
    got = np.array([row[name] for row in read(out)])
    if reward == "mean":  # of standardised scores
        got, want = (x - x[0] for x in (got, want))
        got, want = got / got[1], want / want[1]
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("opponents", ["group", "pivots", "anchors"])
def test_best_of_n(folder: str, tmp_path: Path, opponents: str) -> None:
    source = write(tmp_path / "lists.jsonl", LISTS)
    invoke(
        "best-of-n", "--judge", folder, "--judge-option", "dtype=float32", "--judge-option", "device=cpu",
        "--reward", "pairwise", "--reward-option", f"opponents={opponents}", "--input", str(source),
        "--output", str(tmp_path / "run"), "--threads", "1",
    )  # fmt: skip
    reward = PairwiseReward(judge_of(folder), opponents=opponents)  # type: ignore[arg-type]
    scored = read(tmp_path / "run" / "scored.jsonl")
    chosen = {row["prompt"]: row["completion"] for row in read(tmp_path / "run" / "selected.jsonl")}
    for row, made in zip(LISTS[:2], scored, strict=False):
        want = reward.score([row["prompt"]] * len(row["completions"]), row["completions"])
        np.testing.assert_allclose(made["score"], want, atol=5e-5)
        assert chosen[str(row["prompt"])] == row["completions"][int(want.argmax())]
    assert scored[2]["score"] == [None] and "alone" in str(scored[2]["reason"])


def test_evaluate(folder: str, tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"Name prime {i}.", "chosen": f"{i} is one.", "rejected": f"I like {i}.", "id": str(i)}
        for i in range(12)
    ]
    source = write(tmp_path / "pairs.jsonl", pairs)
    invoke(
        "evaluate", "--judge", folder, "--judge-option", "dtype=float32", "--benchmarks", str(source), "--reward",
        "pairwise", "--reward", "weighted", "--output", str(tmp_path / "run"),
    )  # fmt: skip
    report = json.loads(next((tmp_path / "run").glob("*.json")).read_text())
    reward = PairwiseReward(judge_of(folder))
    right = [reward.score([p["prompt"]] * 2, [p["chosen"], p["rejected"]])[0] > 0 for p in pairs]
    assert report["summary"]["pair"]["scorers"]["pairwise"]["accuracy"]["value"] == pytest.approx(np.mean(right))


def test_a_server_compares_the_rows_of_a_request(folder: str, tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.yaml"
    rewards.write_text("pairwise: {}\nanchored: {reward: pairwise, opponents: anchors}\nweighted: {}\n")
    rows = [{"prompt": r["prompt"], "completion": c} for r in LISTS for c in r["completions"]]
    prompts, completions = [str(r["prompt"]) for r in rows], [r["completion"] for r in rows]
    with serving(folder, tmp_path / "log", "--reward", str(rewards), "--dtype", "float32") as server:
        for name, opponents in (("pairwise", "group"), ("anchored", "anchors")):
            reward = PairwiseReward(judge_of(folder), opponents=opponents)  # type: ignore[arg-type]
            want = reward.score(prompts, completions)
            assert np.isnan(want[-1]) and np.isfinite(want[:-1]).all()
            np.testing.assert_allclose(RewardClient(server.url, reward=name).score(rows[:-1]), want[:-1], atol=5e-5)
        answer = server.http().post("/score", json={"rows": rows, "rewards": ["weighted", "pairwise"]}).json()
        assert answer["rewards"]["pairwise"][-1] is None and answer["rewards"]["weighted"][-1] is not None
