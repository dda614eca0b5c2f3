"""`ServedReward` and `RewardClient`: what they send is what a reward in process takes."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
from contracts import FakeJudge
from servers import in_thread

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from latent_rewards import PairwiseReward, RubricReward, build_reward
from latent_rewards.serving import JudgeServerError
from latent_rewards.serving.client import ServedReward
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

PROMPTS, COMPLETIONS = ["Name a prime.", "Say hello."], ["Seven.", "Hello."]


def build(judge: Any) -> dict[str, Any]:
    return {
        "reference": build_reward("weighted", judge, prompt="weighted_reference"),
        "listed": RubricReward(judge),
        "against": PairwiseReward(judge, opponents="column", column="other"),
        "pairwise": PairwiseReward(judge),
    }


@pytest.fixture(scope="module")
def near() -> Any:
    return build(FakeJudge())


@pytest.fixture(scope="module")
def url() -> Any:
    judge: Any = FakeJudge()
    judge.blocks = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=8))  # for /info
    with in_thread(Service([judge], build, ServeSettings(linger=0.0, max_rows=8))) as it:
        yield it


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("reference", {"reference": ["5", "8"]}), ("reference", {"reference": ["5", None]}),
        ("reference", {"reference": [None, None]}), ("reference", {"reference": [5, 8.5]}),
        ("reference", {"reference": [True, "x"]}), ("reference", {"reference": (said("5"), said("8")[0])}),
        ("reference", {"reference": np.array(["5", "8"])}), ("reference", {}),
        ("listed", {"rubrics": [["Is prime."], ["Is short.", {"criterion": "Rambles.", "weight": -1}]]}),
        ("listed", {"rubrics": [{"prime": "Is prime."}, {"rubrics": ["Is short."]}], "reference": [7, None]}),
        ("listed", {"rubrics": ["Is prime.", '["Is short."]']}),
        ("against", {"other": ["Nine.", ["Bye.", said("No.")]]}), ("against", {"other": [said("9"), [said("Bye.")]]}),
    ],
)  # fmt: skip
def test_columns_count_as_in_process(name: str, columns: dict[str, Any], url: str, near: Any) -> None:
    want = near[name].score(PROMPTS, COMPLETIONS, **columns)
    beside = {"completion_ids": [[1], [2, 3]], "image": [object(), object()], "trainer_state": None, "odd": ["one"]}
    got = ServedReward(name, url)(PROMPTS, COMPLETIONS, **columns, **beside)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "error"),
    [
        ("58", TypeError), (["5"], ValueError), ([float("nan"), "x"], ValueError), ([[1, 2], [3]], None),
        ([{"a": 1}, "x"], None), (["x", ["a"]], None),
    ],
)  # fmt: skip
def test_a_column_that_fills_no_slot_is_an_error_as_in_process(column: Any, error: Any, url: str, near: Any) -> None:
    """Of the client, or where there is none of its own the server's 422."""
    with pytest.raises(error or ValueError):
        near["reference"].score(PROMPTS, COMPLETIONS, reference=column)
    with pytest.raises(error or JudgeServerError, match=None if error else " 422 "):
        ServedReward("reference", url, retries=0)(PROMPTS, COMPLETIONS, reference=column)


@pytest.mark.parametrize("other", [[{"a": 1}], {"a": 1}])
def test_an_opponent_that_is_no_text_is_the_fault_of_its_row(other: Any, url: str, near: Any) -> None:
    with pytest.raises(ValueError, match="must be text or a list of messages"):
        near["against"].score(PROMPTS, COMPLETIONS, other=["Nine.", other])
    with pytest.raises(JudgeServerError, match="422 row 1: 'other' must be text") as refused:
        ServedReward("against", url, retries=0)(PROMPTS, COMPLETIONS, other=["Nine.", other])
    assert refused.value.row == 1


def test_a_reward_that_the_server_does_not_have(url: str) -> None:
    with pytest.raises(JudgeServerError, match=r"422 rewards\.0: Input should be 'reference', "):
        ServedReward("other", url)(PROMPTS, COMPLETIONS)
