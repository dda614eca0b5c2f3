"""Scores of responses, and whom to learn from: by hand, with teachers that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_rewards import ProbabilityWeightedReward, VerifierReward
from latent_rewards.distillation.choice_rows import choice_report, choice_rows, write_rows
from latent_rewards.distillation.teacher_choice import choose_teachers, loss_weights
from latent_rewards.rewards.response_scores import score_responses

NAN = np.nan
SCORES = np.array([[3.0, 5.0, 1.0], [4.0, NAN, 2.0], [NAN, NAN, NAN], [2.0, 2.5, 2.4]])


def test_argmax_skips_teachers_without_a_score() -> None:
    choice = choose_teachers(SCORES)
    assert choice.index.tolist() == [1, 0, -1, 1]
    assert choice.weights.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_ties_are_drawn_not_given_to_the_first() -> None:
    flat = np.full((300, 3), 7.0)
    shares = np.bincount(choose_teachers(flat).index, minlength=3) / 300
    assert (shares > 0.25).all()
    assert choose_teachers(flat, seed=1).index.tolist() == choose_teachers(flat, seed=1).index.tolist()
    assert choose_teachers(flat, seed=2).index.tolist() != choose_teachers(flat, seed=1).index.tolist()


def test_softmax_weights_by_hand() -> None:
    choice = choose_teachers(SCORES, "softmax", temperature=2.0)
    e = np.exp(np.array([1.5, 2.5, 0.5]))
    np.testing.assert_allclose(choice.weights[0], e / e.sum())
    two = np.exp(np.array([2.0, 1.0]))
    np.testing.assert_allclose(choice.weights[1], [two[0] / two.sum(), 0.0, two[1] / two.sum()])
    assert choice.weights[2].tolist() == [0, 0, 0] and choice.index.tolist() == [1, 0, -1, 1]


def test_margin_falls_back_where_the_lead_is_small() -> None:
    choice = choose_teachers(SCORES, "margin", margin=0.5, fallback=2)
    assert choice.index.tolist() == [1, 0, -1, 2]
    assert choice.fell_back.tolist() == [False, False, False, True]
    present = np.array([[True] * 3, [True, False, True], [False, False, True], [True, True, False]])
    choice = choose_teachers(SCORES, "margin", margin=0.5, fallback=2, present=present)
    assert choice.index.tolist() == [1, 0, 2, 1]  # no scores: the fallback responded; small lead: it did not


def test_baselines_take_only_teachers_that_responded() -> None:
    present = ~np.isnan(SCORES)
    drawn = [choose_teachers(SCORES, "random", seed=s).index for s in range(60)]
    assert {i[0] for i in drawn} == {0, 1, 2} and {i[1] for i in drawn} == {0, 2} and {i[2] for i in drawn} == {-1}
    assert choose_teachers(SCORES, "single", fallback=1, present=present).index.tolist() == [1, -1, -1, 1]


def test_bad_choices() -> None:
    with pytest.raises(ValueError, match="unknown method 'best'"):
        choose_teachers(SCORES, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="below 3, got 3"):
        choose_teachers(SCORES, "single", fallback=3)
    with pytest.raises(ValueError, match="above 0"):
        choose_teachers(SCORES, "softmax", temperature=0)


def test_loss_weights_by_hand() -> None:
    choice = choose_teachers(SCORES)
    weights = loss_weights(SCORES, choice.index)  # shares 0.5, 0.4, none, 0.25: mean of the three 0.38333
    np.testing.assert_allclose(weights, np.array([0.5, 0.4, 0.0, 0.25]) / (1.15 / 3))
    assert np.mean(weights[[0, 1, 3]]) == pytest.approx(1.0)
    unscored = loss_weights(SCORES, np.array([0, 1, -1, 0]))
    assert np.isnan(unscored[1]) and unscored[0] == pytest.approx(0.3 / 0.25)
    with pytest.raises(ValueError, match=r"row 0: score 5 lies outside \[0.0, 4.0\]"):
        loss_weights(SCORES, choice.index, high=4.0)
    with pytest.raises(ValueError, match="every prompt would weigh 0"):
        loss_weights(np.zeros((2, 2)), np.array([0, 0]))


def test_rows_carry_what_trainers_route_on(tmp_path: Path) -> None:
    prompts = ["One?", [{"role": "user", "content": "Two?"}], "Three?", "Four?"]
    responses = [["a", "b", "c"], ["d", None, "f"], [None] * 3, ["g", "h", "i"]]
    choice = choose_teachers(SCORES)
    rows = choice_rows(prompts, responses, ["x", "y", "z"], choice, scores=SCORES)
    assert [row["teacher_id"] for row in rows] == ["y", "x", "y"]
    assert rows[1]["messages"] == [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "d"}]
    assert rows[1]["completion"] == [{"role": "assistant", "content": "d"}] and rows[1]["scores"] == [4.0, None, 2.0]
    assert rows[0]["teacher_weights"] == [0.0, 1.0, 0.0] and rows[0]["loss_weight"] == 1.0
    write_rows(tmp_path / "rows.jsonl", rows)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    weighed = choice_rows(prompts, responses, ["x", "y", "z"], choice, weights=np.array([0.0, 2.0, 0.0, NAN]))
    assert [(row["teacher_id"], row["loss_weight"]) for row in weighed] == [("x", 2.0)]
    responses[0][1] = None
    with pytest.raises(ValueError, match="row 0: teacher 'y' is chosen but gave no response"):
        choice_rows(prompts, responses, ["x", "y", "z"], choice)
    with pytest.raises(ValueError, match="3 prompts"):
        choice_rows(prompts[:3], responses, ["x", "y", "z"], choice)


def test_report_by_hand() -> None:
    latent = choose_teachers(SCORES)  # y, x, none, y
    rating = choose_teachers(np.array([[5.0, 5.0, 1.0], [4.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 2.0]]), seed=0)
    gold = np.array([[0.1, 0.9, 0.5], [0.2, 0.8, 0.3], [1.0, 0.0, NAN], [0.3, 0.4, 0.5]])
    report = choice_report(["x", "y", "z"], {"latent": latent, "rating": rating}, scores=SCORES, gold=gold)
    share = report["share"]["latent"]
    assert {t: f["value"] for t, f in share.items()} == {"x": pytest.approx(1 / 3), "y": pytest.approx(2 / 3), "z": 0.0}
    assert share["y"]["n"] == 3 and share["y"]["low"] < 0.6 < share["y"]["high"]
    assert list(report["minus"]) == ["rating"], "the first way less each of the others"
    less = report["minus"]["rating"]["z"]
    assert less["value"] == pytest.approx(-np.mean(rating.index == 2)) and less["low"] <= less["value"] <= less["high"]
    assert report["none"] == {"latent": 1, "rating": 0}
    first = int(rating.index[0] == 1)
    assert report["agreement"]["latent and rating"] == pytest.approx((first + 2) / 3)
    assert report["gold"]["latent"] == pytest.approx((0.9 + 0.2 + 0.4) / 3)
    assert report["gold_best"]["latent"] == pytest.approx(1 / 3)
    assert report["tie_share"] == 0.0
    assert choice_report(["x", "y", "z"], {"r": rating}, scores=np.ones((4, 3)))["tie_share"] == 1.0


def test_scores_are_kept_and_missing_responses_have_none(make_judge: Any, tmp_path: Path) -> None:
    judge = make_judge()
    rewards = [ProbabilityWeightedReward(judge), VerifierReward(judge)]
    prompts = ["Name a prime.", [{"role": "user", "content": "Say hello."}], "Count."]
    responses = [["7", "8"], [None, "hello"], ["1 2", ""]]
    found = score_responses(rewards, prompts, responses, cache=tmp_path, chunk=2)
    weighted = found.scores[rewards[0].__name__]
    assert np.isnan(weighted[1, 0]) and found.reasons[rewards[0].__name__] == {(1, 0): "no response"}
    assert np.isfinite(np.delete(weighted.ravel(), 2)).all() and found.seconds > 0
    np.testing.assert_allclose(weighted[0], rewards[0].score(["Name a prime."] * 2, ["7", "8"]), atol=1e-5)
    forwards = judge.forwards
    again = score_responses(rewards, prompts, responses, cache=tmp_path, chunk=2)
    np.testing.assert_array_equal(again.scores[rewards[0].__name__], weighted)
    assert judge.forwards == forwards and again.seconds == 0
    other = score_responses([VerifierReward(judge, output="log_odds")], prompts, responses, cache=tmp_path, chunk=2)
    assert other.seconds > 0, "another option is another score"
    (name,) = other.scores
    assert not np.allclose(other.scores[name][0], found.scores[rewards[1].__name__][0])


def test_unreadable_responses_are_reported(make_judge: Any, tmp_path: Path) -> None:
    reward = ProbabilityWeightedReward(make_judge(max_length=1500))
    prompts, responses = ["Name a prime."], [["7", "the lazy dog " * 1500]]
    for _ in range(2):
        found = score_responses([reward], prompts, responses, cache=tmp_path)
        assert np.isfinite(found.scores[reward.__name__][0, 0]) and np.isnan(found.scores[reward.__name__][0, 1])
        assert "tokens" in found.reasons[reward.__name__][0, 1]


def test_bad_matrices(make_judge: Any) -> None:
    reward = ProbabilityWeightedReward(make_judge())
    with pytest.raises(ValueError, match="2 prompts but 1 rows"):
        score_responses([reward], ["a", "b"], [["x"]])
    with pytest.raises(ValueError, match=r"rows of \[1, 2\]"):
        score_responses([reward], ["a", "b"], [["x"], ["y", "z"]])
    with pytest.raises(ValueError, match="different names"):
        score_responses([reward, reward], ["a"], [["x"]])
