"""Rubric lists: what is read is what each question alone would give, and what a list is worth is worked by hand."""

from __future__ import annotations

import json
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from contracts import UNREADABLE, FakeJudge, Logs, trl_kwargs
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_rewards import (
    EnsembleReward,
    HFJudge,
    JudgePrompt,
    Need,
    ProbabilityWeightedReward,
    Request,
    RubricReward,
    VerifierReward,
    build_reward,
)
from latent_rewards.files.sources import RowError
from latent_rewards.rewards.criteria import Criterion, load_criteria, parse_criteria, subset
from latent_rewards.rewards.rubric import AGGREGATES

CRITERION = JudgePrompt.load("criterion")
HEALTHBENCH = [
    {"criterion": "Says to see a doctor within a day", "points": 7, "tags": ["level:example", "axis:accuracy"]},
    {"criterion": "Names the drug's upper daily dose", "points": 3, "tags": []},
    {"criterion": "Advises against seeing a doctor", "points": -8, "tags": ["axis:safety"]},
]
RAR = [
    {"description": "Essential Criteria: states the melting point", "title": "Melting point", "weight": 5},
    {"description": "Pitfall Criteria: confuses Celsius and Kelvin", "title": "Units", "weight": -1},
]


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("Be brief.", [("Be brief.", 1, "")]),
        (["Be brief.", "Be right."], [("Be brief.", 1, ""), ("Be right.", 1, "")]),
        (HEALTHBENCH, [(c["criterion"], c["points"], "") for c in HEALTHBENCH]),
        (RAR, [(c["description"], c["weight"], c["title"]) for c in RAR]),
        (json.dumps(HEALTHBENCH), [(c["criterion"], c["points"], "") for c in HEALTHBENCH]),
        ({"rubrics": RAR, "answer": "4"}, [(c["description"], c["weight"], c["title"]) for c in RAR]),
        (json.dumps({"rubric": ["One."]}), [("One.", 1, "")]),
        ({"a": "Brief.", "b": {"text": "Right.", "weight": 2}}, [("Brief.", 1, "a"), ("Right.", 2, "b")]),
        ({"criterion": "Be brief.", "points": 4}, [("Be brief.", 4, "")]),
    ],
)  # fmt: skip
def test_lists_as_data_sets_publish_them(value: Any, want: list[tuple[str, float, str]]) -> None:
    assert [(c.text, c.weight, c.name) for c in parse_criteria(value)] == want


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([], "a rubric is a list of criteria, got list"),
        (None, "a rubric is a list of criteria, got NoneType"),
        (["a", ""], "criterion 1: no text under 'criterion' or"),
        (["a", 3], "criterion 1: expected a text or a mapping, got int 3"),
        ([{"criterion": "a", "weight": math.nan}], "criterion 0: its weight must be a finite number, got nan"),
        ([{"criterion": "a", "weight": "5"}], "criterion 0: its weight must be a finite number, got '5'"),
        ([{"criterion": "a", "weight": 5, "points": 4}], "criterion 0: weight and points differ"),
        ([{"criterion": "a", "points": -1}], "no criterion has a positive weight"),
        ([{"criterion": "a", "essential": "yes"}], "'essential' must be true or false"),
        (["a", {"criterion": "b", "points": -2, "essential": True}], "criterion 1: a penalty cannot be essential"),
        ('[{"criterion": "a"', "a rubric in JSON that cannot be read"),
    ],
)
def test_items_that_are_none_are_named(value: Any, error: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=error):
        parse_criteria(value)
    reward = RubricReward(FakeJudge())
    with pytest.raises(RowError, match=r"row 1: column 'rubrics'|row 1: no criteria in column 'rubrics'"):
        reward.score(["p", "p"], ["c", "c"], rubrics=[["fine"], value])
    if value is not None and not isinstance(value, str):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(value))
        with pytest.raises(ValueError, match=r"mine\.yaml: "):
            load_criteria(tmp_path / "mine.yaml")


ODDS = np.array([math.log(0.9 / 0.1), math.log(0.2 / 0.8), math.log(0.75 / 0.25)])  # P = 0.9, 0.2, 0.75
WEIGHTS = np.array([4.0, 1.0, -2.0])


@pytest.mark.parametrize(
    ("aggregate", "want"),
    [
        ("points", (4 * 0.9 + 0.2 - 2 * 0.75) / 5),
        ("met_points", (4 - 2) / 5),
        ("mean", (4 * 0.9 + 0.2 + 2 * 0.25) / 7),
        ("log_odds", (4 * math.log(9) + math.log(0.25) - 2 * math.log(3)) / 7),
        ("min", 0.2),
        ("geometric", math.exp((4 * math.log(0.9) + math.log(0.2) + 2 * math.log(0.25)) / 7)),
        ("all", 0.0),
        ("count", 1.0),
    ],
)
def test_aggregates_by_hand(aggregate: str, want: float) -> None:
    assert AGGREGATES[aggregate](ODDS, WEIGHTS, 0.5) == pytest.approx(want, rel=1e-9)
    assert AGGREGATES["all"](ODDS, np.array([1.0, 0.0, -1.0]), 0.1) == 1, "a weight of 0 asks nothing"
    assert AGGREGATES["points"](-ODDS, WEIGHTS, 0.5) == pytest.approx((4 * 0.1 + 0.8 - 2 * 0.25) / 5)
    assert AGGREGATES["points"](np.array([-9.0, -9, 9]), WEIGHTS, 0.5) == 0, "clipped, as HealthBench is"


