"""Several judges read at once, each in a thread of its own: what a reward needs whose parts sit on different judges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from latent_rewards.judge.errors import JudgeError, NoAnswer
from latent_rewards.judge.fingerprint import digest
from latent_rewards.judge.lockstep import LockstepJudge
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge, Need, Reading, Request, Row, unread

logger = logging.getLogger(__name__)


class Addressed(Request):
    """A request, and the judge that is to read it."""

    judge: Judge

    @classmethod
    def to(cls, judge: Judge, request: Request) -> Addressed:
        """A request that has no address yet gets this one; another stays as it is."""
        if isinstance(request, Addressed):
            return request
        made = cls(*request)
        made.judge = judge
        return made


class Jury(Judge):
    """Several judges as one that reads each request with the judge to which it is addressed.

    Every judge gets all that it is asked in one call, in one thread, and the judges work side by side. Those whose
    methods are collective over the ranks of a run are read one after the other, in the order of the jury.

    A judge that does not answer (`JudgeError.outage`, a connection that is refused or cut, a time-out) leaves its rows
    unread; the reason is a `NoAnswer` that names the judge. Whatever else goes wrong is raised.

    Args:
        judges: two or more.

    Raises:
        ValueError: fewer.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if len(judges) < 2:
            raise ValueError(f"a jury needs two judges or more, got {len(judges)}")
        self.judges = list(judges)
        self._outages = 0

    def __repr__(self) -> str:
        return f"Jury({self.judges!r})"

    @property
    def name(self) -> str:
        """Those of the judges."""
        return "+".join(judge.name for judge in self.judges)

    @property
    def fingerprint(self) -> str | None:
        """Hash of those of the judges; None where one states none."""
        found = [judge.fingerprint for judge in self.judges]
        return None if None in found else digest(found)

    @property
    def capabilities(self) -> frozenset[str]:
        """What all of them can give."""
        return frozenset.intersection(*(judge.capabilities for judge in self.judges))

    @property
    def outages(self) -> int:
        """Calls in which a judge did not answer."""
        return self._outages

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """As every judge."""
        for judge in self.judges:
            judge.check(prompt, need)

    def forget(self) -> None:
        """All of them."""
        for judge in self.judges:
            judge.forget()

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """A reading for each request, from the judge to which it is addressed.

        Raises:
            ValueError: a request without an address; or what a judge raises, of the first judge that does.
        """
        asked: dict[int, tuple[Judge, list[int]]] = {}
        for i, request in enumerate(requests):
            if not isinstance(request, Addressed):
                raise ValueError(f"{self!r} reads requests that are addressed to one of its judges; see EnsembleReward")
            asked.setdefault(id(request.judge), (request.judge, []))[1].append(i)
        found = self._read(requests, list(asked.values()))
        self._outages += not answered(found)
        return found

    @staticmethod
    def _read(requests: Sequence[Request], asked: Sequence[tuple[Judge, list[int]]]) -> list[Reading]:
        out: dict[int, Reading] = {}
        if len(asked) == 1:
            ((judge, own),) = asked
            return _read(judge, [requests[i] for i in own])
        with ThreadPoolExecutor(len(asked), thread_name_prefix="jury") as threads:
            work: list[tuple[list[int], Judge, Future[list[Reading]] | None]] = [
                (own, judge, None if _collective(judge) else threads.submit(_read, judge, [requests[i] for i in own]))
                for judge, own in asked
            ]
            for own, judge, future in sorted(work, key=lambda one: one[2] is not None):  # ours, while the threads work
                found = future.result() if future is not None else _read(judge, [requests[i] for i in own])
                out |= zip(own, found, strict=True)
        return [out[i] for i in range(len(requests))]

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """Not of several judges.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self!r} does not write; sampled rewards sit on one judge")


def _collective(judge: Judge) -> bool:
    return isinstance(judge, LockstepJudge)


def _read(judge: Judge, requests: list[Request]) -> list[Reading]:
    """What one judge reads, its reasons with its name; unread where it does not answer."""
    try:
        found = judge.read([Request(*request) for request in requests])
    except (JudgeError, ConnectionError, TimeoutError) as err:
        if isinstance(err, JudgeError) and not err.outage:
            raise
        logger.warning("judge %r (%r) did not answer: %s", judge.name, judge, err)
        why = NoAnswer(f"did not answer: {err}")
        found = [unread(len(r.rows), len(r.prompt.labels or ()), r.need, 0, 1, [why] * len(r.rows)) for r in requests]
    return [replace(reading, reasons=tuple(_named(judge, why) for why in reading.reasons)) for reading in found]


def _named(judge: Judge, why: str | None) -> str | None:
    if why is None:
        return None
    kind = NoAnswer if isinstance(why, NoAnswer) else str
    return kind(f"judge {judge.name!r}: {why}")


def answered(readings: Sequence[Reading]) -> bool:
    """Whether a judge that was asked for these answered at all."""
    return not any(isinstance(why, NoAnswer) for reading in readings for why in reading.reasons)
