from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import UNREADABLE, FakeJudge, Logs, trl_kwargs

from latent_rewards import GuidedLikertReward, HFJudge, JudgePrompt, LikertReward, Request
from latent_rewards.engine import sampling
from latent_rewards.rewards.likert import mode_agreement, parse_rating, sample_ratings

NAN = float("nan")


@pytest.mark.parametrize(
    ("prompt", "text", "rating"),
    [
        ("likert5", " Clear and right. [RESULT] 4", 4),
        ("likert5", "Good. [RESULT] (5)", 5),
        ("likert5", "Good. [RESULT]3.", 3),
        ("likert5", "[RESULT] 2 no, [RESULT] 4", 4),
        ("likert5", "[RESULT] 6", None),
        ("likert5", "[RESULT] 0", None),
        ("likert5", "[RESULT] -3", None),
        ("likert5", "[RESULT] 4.5", None),
        ("likert5", "[RESULT] 4,5", None),
        ("likert5", "[RESULT] 45", None),
        ("likert5", "[RESULT] four", None),
        ("likert5", "I give it 4 of 5", None),
        ("likert5", "[RESULT]", None),
        ("likert5", "", None),
        ("likert5", None, None),
        ("likert10", "Fine. [RESULT] 10", 10),
        ("likert10", "Fine. [RESULT] 7\nReply: [RESULT] (a whole number from 1 to 10)", 7),
        ("likert10", "Fine. [RESULT] 11", None),
        ("likert10", "Fine. [RESULT] " + "9" * 5000, None),
        ("likert5_bare", " 4", 4),
        ("likert5_bare", "\n5\n", 5),
        ("likert5_bare", "4/5", None),
        ("likert5_bare", "about 4", None),
        ("likert5_bare", "6", None),
        ("likert10_bare", "10", 10),
        ("likert10_bare", "100", None),
        ("likert10_bare", "9.5", None),
    ],
)
def test_strict_parsing(prompt: str, text: str | None, rating: int | None) -> None:
    assert parse_rating(text, JudgePrompt.load(prompt)) == rating


