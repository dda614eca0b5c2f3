"""One text where a list is due is an error at every entry, never rows of characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contracts import FakeJudge

from latent_rewards import ProbabilityWeightedReward, RubricReward, StepReward, compare, select
from latent_rewards.serving.client import RewardClient, ServedReward

CRITERIA = [{"criterion": "It is short.", "weight": 1}]
ENTRIES: dict[str, Callable[[Any, Any], object]] = {
    "score": lambda p, c: ProbabilityWeightedReward(FakeJudge()).score(p, c),
    "score_with_reasons": lambda p, c: ProbabilityWeightedReward(FakeJudge()).score_with_reasons(p, c),
    "call": lambda p, c: ProbabilityWeightedReward(FakeJudge())(prompts=p, completions=c),
    "score_steps": lambda p, c: StepReward(FakeJudge()).score_steps(p, c),
    "explain": lambda p, c: RubricReward(FakeJudge(), criteria=CRITERIA).explain(p, c),
    "served": lambda p, c: ServedReward("weighted", "http://127.0.0.1:1")(p, c),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("prompts", "completions"),
    [("four", ["a", "b", "c", "d"]), (["a", "b", "c", "d"], "four"), ("four", "four"),
     ({"role": "user", "content": "x"}, ["a", "b"])],
    ids=["prompt", "completion", "both", "message"],
)  # fmt: skip
def test_one_text_is_no_list(entry: str, prompts: Any, completions: Any) -> None:
    with pytest.raises(TypeError, match="must be a list with one entry per row"):
        ENTRIES[entry](prompts, completions)


def test_a_column_of_one_text() -> None:
    reward = ProbabilityWeightedReward(FakeJudge(), prompt="rubric")
    with pytest.raises(TypeError, match="must be a list"):
        reward.score(["a", "b"], ["c", "d"], **dict.fromkeys(set(reward.inputs) - {"prompt", "completion"}, "ab"))


def test_candidates_and_criteria_of_one_text() -> None:
    with pytest.raises(TypeError, match="candidates must be a list"):
        select(FakeJudge(), "p", "one")
    with pytest.raises(TypeError, match="criteria must be a list"):
        select(FakeJudge(), "p", ["one", "two"], criteria="It is short.")
    with pytest.raises(TypeError, match="criteria must be a list"):
        compare(FakeJudge(), "p", "one", "two", criteria="It is short.")
    with pytest.raises(TypeError, match="rows must be a list"):
        RewardClient("http://127.0.0.1:1").score({"prompt": "p", "completion": "c"})