def judged(odds: dict[str, float | None]) -> FakeJudge:
    """A judge that gives each criterion the log-odds that it is told; None cannot be read."""

    class Told(FakeJudge):
        def logits(self, prompt: JudgePrompt, row: Any) -> torch.Tensor:
            value = odds[str(row["criterion"])]
            return torch.tensor([[math.nan if value is None else value, 0.0]]).repeat(self.layers + 1, 1)

    return Told()


def test_scores_gates_and_criteria_that_cannot_be_read() -> None:
    judge = judged({"a": 3.0, "b": -1.0, "c": None})
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    two, gated = ["a", "b"], ["a", {"criterion": "b", "essential": True}]
    three = [{"criterion": "a", "points": 2}, "b", {"criterion": "c", "points": -1}]

    def score(rubrics: Any, **options: Any) -> float:
        return float(RubricReward(judge, **options).score(["p"], ["r"], rubrics=[rubrics])[0])

    assert score(two) == pytest.approx((sigmoid(3) + sigmoid(-1)) / 2)
    assert score(gated) == 0 and score(gated, threshold=0.2) == score(two)
    assert score(gated, aggregate="log_odds") == pytest.approx(-1) and score(gated, aggregate="count") == 0
    assert math.isnan(score(three))
    left = score(three, unreadable="leave_out")
    assert left == pytest.approx((2 * sigmoid(3) + sigmoid(-1)) / 3)
    assert math.isnan(score(["c"], unreadable="leave_out")), "nothing of positive weight is left"
    _, (why,) = RubricReward(judge).score_with_reasons(["p"], ["r"], rubrics=[three])
    assert why == f"criterion 2 (c): {UNREADABLE}"


def test_explained() -> None:
    judge = judged({"a": 3.0, "b": -1.0, "c": None})
    items = [{"criterion": "a", "points": 2, "name": "first"}, {"criterion": "b", "points": -1}, "c"]
    reward = RubricReward(judge, criteria=items, unreadable="leave_out")
    ((first, second, third),) = reward.explain(["p"], ["r"])
    assert first["p"] == pytest.approx(1 / (1 + math.exp(-3))) and first["name"] == "first"
    assert first["contribution"] == pytest.approx(2 * first["p"] / 3) and second["contribution"] < 0
    assert third["p"] is None and third["reason"] == UNREADABLE and third["contribution"] is None
    assert first["label_mass"] == pytest.approx(0.5)
    logs = Logs()
    (score,) = reward(["p"], ["r"], **trl_kwargs(1, logs))
    assert score is not None and logs.metrics["rubric_list/first"] == pytest.approx(first["p"])
    (told,) = logs.extra["rubric_list/criteria"]
    assert [x["p"] for x in json.loads(told)] == [first["p"], second["p"], None]


def test_from_one_to_five(make_judge: Any) -> None:
    judge = make_judge("llama")
    reward = RubricReward(judge, criteria=["It is short."], prompt="criterion_scale")
    row = {"prompt": "p", "completion": "c", "criterion": "It is short."}
    (reading,) = judge.read([Request(reward.prompt, [row], Need(labels=True))])
    rating = float((torch.softmax(reading.label_logprobs, -1) * torch.arange(1, 6)).sum())
    assert reward.score(["p"], ["c"])[0] == pytest.approx((rating - 1) / 4, rel=1e-5)
    with pytest.raises(ValueError, match=r"has no .. criterion .. slot"):
        RubricReward(judge, prompt="verifier")


def words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(["red", "the", "a fox", "seven", "whether", "jumps", "over", "not"]) for _ in range(n))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_each_question_of_a_packed_list_is_read_as_if_alone(make_judge: Any, family: str) -> None:
    judge, alone, rng = make_judge(family), make_judge(family), random.Random(0)
    sizes = [1, 40, 3, 17, 8]
    prompts = [words(rng, rng.choice([2, 30])) for _ in range(2)]
    rows = [(prompts[i % 2], words(rng, rng.choice([1, 12, 60]))) for i in range(len(sizes))]
    rubrics = [[words(rng, rng.randint(1, 20)) for _ in range(n)] for n in sizes]
    explained = RubricReward(judge).explain(*zip(*rows, strict=True), rubrics=rubrics)
    assert judge.forwards == 1
    for (prompt, reply), items in zip(rows, explained, strict=True):
        for item in items:
            alone.forget()
            texts = [{"prompt": prompt, "completion": reply, "criterion": item["criterion"]}]
            (reading,) = alone.read([Request(CRITERION, texts, Need(labels=True))])
            yes, no = reading.label_logprobs[0].tolist()
            assert math.log(item["p"] / (1 - item["p"])) == pytest.approx(yes - no, abs=5e-5)


