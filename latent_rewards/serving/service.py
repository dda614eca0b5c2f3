"""What a judge server does with a request, apart from HTTP: checks, queue, readouts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latent_rewards.assemble import absolute_layers
from latent_rewards.judge import HFJudge
from latent_rewards.probes import ProbeReward
from latent_rewards.prompts import JudgePrompt, to_segments
from latent_rewards.reading import Need, Reading, Request, Row, unread
from latent_rewards.rewards import LatentReward, Reward
from latent_rewards.serving.batching import Batcher, Job
from latent_rewards.serving.metrics import Metrics
from latent_rewards.serving.settings import ServeSettings


class RequestError(Exception):
    """A request that is answered with an error, by the client's fault unless `status` is 500 or more."""

    def __init__(self, status: int, kind: str, message: str, *, row: int | None = None, retry: int | None = None):
        super().__init__(message)
        self.status, self.kind, self.row, self.retry = status, kind, row, retry


class Unregistered:
    """A judge that does not keep in mind what its rewards need, since each request says what it wants."""

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    def __getattr__(self, name: str) -> Any:
        if name in ("register", "read_many"):
            raise AttributeError(name)
        return getattr(self._judge, name)


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
        self.rewards = [dict(build(Unregistered(judge))) for judge in self.judges]
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
            _ = judge.forward, judge.revision
        for reward in self.rewards[self.judges.index(judge)].values():
            if isinstance(reward, ProbeReward):
                reward._verify()

    @property
    def required(self) -> list[str]:
        """Slots that every row needs, whichever reward is asked for."""
        slots = [set(r.prompt.slots) - set(r.prompt.optional) for r in self.rewards[0].values()]
        return sorted(set.intersection(*slots), reverse=True)

    def reward(self, name: str | None) -> str:
        """Name of a reward; the first for None.

        Raises:
            RequestError: unknown.
        """
        if name is not None and name not in self.names:
            raise RequestError(404, "unknown_reward", f"no reward {name!r}; this server has {self.names}")
        return name or self.names[0]

    def check_size(self, rows: Sequence[Row]) -> None:
        """Number of rows and length of texts.

        Raises:
            RequestError: too many, or too long.
        """
        if len(rows) > self.settings.max_rows:
            raise RequestError(
                413, "too_many_rows", f"{len(rows)} rows; one request may hold {self.settings.max_rows}: split it"
            )
        for i, row in enumerate(rows):
            for slot, value in row.items():
                length = sum(len(s.text) for s in to_segments(value, slot))
                if length > self.settings.max_text_chars:
                    limit = self.settings.max_text_chars
                    raise RequestError(
                        413, "text_too_long", f"row {i}: {slot!r} has {length} characters; the limit is {limit}", row=i
                    )

    def check_rows(self, prompt: JudgePrompt, rows: Sequence[Row]) -> None:
        """Every row fills the prompt.

        Raises:
            RequestError: names the row.
        """
        for i, row in enumerate(rows):
            try:
                prompt.render(row)
            except ValueError as err:
                raise RequestError(422, "bad_row", f"row {i}: {err}", row=i) from err

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
    ) -> tuple[dict[str, np.ndarray], list[str | None], dict[str, Reading]]:
        """Scores of rows.

        Returns:
            reward -> (B,) float64 with NaN for a missing score; for each row why one is missing; reward -> reading.
        """
        rewards = {name: self.rewards[0][name] for name in dict.fromkeys(names)}
        reads: dict[str, Request] = {}

        def prepare() -> None:
            self.check_size(rows)
            for reward in rewards.values():
                self.check_rows(reward.prompt, rows)
                if isinstance(reward, LatentReward):
                    before = reads.get(reward.prompt.hash)
                    need = reward.need if before is None else before.need | reward.need
                    reads[reward.prompt.hash] = Request(reward.prompt, _slots(reward.prompt, rows), need)

        await _call(len(rows), prepare)
        until = self._until(deadline)
        readings: dict[str, Reading] = {}
        if not rows:
            readings = {key: _nothing(read) for key, read in reads.items()}
        elif reads:
            got = await self._wait(Job(list(reads.values()), rows=len(rows), group=_group(rows), alone=alone), until)
            readings = dict(zip(reads, got, strict=True))
        scores: dict[str, np.ndarray] = {}
        reasons: list[str | None] = [None] * len(rows)
        for name, reward in rewards.items():
            if isinstance(reward, LatentReward):
                reading = readings[reward.prompt.hash]
                values, why = await _call(len(rows), read_out, reward, reading)
            elif not rows:
                values, why = np.zeros(0), []
            else:
                values, why = await self._wait(Job(call=self._sampled(name, rows), rows=len(rows)), until)
            scores[name] = values
            for i in np.flatnonzero(np.isnan(values)):
                text = why[i] or "no score"
                reasons[i] = text if reasons[i] in (None, text) else f"{reasons[i]}; {text}"
            self.metrics.missing.labels(name).inc(int(np.isnan(values).sum()))
        found = {n: readings[r.prompt.hash] for n, r in rewards.items() if isinstance(r, LatentReward)}
        for name, reading in found.items():
            if reading.label_mass is not None and len(reading):
                self.metrics.label_mass.labels(name).set(float(torch.nan_to_num(reading.label_mass).mean()))
        return scores, reasons, found

    def _sampled(self, name: str, rows: Sequence[Row]) -> Callable[[int], Any]:
        """The work of a reward that is no readout, on whichever judge is free."""
        slots = self.rewards[0][name].prompt.slots
        columns = {slot: [row.get(slot) for row in rows] for slot in {*slots, "prompt", "completion"}}
        prompts, completions = columns.pop("prompt"), columns.pop("completion")
        return lambda index: self.rewards[index][name].score_with_reasons(prompts, completions, **columns)

    async def read(self, reads: Sequence[Request], *, alone: bool, deadline: float | None) -> list[Reading]:
        """Readings of the same rows with one or several prompts."""
        rows = list(reads[0].rows)

        def prepare() -> None:
            self.check_size(rows)
            for read in reads:
                self.check_prompt(read.prompt, read.need)
                self.check_rows(read.prompt, rows)

        await _call(len(rows), prepare)
        if not rows:
            return [_nothing(read) for read in reads]
        return await self._wait(Job(reads, rows=len(rows), group=_group(rows), alone=alone), self._until(deadline))

    async def generate(self, prompt: JudgePrompt, rows: Sequence[Row], deadline: float | None, **options: Any) -> Any:
        """Sampled answers."""

        def prepare() -> None:
            self.check_size(rows)
            self.check_prompt(prompt, Need())
            self.check_rows(prompt, rows)

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


def _slots(prompt: JudgePrompt, rows: Sequence[Row]) -> list[Row]:
    slots = {"prompt", "completion", *prompt.slots}
    return [{k: v for k, v in row.items() if k in slots} for row in rows]


def _nothing(read: Request) -> Reading:
    return unread(0, len(read.prompt.labels or ()), read.need, 0, 0, ())


def read_out(reward: LatentReward, reading: Reading) -> tuple[np.ndarray, list[str | None]]:
    """(B,) scores of a reading, scaled and clipped like the reward, and why rows have none."""
    if not len(reading):
        return np.zeros(0), []
    scores = reward.readout(reading)
    scores = torch.where(torch.isfinite(scores), scores, torch.nan)
    values = reward._finish(scores.double().numpy())
    return values, [
        (r or "the judge gave NaN") if np.isnan(v) else None for v, r in zip(values, reading.reasons, strict=True)
    ]


def _group(rows: Sequence[Row]) -> str:
    """Equal for requests whose first row has the same prompt."""
    first = rows[0].get("prompt") if rows else None
    text = first if isinstance(first, str) else json.dumps(first, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()
