"""`ServedReward` and `RewardClient`: what they send is what a reward in process takes."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import numpy as np
import pytest
from contracts import FakeJudge
from servers import in_thread

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from latent_rewards import PairwiseReward, RubricReward, build_reward
from latent_rewards.serving import JudgeServerError, parts
from latent_rewards.serving.client import RewardClient, ServedReward
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


def rows_of(n: int, prompts: int) -> list[dict[str, str]]:
    """Replies to each prompt stand apart, as trainers that shuffle or interleave send them."""
    return [{"prompt": f"Name prime {i % prompts}.", "completion": f"It is {i}."} for i in range(n)]


def in_process(reward: Any, rows: Any) -> Any:
    return reward.score([r["prompt"] for r in rows], [r["completion"] for r in rows])


@pytest.mark.parametrize("name", ["reference", "pairwise"])
@pytest.mark.parametrize(("n", "prompts"), [(0, 1), (8, 1), (20, 5), (27, 9)])
def test_more_rows_than_a_request_may_hold(name: str, n: int, prompts: int, url: str, near: Any) -> None:
    """The server takes 8; rows of one prompt are compared, so they stay together wherever they stand."""
    rows, client = rows_of(n, prompts), RewardClient(url, reward=name, concurrency=3)
    want = in_process(near[name], rows)
    np.testing.assert_allclose(asyncio.run(client.score_async(rows)), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(client.score(rows), want, rtol=1e-5, atol=1e-5)


def test_a_prompt_with_more_rows_than_a_request_may_hold(url: str) -> None:
    rows = [*rows_of(3, 3), *rows_of(9, 1)]
    with pytest.raises(JudgeServerError, match=r"row 0: 10 rows have its prompt; they stay together.* may hold 8"):
        RewardClient(url, reward="pairwise").score(rows)


def test_errors_name_the_row_of_the_whole(url: str) -> None:
    client, rows = RewardClient(url, reward="reference", retries=0), rows_of(20, 5)
    rows[13]["completion"] = [{"role": "user", "content": 3}]  # type: ignore[assignment]
    for score in (client.score, lambda rows: asyncio.run(client.score_async(rows))):
        with pytest.raises(JudgeServerError, match="422 row 13: ") as refused:
            score(rows)
        assert refused.value.row == 13 and refused.value.status == 422
    with pytest.raises(JudgeServerError, match="row 16 has no score: alone") as alone:
        RewardClient(url, reward="pairwise").score([*rows_of(16, 8), {"prompt": "Hi.", "completion": "Hello."}])
    assert alone.value.row == 16


def test_parts_hold_few_rows_few_bytes_and_whole_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(9, 4)
    assert parts.parts(rows, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]] and parts.parts([], 4) == [[]]
    assert parts.parts_by_prompt(rows, 9) == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert parts.parts_by_prompt(rows, 5) == [[0, 1, 4, 5, 8], [2, 3, 6, 7]]
    size = len(parts.encode(rows[0]))
    monkeypatch.setattr(parts, "_PART_BYTES", 2 * size)
    assert parts.parts(rows[:5], 99) == [[0, 1], [2, 3], [4]]
    assert parts.parts_by_prompt(rows, 99) == [[0, 4, 8], [1, 5], [2, 6], [3, 7]], "a prompt's rows are never parted"