def test_own_patterns(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kind: generate\nbody: '{{ prompt }}{{ completion }}'\nscale: [1, 5]\npattern: '(\\S+)(!)'\n")
    prompt = JudgePrompt.load(path)
    assert parse_rating("3!", prompt) == 3, "the first group is the rating"
    for text in ("x!", "\u00b2!", "1e0!", "+3!"):
        assert parse_rating(text, prompt) is None


def test_mean_of_what_parses() -> None:
    judge = FakeJudge(answers=["[RESULT] 4", "nothing", "[RESULT] 1"])
    reward, logs = LikertReward(judge, scale_points=5, n_samples=3), Logs()
    out = reward(prompts=["p", "p"], completions=["c", UNREADABLE], **trl_kwargs(2, logs))
    assert out == [2.5, None]
    assert logs.metrics[f"{reward.__name__}/parsed"] == pytest.approx(2 / 6)
    np.testing.assert_equal(reward.sample(["p"], ["c"]), [[4, NAN, 1]])
    assert LikertReward(FakeJudge(answers=["no number"]))(["p"], ["c"]) == [None]


def test_options_reach_the_judge() -> None:
    seen: dict[str, Any] = {}

    class Spy(FakeJudge):
        def generate(self, prompt: JudgePrompt, rows: Any, **options: Any) -> Any:
            seen.update(options, prompt=prompt.name)
            return super().generate(prompt, rows, **options)

    LikertReward(Spy(), scale_points=5, feedback=False, temperature=0.3, n_samples=2, seed=9).score(["p"], ["c"])
    assert seen == {"n": 2, "temperature": 0.3, "max_new_tokens": 8, "seed": 9, "prompt": "likert5_bare"}
    LikertReward(Spy()).score(["p"], ["c"])
    assert seen["prompt"] == "likert10" and seen["max_new_tokens"] == 160 and seen["n"] == 1


@pytest.mark.parametrize("options", [{"scale_points": 7}, {"n_samples": 0}, {"temperature": -1}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LikertReward(FakeJudge(), **options)


def test_seeds_decide(make_judge: Any) -> None:
    def answers(seed: int) -> list[list[str | None]]:
        judge: HFJudge = make_judge()
        rows = [{"prompt": "p", "completion": c} for c in "ab"]
        prompt = JudgePrompt.load("likert5")
        return judge.generate(prompt, rows, n=2, temperature=1.0, max_new_tokens=4, seed=seed)

    assert answers(0) == answers(0) != answers(1)


def test_the_embedded_judge_writes_ratings(embedded: HFJudge) -> None:
    reward = LikertReward(embedded, scale_points=5, feedback=False, n_samples=4, max_new_tokens=2)
    ratings = reward.sample(["What is 2 + 2?"], ["2 + 2 is 4."])
    seen = ratings[np.isfinite(ratings)]
    assert len(seen) and ((seen >= 1) & (seen <= 5)).all() and (seen == seen.round()).all()


def test_mode_agreement_by_hand() -> None:
    got = mode_agreement(np.array([[4, 4, 5, 3], [1, 1, 1, 1], [2, NAN, NAN, 3], [NAN] * 4]))
    np.testing.assert_allclose(got[:3], [0.5, 1.0, 0.5])
    assert math.isnan(got[3])


def test_ratings_follow_the_tempered_labels() -> None:
    """p = (0.1, 0.2, 0.7) to the power of 1 / 0.5 is (1, 4, 49) / 54."""
    uniforms = ((np.arange(5400) + 0.5) / 5400)[None].repeat(2, 0)
    out = sample_ratings(np.log([[0.1, 0.2, 0.7], [0.5, NAN, 0.5]]), (1.0, 2.0, 5.0), uniforms, 0.5)
    assert [int((out[0] == v).sum()) for v in (1, 2, 5)] == [100, 400, 4900]
    assert np.isnan(out[1]).all(), "an unknown label makes the row unknown"


def test_guided_ratings_always_parse(make_judge: Any) -> None:
    judge = make_judge()
    reward = GuidedLikertReward(judge, scale_points=5, n_samples=6, temperature=1.5)
    prompts, completions = ["p", "p", "q"], ["a", "b", "c"]
    rows = reward.rows(prompts, completions, {})
    reading = judge.read([Request(reward.prompt, rows, reward.need)])[0]
    ratings = reward.ratings(reading, rows)
    assert ratings.shape == (3, 6) and set(ratings.ravel()) <= {1, 2, 3, 4, 5} and len(np.unique(ratings)) > 1
    np.testing.assert_allclose(reward.score(prompts, completions), ratings.mean(1))
    np.testing.assert_array_equal(reward.score(prompts[::-1], completions[::-1])[::-1], ratings.mean(1))
    other = GuidedLikertReward(judge, scale_points=5, n_samples=6, temperature=1.5, seed=1)
    assert not np.array_equal(other.ratings(reading, rows), ratings)
    greedy = GuidedLikertReward(judge, scale_points=5, n_samples=2, temperature=0)
    np.testing.assert_array_equal(greedy.score(prompts, completions), greedy.readout(reading))
    assert judge.forwards == 2, "one for the three rows, one for the same rows in another order"


def test_a_guided_rating_that_cannot_be_read_is_none() -> None:
    reward, logs = GuidedLikertReward(FakeJudge()), Logs()
    out = reward(prompts=["p", "p"], completions=["c", UNREADABLE], **trl_kwargs(2, logs))
    assert out[1] is None and 1 <= out[0] <= 10 and f"{reward.__name__}/label_mass" in logs.metrics
    assert reward.score([], []).shape == (0,)


def test_a_text_is_run_once_for_all_its_answers(make_judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "p", "completion": c} for c in ("a", "a longer one " * 9)]
    prompt, options = JudgePrompt.load("likert5_bare"), {"temperature": 0.9, "max_new_tokens": 3, "seed": 0}
    judge = make_judge("llama")
    _ = judge.forward  # its check at load runs texts, too
    tokens: list[int] = []
    judge.blocks.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    answers = judge.generate(prompt, rows, n=5, **options)
    once = sum(tokens)
    monkeypatch.setattr(sampling, "_prefill", lambda *_: None)
    tokens.clear()
    judge.forget()
    assert judge.generate(prompt, rows, n=5, **options) == answers
    assert sum(tokens) > 3 * once
