"""A judge behind HTTP treats thoughts as one in this process does."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from servers import in_thread

from latent_rewards import HFJudge, JudgePrompt, build_reward
from latent_rewards.judge.thoughts import UNFINISHED
from latent_rewards.serving import ServerJudge
from latent_rewards.serving.schemas import PromptSpec
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

WHOLE, ANSWER, CUT = "<think>Ten? No.</think>\n\nEleven.", "Eleven.", "<think>Ten? No,"
FIELD = [{"role": "assistant", "content": ANSWER, "reasoning_content": "Ten? No."}]
PARTS = [{"role": "assistant", "content": [{"type": "thinking", "thinking": "No."}, {"type": "text", "text": ANSWER}]}]
SAID = [WHOLE, ANSWER, CUT, FIELD, PARTS]
PROMPTS = ["A prime above ten?"] * len(SAID)


@pytest.fixture(scope="module")
def judge(make_judge: Any) -> HFJudge:
    return make_judge("llama", "digits")


@pytest.fixture(scope="module")
def url(judge: HFJudge) -> Any:
    def rewards(j: Any) -> dict[str, Any]:
        return {
            "weighted": build_reward("weighted", j),
            "floor": build_reward("verifier", j, unfinished=-1.0, scale=2.0),
        }

    with in_thread(Service([judge], rewards, ServeSettings(linger=0.0, max_text_chars=1000))) as it:
        yield it


def test_score(url: str) -> None:
    rows = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, SAID, strict=True)]
    answer = httpx.post(f"{url}/score", json={"rows": rows}, timeout=60).json()
    weighted, floor = answer["rewards"]["weighted"], answer["rewards"]["floor"]
    assert weighted[2] is None and answer["reasons"][2] == UNFINISHED and floor[2] == -1.0
    assert len({weighted[i] for i in (0, 1, 3, 4)}) == 1 and weighted[0] is not None


HOW: list[dict[str, Any]] = [
    {}, {"reasoning": "keep"}, {"reasoning": "only"}, {"unfinished": "keep"}, {"unfinished": 0.5}, {"opened": True},
]  # fmt: skip


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_server_judge_reads_the_same(url: str, judge: HFJudge, how: dict[str, Any]) -> None:
    there = build_reward("weighted", ServerJudge(url), **how)
    here = build_reward("weighted", judge, **how)
    (scores, reasons), (want, why) = (r.score_with_reasons(PROMPTS, SAID) for r in (there, here))
    np.testing.assert_allclose(scores, want, atol=1e-4)
    assert reasons == why and np.isnan(want).sum() < len(SAID)


def test_the_prompt_travels_whole() -> None:
    prompt = JudgePrompt.load("weighted")
    for changed in (prompt, prompt.with_thoughts("only", [("<a>", "</a>")], keep_unfinished=True, opened=True)):
        assert PromptSpec.model_validate(PromptSpec.of(changed).model_dump()).build().hash == changed.hash


def test_thoughts_in_fields_count_as_text(url: str) -> None:
    row = {"prompt": "P", "completion": [{"role": "assistant", "content": "x", "thinking": "hm " * 400}]}
    answer = httpx.post(f"{url}/score", json={"rows": [row]}, timeout=60)
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "text_too_long"
