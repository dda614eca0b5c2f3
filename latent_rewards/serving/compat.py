"""Routes that other stacks call: OpenRLHF's /get_reward, slime's /remote_rm, vLLM's /classify (verl)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from pydantic import Field

from latent_rewards.serving.dialogues import last_answer, plain_prompt, split_query, truth_slots, without_end
from latent_rewards.serving.schemas import Loose, Text, finite
from latent_rewards.serving.service import RequestError, Service

OPENRLHF_SECONDS, SLIME_SECONDS = 170.0, 110.0
"""Within which we answer: a little less than these stacks wait (180 s and 120 s), so that they hear why."""

_Seconds = Annotated[
    float | None,
    Query(ge=1, le=86_400, description="seconds within which to answer; default: a little less than the stack waits"),
]


class GetReward(Loose):
    """What OpenRLHF 0.11 posts."""

    query: list[str]
    prompts: list[str] | None = None
    labels: list[Any] | None = None


class GetRewardResponse(Loose):
    """What it reads: rewards, scores in 0..1 for dynamic filtering, and columns for its logs.

    A reward without bounds (log-odds, probes, differences, standardised members) has no place in 0..1: `scores` is left
    out, and OpenRLHF filters by the rewards themselves, so give its range in their units, or the reward a `clip`.
    """

    rewards: list[float]
    scores: list[float] | None = None
    extra_logs: dict[str, list[float | None]]


class RemoteRM(Loose):
    """What slime and miles post for one sample; `metadata` may hold rubrics."""

    prompt: Text
    response: str
    label: Any = None
    metadata: dict[str, Any] | None = None


class Decoded(Loose):
    """What LLaMA-Factory posts: prompts and answers in the policy's chat template."""

    messages: list[str]
    model: str | None = None


class DecodedScores(Loose):
    """What it reads."""

    scores: list[float]


class Classify(Loose):
    """What verl posts to vLLM."""

    input: str | list[str] = Field(description="dialogues: JSON messages, or in a usual chat template")
    model: str | None = None


class Classified(Loose):
    """One score."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int = 1


class ClassifyResponse(Loose):
    """As vLLM answers."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]


def add_routes(app: FastAPI, service: Service, while_connected: Any, errors: dict[int | str, dict[str, Any]]) -> None:
    """Add the routes; each takes `?reward=name`, default the server's first, and `?deadline=seconds`."""
    ends = service.settings.end_tokens

    async def scores(
        request: Request, rows: Sequence[dict[str, Any]], reward: str | None, deadline: float | None
    ) -> tuple[str, Any, Any]:
        name = service.reward(reward)
        if not service.batcher.ready:
            raise RequestError(503, "not_ready", "the judge is loading", retry=2)
        values, reasons, readings, _ = await while_connected(request, service.score(rows, [name], deadline=deadline))
        for i in np.flatnonzero(~np.isfinite(values[name])):
            # These stacks have no way to leave a row out, and a number that was not read is worse than an error.
            raise RequestError(422, "no_score", f"row {i}: {reasons[i]}", row=int(i))
        return name, values[name], readings.get(name)

    @app.post(
        "/get_reward", summary="OpenRLHF: --reward.remote_url http://.../get_reward", responses=errors,
        response_model_exclude_none=True,
    )  # fmt: skip
    async def get_reward(
        body: GetReward, request: Request, reward: str | None = None, deadline: _Seconds = None
    ) -> GetRewardResponse:
        prompts: list[Any] = list(body.prompts) if body.prompts is not None else [None] * len(body.query)
        if len(prompts) != len(body.query):
            raise RequestError(422, "bad_request", f"{len(body.query)} queries but {len(prompts)} prompts")
        if body.labels is not None and len(body.labels) != len(body.query):
            raise RequestError(422, "bad_request", f"{len(body.query)} queries but {len(body.labels)} labels")
        rows = []
        for i, (query, prompt) in enumerate(zip(body.query, prompts, strict=True)):
            try:
                row = {"prompt": plain_prompt(prompt, ends), "completion": split_query(query, prompt, ends)}
                rows.append(row | truth_slots(None if body.labels is None else body.labels[i]))
            except ValueError as err:
                raise RequestError(422, "bad_row", f"row {i}: {err}", row=i) from err
        name, values, reading = await scores(request, rows, reward, deadline or OPENRLHF_SECONDS)
        mass = None if reading is None else reading.label_mass
        logs = {} if mass is None else {"label_mass": finite(mass)}
        unit = unit_interval(service.rewards[0][name].bounds, values)
        scaled = None if unit is None else unit.tolist()
        return GetRewardResponse(rewards=values.tolist(), scores=scaled, extra_logs=logs)

    @app.post("/remote_rm", summary="slime: --rm-type remote_rm --rm-url http://.../remote_rm", responses=errors)
    async def remote_rm(
        body: RemoteRM, request: Request, reward: str | None = None, deadline: _Seconds = None
    ) -> float:
        row = {"prompt": plain_prompt(body.prompt, ends), "completion": without_end(body.response, ends)}
        row |= truth_slots(body.label, body.metadata)
        _, values, _ = await scores(request, [row], reward, deadline or SLIME_SECONDS)
        return float(values[0])

    @app.post("/llama_factory", summary="LLaMA-Factory: reward_model_type: api", responses=errors)
    async def llama_factory(
        body: Decoded, request: Request, reward: str | None = None, deadline: _Seconds = None
    ) -> DecodedScores:
        _, values, _ = await scores(request, answers(body.messages), reward, deadline)
        return DecodedScores(scores=values.tolist())

    @app.post("/classify", summary="The answer of vLLM's /classify: one score per dialogue.", responses=errors)
    async def classify(
        body: Classify, request: Request, reward: str | None = None, deadline: _Seconds = None
    ) -> ClassifyResponse:
        rows = answers([body.input] if isinstance(body.input, str) else body.input)
        name, values, _ = await scores(request, rows, reward, deadline)
        return ClassifyResponse(
            id=f"classify-{uuid.uuid4().hex}", created=int(time.time()), model=service.judges[0].name,
            data=[Classified(index=i, label=name, probs=[float(v)]) for i, v in enumerate(values)],
        )  # fmt: skip


def answers(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Prompt and completion of whole dialogues.

    Raises:
        RequestError: one that is none; names the row.
    """
    rows = []
    for i, text in enumerate(texts):
        try:
            prompt, completion = last_answer(text)
        except ValueError as err:
            raise RequestError(422, "bad_row", f"row {i}: {err}", row=i) from err
        rows.append({"prompt": prompt, "completion": completion})
    return rows


def unit_interval(bounds: tuple[float, float] | None, values: np.ndarray) -> np.ndarray | None:
    """(B,) rewards mapped linearly from their bounds to 0..1; None where they have none, or no width."""
    if bounds is None or not bounds[0] < bounds[1]:
        return None
    low, high = bounds
    return np.clip((values - low) / (high - low), 0.0, 1.0)  # float32 sums of probabilities may pass 1 by a rounding
