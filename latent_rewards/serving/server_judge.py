"""A judge that lives elsewhere: in our server, or in vLLM, SGLang or llama.cpp."""

from __future__ import annotations

import functools
import hashlib
import logging
import operator
import os
import threading
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch

from latent_rewards.judge.errors import NoAnswer
from latent_rewards.judge.memory import Memory
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.readers import Readers
from latent_rewards.judge.reading import Judge, Need, Reading, Request, Row, unread
from latent_rewards.serving.client import connect
from latent_rewards.serving.own_server import OwnServer
from latent_rewards.serving.transport import JudgeServerError, encode

logger = logging.getLogger(__name__)


_OF_PROCESS = ("_pid", "_lock", "_memory", "readers", "forwards", "_outages")


class Backend(Protocol):
    """What `ServerJudge` needs of a kind of server."""

    def info(self) -> dict[str, Any]:
        """Keys: judge, revision, fingerprint, layers, width, capabilities."""
        ...

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Raise ValueError when the server cannot meet the need."""
        ...

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """One reading per request."""
        ...

    def generate(self, prompt: JudgePrompt, rows: Sequence[Row], **options: Any) -> list[list[str | None]]:
        """Sampled answers."""
        ...


class ServerJudge(Judge):
    """A judge behind a URL, so that every reward works on it unchanged. Picklable; safe in threads and forks.

    Args:
        url: of the server; default $LATENT_REWARDS_SERVER.
        engine: "latent-rewards" (ours: all readings), "vllm", "sglang" or "llamacpp" (label probabilities only).
        token: bearer token; default $LATENT_REWARDS_TOKEN.
        deadline: seconds after which a request is given up, all retries included. Connection errors, 429 and 5xx are
            retried with jittered exponential backoff until then; a server that restarts is waited for.
        on_failure: what an unreachable server means: "raise" `JudgeServerError`, or "none": no score for these rows.
        concurrency: most requests at once.
        alone: ask the server not to judge these rows together with those of other clients; the scores then depend on
            this batch alone, bit for bit.
        retries: most repetitions of a request; None for as many as the deadline allows.
        **engine_options: for other engines; see `engines.Engine`.

    Raises:
        ValueError: no URL, an unknown engine or option.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        engine: str = "latent-rewards",
        token: str | None = None,
        deadline: float = 600.0,
        on_failure: Literal["raise", "none"] = "raise",
        concurrency: int = 16,
        alone: bool = False,
        retries: int | None = None,
        **engine_options: Any,
    ) -> None:
        if on_failure not in ("raise", "none"):
            raise ValueError(f"on_failure must be 'raise' or 'none', got {on_failure!r}")
        self.transport = connect(url, token=token, deadline=deadline, concurrency=concurrency, retries=retries)
        self.engine, self.on_failure = engine, on_failure
        self._backend: Backend
        if engine == "latent-rewards":
            if engine_options:
                raise ValueError(f"options {sorted(engine_options)} are for other engines than {engine!r}")
            self._backend = OwnServer(self.transport, alone=alone)
        else:
            from latent_rewards.serving.engines import Engine

            self._backend = Engine(self.transport, engine, **engine_options)
        self._info: dict[str, Any] | None = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._memory = Memory()
        self.readers = Readers()
        self.forwards = self._outages = 0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"ServerJudge({self.transport.url!r}, engine={self.engine!r})"

    @property
    def info(self) -> dict[str, Any]:
        """What the server says of itself; asked once, and waited for while it loads."""
        if self._info is None:
            self._info = self._backend.info()
        return self._info

    @property
    def name(self) -> str:
        """Name of the judge model."""
        return str(self.info["judge"])

    @property
    def revision(self) -> str | None:
        """Revision of its weights; None where the engine does not tell."""
        return self.info["revision"]

    @property
    def fingerprint(self) -> str | None:
        """That of the judge behind our server, so that what is kept serves both; see `engines.Engine.info` for others.

        None where the server is older than this.
        """
        return self.info.get("fingerprint")

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks; 0 where the engine does not tell."""
        return int(self.info["layers"])

    @property
    def capabilities(self) -> frozenset[str]:
        """What this server can give."""
        return frozenset(self.info["capabilities"])

    @property
    def outages(self) -> int:
        """Calls with `on_failure="none"` that the server did not answer."""
        return self._outages

    def forget(self) -> None:
        """Drop remembered readings and answers."""
        with self._lock:
            self._memory.clear()

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Ask the server whether it can read this.

        Raises:
            ValueError: it cannot; the message says why.
        """
        self._backend.check(prompt, need)

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Read several prompts, in one call where the rows are the same; the same rows again cost nothing.

        Raises:
            ValueError: a row that the prompt or the server cannot take; the message has the row number.
            JudgeServerError: the server cannot be reached within the deadline, with `on_failure="raise"`.
        """
        if self._pid != os.getpid():
            # A forked child: its parent's OpenMP threads are not here, and torch would wait for them for ever.
            torch.set_num_threads(1)
            self._reset()
        keys = [_key(request) for request in requests]
        with self._lock:
            out, todo = self._memory.look(keys, [r.need for r in requests])
        asked = [
            requests[same[0]]._replace(need=functools.reduce(operator.or_, (requests[i].need for i in same)))
            for same in todo.values()
        ]
        try:
            readings = self._backend.read(asked) if asked else []
        except JudgeServerError as err:
            return self._failed(requests, err)
        with self._lock:
            self.forwards += bool(asked)
            for same, request, reading in zip(todo.values(), asked, readings, strict=True):
                out |= dict.fromkeys(same, reading)
                self._memory.keep(keys[same[0]], request.need, reading)
            self._memory.trim(len(requests))
        return [out[i] for i in range(len(requests))]

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """Sampled answers, see `Judge.generate`."""
        key = prompt.hash, list(rows), n, temperature, max_new_tokens, seed
        if (known := self._memory.answers(key)) is not None:
            return known
        try:
            answers = self._backend.generate(
                prompt, rows, n=n, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
            )
            return self._memory.keep_answers(key, answers)
        except JudgeServerError as err:
            if self.on_failure == "raise" or not err.outage:
                raise
            logger.error("no answers: %s", err)
            self._outages += 1
            return [[None] * n for _ in rows]

    def _failed(self, requests: Sequence[Request], err: JudgeServerError) -> list[Reading]:
        if self.on_failure == "raise" or not err.outage:
            raise err
        logger.error("no score: %s", err)
        self._outages += 1
        known = self._info or {"layers": 0, "width": 1}
        out = []
        for prompt, rows, need in requests:
            k, why = len(prompt.labels or ()), [NoAnswer(err)] * len(rows)
            out.append(unread(len(rows), k, need, int(known["layers"]), int(known["width"]), why))
        return out


def _key(request: Request) -> str:
    return hashlib.sha256(request.prompt.hash.encode() + encode([dict(row) for row in request.rows])).hexdigest()