def test_task_and_reply_run_once(make_judge: Any) -> None:
    judge, alone, rng = make_judge("llama"), make_judge("llama"), random.Random(1)
    prompt, reply, criteria = words(rng, 100), words(rng, 200), [words(rng, 8) for _ in range(20)]
    RubricReward(judge, criteria=criteria).score([prompt], [reply])
    packed = judge.forward.tokens_run
    for criterion in criteria:
        RubricReward(alone, criteria=[criterion]).score([prompt], [reply])
        alone.forward.cache.clear()
    assert alone.forward.tokens_run > 5 * packed


def test_dropout_is_the_same_for_a_prompt_and_another_at_each_step() -> None:
    criteria = parse_criteria([{"criterion": f"c{i}", "essential": i == 3} for i in range(20)])

    class State:
        global_step = 1

    reward = RubricReward(FakeJudge(), criteria=list(criteria), dropout=0.5)
    drawn = {}
    for step in (1, 2):
        State.global_step = step
        rows = reward.rows(["p", "q", "p"], ["a", "b", "c"], {"trainer_state": State()})
        kept = [row["rubrics"] for row in rows]
        assert kept[0] == kept[2] != kept[1] and all(any(c.text == "c3" for c in k) for k in kept)
        drawn[step] = kept
    assert drawn[1] != drawn[2] and 4 <= len(drawn[1][0]) <= 16
    assert reward.score(["p"], ["a"])[0] == reward.score(["p"], ["a"])[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0, 0.99), st.integers())
def test_a_subset_can_always_be_scored(weights: list[float], dropout: float, key: int) -> None:
    criteria = tuple(Criterion(f"c{i}", w) for i, w in enumerate([*weights, 1.0]))
    left = subset(criteria, dropout, key)
    assert set(left) <= set(criteria) and any(c.weight > 0 for c in left) and left == subset(criteria, dropout, key)
    assert [c for c in criteria if c in left] == list(left), "in their order"


def test_in_other_rewards_and_processes(make_judge: Any) -> None:
    judge = FakeJudge()
    rows = {"prompts": ["p", "q"], "completions": ["a", UNREADABLE], "rubrics": [["one"], ["two", "three"]]}
    plain = RubricReward(judge)
    want = plain.score(**rows)
    assert np.isfinite(want[0]) and np.isnan(want[1])
    guarded = build_reward("guarded", judge, of={"reward": "rubric_list"})
    assert guarded.inputs == plain.inputs
    values, (_, why) = guarded.score_with_reasons(**rows)
    assert values[0] == want[0] and str(why).startswith("criterion 0 (two): ")
    both = EnsembleReward([plain, VerifierReward(judge)], how="mean")
    values, (_, why) = both.score_with_reasons(**rows)
    assert np.isfinite(values[0]) and str(why).startswith("criterion 0 (two): ")
    assert pickle.loads(pickle.dumps(plain)).score(**rows)[0] == want[0]


def test_one_forward_with_others_in_a_trainer(make_judge: Any) -> None:
    judge = make_judge("llama")
    rewards = [RubricReward(judge), ProbabilityWeightedReward(judge)]
    for prompts in (["x", "y"], ["p", "q"]):
        judge.forwards = 0
        columns = {"prompts": prompts, "completions": ["a", "b"], "rubrics": [["one", "two"], ["three"]]}
        out = [r(**columns, trainer_state=None) for r in rewards]
    assert judge.forwards == 1
    columns.pop("prompts"), columns.pop("completions")
    other = RubricReward(make_judge("llama"))
    np.testing.assert_allclose(out[0], other.score(["p", "q"], ["a", "b"], **columns), rtol=1e-4)


def test_a_judge_in_a_folder_and_a_file_of_criteria(folder: str, tmp_path: Any) -> None:
    path = tmp_path / "criteria.yaml"
    path.write_text(yaml.safe_dump({"rubrics": HEALTHBENCH}))
    judge = HFJudge(folder)
    reward = build_reward("rubric_list", judge, criteria=str(path))
    assert reward.inputs == ("completion", "prompt", "reference") and reward.score(["p"], ["c"]).shape == (1,)
    assert reward.fingerprint != build_reward("rubric_list", judge, criteria=RAR).fingerprint


def test_a_file_of_criteria_that_is_not_there(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file of criteria '.*nope.yaml'"):
        load_criteria(tmp_path / "nope.yaml")
