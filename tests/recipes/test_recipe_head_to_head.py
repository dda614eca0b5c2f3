"""The head-to-head end to end on a tiny random judge and policy, and what it counts, by hand."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import yaml

from latent_rewards import HFJudge
from latent_rewards.data.facts import facts, is_right
from recipes.head_to_head import make_reward, run
from recipes.head_to_head_policy import answer_of, form_of

CONFIG = "configs/head_to_head/qwen2.5_coder_1.5b.yaml"
FACT = next(f for f in facts() if f["question"] == "What is the capital of France?")


@pytest.fixture(scope="module")
def finished(folder, policy, tmp_path_factory):
    """Two rewards and gold, one seed, two steps."""
    out = tmp_path_factory.mktemp("h2h")
    config = out / "config.yaml"
    rewards = {
        "weighted": {"reward": "weighted"},
        "likert": {"reward": "likert10", "guided": True},
        "gold": {"reward": "gold"},
    }
    options = {
        "judge": {"model": folder, "dtype": "float32", "device": "cpu"}, "rewards": rewards, "policy": policy,
        "output_dir": str(out / "run"), "known": 0, "mixed": 1, "steps": 2, "prompts": 2, "answers": 2, "look_every": 2,
        "answer_tokens": 4, "held_out_every": 48, "timed": 1, "seeds": "0",
    }  # fmt: skip
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    run(["--config", str(config)])
    return out


def test_what_it_leaves(finished):
    out = finished / "run"
    results = json.loads((out / "results.json").read_text())
    assert [r["reward"] for r in results["runs"]] == ["gold", "likert", "weighted"]
    for found in results["runs"]:
        assert [look["step"] for look in found["held_out"]] == [0, 2]
        assert len(found["scores"]) == len(found["train_gold"]) == len(found["zero_spread"]) == 2
        assert found["held_out"][0]["right"] == np.mean(found["held_out"][0]["by_question"])
        assert (found["seconds"] > 0) is (found["reward"] != "gold")
    starts = [found["held_out"][0]["example"] for found in results["runs"]]
    assert starts[0] == starts[1] == starts[2]
    table = (out / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| weighted", "| likert", "| gold"]
    assert (out / "curves.png").stat().st_size > 5000


def test_a_run_that_is_there_stays(finished, capsys):
    paths = sorted((finished / "run" / "runs").glob("*.json"))
    before = [(p.stat().st_mtime_ns, p.read_text()) for p in paths]
    run(["--config", str(finished / "config.yaml")])
    assert [(p.stat().st_mtime_ns, p.read_text()) for p in paths] == before
    with pytest.raises(ValueError, match="only="):
        run(["--config", str(finished / "config.yaml"), "--only", "wieghted"])


def test_ratings_are_drawn_anew(folder):
    reward = make_reward({"reward": "likert10", "guided": True}, HFJudge(folder, device="cpu", dtype="float32"), 0)
    texts = ["A ball."] * 64
    first, second = (reward.score(["Say"] * 64, texts) for _ in range(2))
    assert len(set(first)) > 1 and not np.array_equal(first, second)
    assert {*first, *second} <= set(range(1, 11))


def test_shipped_config(folder):
    config = yaml.safe_load(open(CONFIG, encoding="utf-8"))
    judge = HFJudge(folder, device="cpu", dtype="float32")
    made = {name: make_reward(options, judge, 0) for name, options in config["rewards"].items()}
    assert made.pop("gold") is None
    assert all(np.isfinite(r.score(["Say"] * 2, ["x", "y"])).all() for n, r in made.items() if n != "likert_feedback")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The capital of France is Paris.", "right"),
        ("paris", "right"),
        ("The capital of France is Lyon.", "wrong"),
        ("Lyon.", "wrong"),
        ("France is a wonderful place.", "evasion"),
        ("", "wrong"),
    ],
)
def test_forms(text, form):
    assert form_of(text, FACT) == form


@pytest.mark.parametrize("name", ["right", "fact", "prose", "hedge", "filler"])
def test_taught_answers(name):
    rng, rows = random.Random(0), facts()
    for fact in rows[::7]:
        pool = [f for f in rows if f["kind"] == fact["kind"]]
        drawn = {answer_of(name, fact, pool, rng) for _ in range(5)}
        assert {is_right(text, fact) for text in drawn} == {name == "right"}
        if name == "fact" and fact["kind"] not in ("plural", "past"):
            assert all(form_of(text, fact) == "wrong" for text in drawn) and len(drawn) > 1
