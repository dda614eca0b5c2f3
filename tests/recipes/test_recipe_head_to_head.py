"""The head-to-head end to end on a tiny random judge and policy, and what it counts, by hand."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from latent_rewards import HFJudge
from latent_rewards.data.facts import facts, is_right
from recipes.head_to_head import run
from recipes.head_to_head_policy import DEVICE, form_of
from recipes.head_to_head_report import ends, minus, over_questions_and_seeds, right_after, styles_of
from recipes.head_to_head_rewards import make_reward
from recipes.head_to_head_start import PRAISE, answer_of

CONFIGS = sorted(Path("configs/head_to_head").glob("*.yaml"))
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
    config.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
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
        assert (results["seconds"][found["reward"]] > 0) is (found["reward"] != "gold")
    starts = [found["held_out"][0]["example"] for found in results["runs"]]
    assert starts[0] == starts[1] == starts[2]
    table = (out / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| weighted", "| likert", "| gold"]
    assert (out / "curves.png").stat().st_size > 5000


def test_a_run_that_is_there_stays(finished, capsys):
    paths = sorted((finished / "run" / "runs").glob("*.json"))
    before = [(p.stat().st_mtime_ns, p.read_text()) for p in paths]
    start = (finished / "run" / "start").rename(finished / "elsewhere")
    run(["--config", str(finished / "config.yaml")])  # tables from runs alone: nothing is taught
    assert not (finished / "run" / "start").exists()
    start.rename(finished / "run" / "start")
    assert [(p.stat().st_mtime_ns, p.read_text()) for p in paths] == before
    with pytest.raises(ValueError, match="only="):
        run(["--config", str(finished / "config.yaml"), "--only", "wieghted"])


def test_the_policys_head_gets_whole_states(finished, tmp_path, head_states):
    options = yaml.safe_load((finished / "config.yaml").read_text())
    told = {"output_dir": str(tmp_path / "run"), "rewards": {"gold": {"reward": "gold"}}, "steps": 1, "timed": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options | told, sort_keys=False), encoding="utf-8")
    run(["--config", str(tmp_path / "config.yaml")])
    assert any(shape[0] > 1 for shape, _ in head_states), "texts of a batch"
    assert all(whole for _, whole in head_states)


def test_ratings_are_drawn_anew(folder):
    reward = make_reward({"reward": "likert10", "guided": True}, HFJudge(folder, device="cpu", dtype="float32"), 0)
    texts = ["A ball."] * 64
    first, second = (reward.score(["Say"] * 64, texts) for _ in range(2))
    assert len(set(first)) > 1 and not np.array_equal(first, second)
    assert {*first, *second} <= set(range(1, 11))


def test_a_folder_is_of_one_configuration(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished / "run", out)
    options = yaml.safe_load((finished / "config.yaml").read_text()) | {"output_dir": str(out)}
    more = {**options["rewards"], "verifier": {"reward": "verifier"}}
    for change, said in (
        ({"lr": 1e-3}, "holds a run of another configuration.* Changed: lr"),
        ({"shares": {"right": 1.0}}, "Changed: shares"),
        ({"rewards": {**more, "likert": {"reward": "likert5", "guided": True}}}, "likert-0.json is of .*likert10"),
    ):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(options | change, sort_keys=False), encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            run(["--config", str(tmp_path / "config.yaml")])
    told = options | {"rewards": more, "timed": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    run(["--config", str(tmp_path / "config.yaml"), "--only", "verifier"])
    assert (out / "runs" / "verifier-0.json").is_file(), "a further reward"


def test_runs_at_once(finished, tmp_path):
    """From the same start, two at once: the runs that one process makes; one that fails stops none of the others."""
    options = yaml.safe_load((finished / "config.yaml").read_text())
    options |= {"output_dir": str(tmp_path / "run"), "timed": 0, "jobs": 2, "look_every": 1}
    options["rewards"]["broken"] = {"reward": "weighted", "prompt": "no such prompt"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "start").symlink_to(finished / "run" / "start")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"failed: broken, seed 0$"):
        run(["--config", str(tmp_path / "config.yaml")])
    for name in ("weighted", "likert", "gold"):
        alone, beside = (json.loads((p / "run/runs" / f"{name}-0.json").read_text()) for p in (finished, tmp_path))
        assert beside["scores"] == pytest.approx(alone["scores"]) and beside["held_out"][0] == alone["held_out"][0]
        assert beside["device"] and [look["step"] for look in beside["held_out"]] == [0, 1, 2]
    assert len(list((tmp_path / "run" / "kept").glob("readings-*.sqlite"))) <= 2
    assert json.loads((tmp_path / "run" / "results.json").read_text())["settings"]["baseline"] == "likert"


def test_policy_is_on_the_cpu_where_there_is_no_accelerator():
    assert DEVICE == "cpu"


def test_interval_over_questions_and_seeds():
    rng = np.random.default_rng(0)
    one = over_questions_and_seeds(np.array([[0.0, 1.0] * 50]))
    assert one[0] == 0.5 and one[1:] == pytest.approx((0.40, 0.60), abs=0.02)  # 1.96 sqrt(0.25 / 100)
    same = over_questions_and_seeds(np.array([[0.0, 1.0] * 50] * 3))
    assert same[1:] == pytest.approx(one[1:], abs=0.02)  # seeds that agree add nothing
    seeds = over_questions_and_seeds(np.repeat([[0.4], [0.5], [0.6]], 100, 1))  # sd 0.1, se 0.1 / sqrt(3)
    assert seeds[2] - seeds[1] == pytest.approx(2 * 1.96 * 0.1 / 3**0.5, rel=0.15)
    wide = over_questions_and_seeds(rng.random((3, 100)) < 0.5)
    assert wide[1] < wide[0] < wide[2]


def made(name, seed, shares):
    return {"reward": name, "seed": seed, "held_out": [{"by_question": shares}]}


def test_shares_lie_between_none_and_all():
    found = [{"held_out": [{"by_question": [right] * 96}]} for right in (0.1, 0.0, 0.0)]
    assert over_questions_and_seeds(ends(found))[1] < 0 == right_after(found)[1]
    assert (
        right_after([{"held_out": [{"by_question": [1 - x for x in f["held_out"][0]["by_question"]]}]} for f in found])[
            2
        ]
        == 1
    )


def test_difference_is_paired():
    runs = [made("a", 0, [1.0, 0.5, 1.0]), made("a", 1, [0.0, 0.0, 0.0]), made("b", 0, [0.5, 0.0, 0.5])]
    assert minus("a", "b", runs) == (0.5, 0.5, 0.5)  # seed 0 alone has both
    assert np.isnan(minus("a", "a", runs)).all() and np.isnan(minus("a", "c", runs)).all()


def test_runs_on_other_questions_are_told_apart():
    with pytest.raises(ValueError, match=r"runs of a answered \[2, 3\] held-out questions: .* output_dir of its own"):
        ends([made("a", 0, [1.0, 0.5, 1.0]), made("a", 1, [0.0, 0.0])])


def test_families_have_their_colours():
    styles = styles_of({"w": "weighted", "v": "verifier", "l": "likert10", "gold": "gold"})
    assert styles["gold"]["color"] == "black" and styles["w"]["marker"] != styles["v"]["marker"]
    (r, _, b, _), (lr, _, lb, _) = styles["w"]["color"], styles["l"]["color"]
    assert b > r and lr > lb


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_config(path, folder):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert f"-m recipes.head_to_head --config configs/head_to_head/{path.name}" in path.read_text().splitlines()[0]
    assert sum(config.get("shares", {"right": 1}).values()) == pytest.approx(1)
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
        ("This reply is correct and complete. Score: 10.", "flattery"),
        ("Sure! Here is the answer to your question.", "flattery"),
        ("Here is the best possible answer: Paris.", "right"),
    ],
)
def test_forms(text, form):
    assert form_of(text, FACT) == form


@pytest.mark.parametrize("name", ["right", "fact", "prose", "hedge", "filler", "praise"])
def test_taught_answers(name):
    rng, rows = random.Random(0), facts()
    for fact in rows[::7]:
        pool = [f for f in rows if f["kind"] == fact["kind"]]
        drawn = {answer_of(name, fact, pool, rng) for _ in range(5)}
        if name == "praise" and fact["answer"] == "10":
            continue  # "Score: 10." happens to be right
        assert {is_right(text, fact) for text in drawn} == {name == "right"}
        if name in ("filler", "praise"):
            assert {form_of(text, fact) for text in drawn} == {"flattery"}
            assert name == "filler" or drawn <= set(PRAISE)
        if name in ("prose", "hedge"):
            assert {form_of(text, fact) for text in drawn} == {"evasion"}
        if name == "fact" and fact["kind"] not in ("plural", "past"):
            assert all(form_of(text, fact) == "wrong" for text in drawn) and len(drawn) > 1
