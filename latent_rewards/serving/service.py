"""What a judge server does with a request, apart from HTTP: checks, queue, readouts."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latent_rewards.judge.assemble import absolute_layers
from latent_rewards.judge.hf import HFJudge
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Request, Row
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.latent import LatentReward
from latent_rewards.rewards.probe import ProbeReward
from latent_rewards.rewards.rubric import RubricReward
from latent_rewards.serving.batching import Batcher, Job
from latent_rewards.serving.checks import RequestError, check_inputs, check_rows, check_size
from latent_rewards.serving.metrics import Metrics
from latent_rewards.serving.reads import Scored, add, group, nothing, read_out, slots
from latent_rewards.serving.settings import ServeSettings

__all__ = ["RequestError", "Scored", "Service", "read_out"]


class Service:
    """Rewards and readings of one judge, in one or several replicas.

    Args:
        judges: replicas of one judge, e.g. one per device.
        build: makes the server's rewards around a judge: name -> reward.
        settings: limits.

    Raises:
        ValueError: rewards that the judge cannot give.
    """

    def __init__(
        self, judges: Sequence[HFJudge], build: Callable[[Any], Mapping[str, Reward]], settings: ServeSettings
    ) -> None:
        self.judges, self.settings = list(judges), settings
        self.rewards = [dict(build(judge)) for judge in self.judges]
        self.names = list(self.rewards[0])
        if not self.names:
            raise ValueError("a judge server needs at least one reward")
        self.batcher = Batcher(
            self.judges, settings, watch=lambda rows, seconds: self.metrics.batch(rows, seconds), load=self._load
        )
        self.metrics = Metrics(lambda: self.batcher.waiting_rows, lambda: self.batcher.ready)
        self._checked: set[str] = set()

    def _load(self, judge: Any) -> None:
        """Load a judge and run all self-checks, before the server says that it is ready."""
        if isinstance(judge, HFJudge):
            _ = judge.forward, judge.revision, judge.fingerprint
        for reward in self.rewards[self.judges.index(judge)].values():
            if isinstance(reward, ProbeReward):
                reward._verify()

    @property
    def required(self) -> list[str]:
        """Slots that every row needs, whichever reward is asked for."""
        slots = [set(r.required) for r in self.rewards[0].values()]
        return sorted(set.intersection(*slots), reverse=True)

    def reward(self, name: str | None) -> str:
        """Name of a reward; the first for None.

        Raises:
            RequestError: unknown.
        """
        if name is not None and name not in self.names:
            raise RequestError(404, "unknown_reward", f"no reward {name!r}; this server has {self.names}")
        return name or self.names[0]

    def check_prompt(self, prompt: JudgePrompt, need: Need) -> None:
        """The judge can read this.

        Raises:
            RequestError: labels that collide, layers that it does not have, prompts of clients where they are barred.
        """
        known = {reward.prompt.hash for reward in self.rewards[0].values()}
        if not self.settings.any_prompt and prompt.hash not in known:
            raise RequestError(403, "prompt_not_allowed", "this server reads the prompts of its own rewards only")
        judge = self.judges[0]
        key = f"{prompt.hash} {need}"
        if key in self._checked:
            return
        try:
            judge.check(prompt, need)
            absolute_layers(need, judge.n_layers)
        except ValueError as err:
            raise RequestError(422, "bad_prompt", str(err)) from err
        if len(self._checked) > 10_000:
            self._checked.clear()
        self._checked.add(key)

    async def score(
        self, rows: Sequence[Row], names: Sequence[str], *, alone: bool = False, deadline: float | None = None
    ) -> Scored:
        """Scores of rows."""
        rewards = {name: self.rewards[0][name] for name in dict.fromkeys(names)}
        reads: list[Request] = []
        places: dict[str, list[int]] = {}

        def prepare() -> None:
            check_size(self.settings, rows)
            for name, reward in rewards.items():
                check_inputs(reward, rows)
                if isinstance(reward, LatentReward) and not reward.staged and reward.judge is self.judges[0]:
                    asked = [Request(r.prompt, slots(r.prompt, r.rows), r.need) for r in reward.requests(rows)]
                    for read in asked:
                        if len(read.rows) == len(rows):
                            check_rows(read.prompt, read.rows)
                    places[name] = [add(reads, read) for read in asked]

        await _call(len(rows), prepare)
        until = self._until(deadline)
        readings: list[Reading] = []
        if not rows:
            readings = [nothing(read) for read in reads]
        elif reads:
            job = Job(reads, rows=len(rows), group=group(rows), alone=alone)
            readings = await self._wait(job, until)
        found = {name: [readings[i] for i in at] for name, at in places.items()}
        scores: dict[str, np.ndarray] = {}
        reasons: list[str | None] = [None] * len(rows)
        for name, reward in rewards.items():
            if name in found:
                values, why = await _call(len(rows), read_out, reward, rows, found[name])
            elif not rows:
                values, why = np.zeros(0), []
            else:
                values, why = await self._wait(Job(call=self._sampled(name, rows), rows=len(rows)), until)
            scores[name] = values
            for i in np.flatnonzero(np.isnan(values)):
                text = why[i] or "no score"
                reasons[i] = text if reasons[i] in (None, text) else f"{reasons[i]}; {text}"
            self.metrics.missing.labels(name).inc(int(np.isnan(values).sum()))
        first = {name: several[0] for name, several in found.items() if len(several[0]) == len(rows)}
        for name, reading in first.items():
            if reading.label_mass is not None and len(reading):
                self.metrics.label_mass.labels(name).set(float(torch.nan_to_num(reading.label_mass).mean()))
        explained = {}
        for name, reward in rewards.items():
            if isinstance(reward, RubricReward) and rows:
                explained[name] = reward.explain_of(rows, found[name])
        return Scored(scores, reasons, first, explained)

    def _sampled(self, name: str, rows: Sequence[Row]) -> Callable[[int], Any]:
        """The work of a reward that is no readout, on whichever judge is free."""
        slots = self.rewards[0][name].inputs
        columns = {slot: [row.get(slot) for row in rows] for slot in {*slots, "prompt", "completion"}}
        prompts, completions = columns.pop("prompt"), columns.pop("completion")
        return lambda index: self.rewards[index][name].score_with_reasons(prompts, completions, **columns)

    async def read(self, reads: Sequence[Request], *, alone: bool, deadline: float | None) -> list[Reading]:
        """Readings of the same rows with one or several prompts."""
        rows = list(reads[0].rows)

        def prepare() -> None:
            check_size(self.settings, rows)
            for read in reads:
                self.check_prompt(read.prompt, read.need)
                check_rows(read.prompt, rows)

        await _call(len(rows), prepare)
        if not rows:
            return [nothing(read) for read in reads]
        return await self._wait(Job(reads, rows=len(rows), group=group(rows), alone=alone), self._until(deadline))

    async def generate(self, prompt: JudgePrompt, rows: Sequence[Row], deadline: float | None, **options: Any) -> Any:
        """Sampled answers."""

        def prepare() -> None:
            check_size(self.settings, rows)
            self.check_prompt(prompt, Need())
            check_rows(prompt, rows)

        await _call(len(rows), prepare)
        job = Job(call=lambda index: self.judges[index].generate(prompt, rows, **options), rows=len(rows))
        return await self._wait(job, self._until(deadline))

    def _until(self, deadline: float | None) -> float:
        return time.monotonic() + min(deadline or math.inf, self.settings.deadline)

    async def _wait(self, job: Job, until: float) -> Any:
        job.deadline = until
        job.alone = job.alone or not self.settings.mix
        future = asyncio.wrap_future(self.batcher.submit(job))
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await future
        except TimeoutError as err:
            raise RequestError(504, "deadline", "not judged within the deadline; the queue is long") from err
        except asyncio.CancelledError as err:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RequestError(504, "deadline", "not judged within the deadline; the queue is long") from err


async def _call(rows: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Here for a few rows, where a thread costs more than it frees; else in one, so that the event loop goes on."""
    return work(*arguments) if rows <= 16 else await asyncio.to_thread(work, *arguments)
