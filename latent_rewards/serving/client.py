"""The smallest client of a judge server: its rewards by name, without torch."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from latent_rewards.files.types import check_lists, slot_rows
from latent_rewards.serving.parts import of_whole, parts_by_prompt
from latent_rewards.serving.transport import JudgeServerError, Transport, token_here

__all__ = ["JudgeServerError", "RewardClient", "ServedReward", "connect"]


def connect(url: str | None, *, token: str | None = None, **options: Any) -> Transport:
    """A transport, with URL and token from the environment where they are not given.

    Raises:
        ValueError: no URL.
    """
    url = url or os.environ.get("LATENT_REWARDS_SERVER")
    if not url:
        raise ValueError("give the URL of the judge server, or set LATENT_REWARDS_SERVER")
    return Transport(url, token=token or token_here(), **options)


class RewardClient:
    """The rewards that a judge server was started with, by name: the smallest client, sync and async.

    Args:
        url: of the server; default $LATENT_REWARDS_SERVER.
        reward: which of its rewards; default the first.
        **options: `token`, `deadline`, `concurrency`, `retries` as for `ServerJudge`.
    """

    def __init__(self, url: str | None = None, *, reward: str | None = None, **options: Any) -> None:
        self.transport, self.reward = connect(url, **options), reward

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """One score per row, in one request where the rows fit; else in several at once, those of a prompt together.

        Raises:
            TypeError: one row instead of a list.
            JudgeServerError: no answer, a row without a score (what calls this has no way to leave one out), or more
                rows of one prompt than a request may hold.
        """
        check_lists(rows=rows)
        try:
            return self._part(rows, range(len(rows)))
        except JudgeServerError as err:
            if not _too_much(err):
                raise
        split = parts_by_prompt(rows, self._info["max_rows"])
        with ThreadPoolExecutor(self.transport.concurrency) as pool:
            return _in_order(split, list(pool.map(functools.partial(self._part, rows), split)))

    async def score_async(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """As `score`."""
        check_lists(rows=rows)
        try:
            return await self._part_async(rows, range(len(rows)))
        except JudgeServerError as err:
            if not _too_much(err):
                raise
        if "_info" not in self.__dict__:
            self._info = await self.transport.request_async("GET", "/info")
        split = parts_by_prompt(rows, self._info["max_rows"])
        return _in_order(split, await asyncio.gather(*(self._part_async(rows, part) for part in split)))

    @functools.cached_property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest reward that can be, asked once; None where there is no end, or the server says nothing.

        Raises:
            JudgeServerError: no answer.
        """
        ends = self._info.get("bounds", {}).get(self._name)
        return None if ends is None else (float(ends[0]), float(ends[1]))

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """Slots of a row that the reward reads, asked once; none of a reward that the server does not have.

        Raises:
            JudgeServerError: no answer, or a server older than this client.
        """
        if "inputs" not in self._info:
            raise JudgeServerError(f"{self.transport.url} does not say what its rewards read: it runs an older release")
        return tuple(self._info["inputs"].get(self._name, ()))

    @functools.cached_property
    def _info(self) -> dict[str, Any]:
        return self.transport.request("GET", "/info")

    @property
    def _name(self) -> str:
        return next(iter(self._info["rewards"])) if self.reward is None else self.reward

    def _part(self, rows: Sequence[Mapping[str, Any]], part: Sequence[int]) -> list[float]:
        with of_whole(part):
            return _scores(self.transport.request("POST", "/score", self._payload(rows, part)))

    async def _part_async(self, rows: Sequence[Mapping[str, Any]], part: Sequence[int]) -> list[float]:
        with of_whole(part):
            return _scores(await self.transport.request_async("POST", "/score", self._payload(rows, part)))

    def _payload(self, rows: Sequence[Mapping[str, Any]], part: Sequence[int]) -> dict[str, Any]:
        wanted = {} if self.reward is None else {"rewards": [self.reward]}
        return {
            "rows": [dict(rows[i]) for i in part],
            "deadline": min(max(self.transport.deadline, 1.0), 86_400),
            **wanted,
        }


def _too_much(err: JudgeServerError) -> bool:
    """Whether a request was too large as a whole, rather than one of its rows."""
    return err.status == 413 and err.row is None


def _scores(answer: Any) -> list[float]:
    scores = next(iter(answer["rewards"].values()))
    for i, (score, reason) in enumerate(zip(scores, answer["reasons"], strict=True)):
        if score is None:
            raise JudgeServerError(f"row {i} has no score: {reason}", row=i)
    return scores


def _in_order(split: Sequence[Sequence[int]], found: Sequence[Sequence[float]]) -> list[float]:
    scores = {
        i: score for part, values in zip(split, found, strict=True) for i, score in zip(part, values, strict=True)
    }
    return [scores[i] for i in range(len(scores))]


class ServedReward:
    """A reward of a judge server, called as trainers call rewards; `name` is its name there. Needs no torch.

    Args:
        name: which of the server's rewards.
        url: of the server; default $LATENT_REWARDS_SERVER.
        **options: as for `RewardClient`.
    """

    def __init__(self, name: str, url: str | None = None, **options: Any) -> None:
        self.client, self.__name__ = RewardClient(url, reward=name, **options), name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One reward per completion; columns of B entries fill further slots of the judge prompt, as in process.

        Raises:
            TypeError: one text instead of a list.
            ValueError: the lengths differ, or JSON has no word for what a slot is given.
            JudgeServerError: as `RewardClient.score`.
        """
        check_lists(prompts=prompts, completions=completions)
        return self.client.score(slot_rows(prompts, completions, columns, self.client.inputs))
