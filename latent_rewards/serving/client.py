"""A judge that lives elsewhere: in our server, or in vLLM, SGLang or llama.cpp."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import torch

from latent_rewards.files.sources import RowError
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Request, Row, unread
from latent_rewards.serving.transport import JudgeServerError, Transport, encode

logger = logging.getLogger(__name__)

__all__ = ["JudgeServerError", "RewardClient", "ServerJudge"]

_CHUNK_BYTES = 8 << 20


class Backend(Protocol):
    """What `ServerJudge` needs of a kind of server."""

    def info(self) -> dict[str, Any]:
        """Keys: judge, revision, fingerprint, layers, width, capabilities."""
        ...

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Raise ValueError when the server cannot meet the need."""
        ...

    def read_many(self, requests: Sequence[Request]) -> list[Reading]:
        """One reading per request."""
        ...

    def generate(self, prompt: JudgePrompt, rows: Sequence[Row], **options: Any) -> list[list[str | None]]:
        """Sampled answers."""
        ...


class ServerJudge:
    """A judge behind a URL: meets `Judge`, so every reward works on it unchanged. Picklable; safe in threads and forks.

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
        self._needs: dict[str, Need] = {}
        self._info: dict[str, Any] | None = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._remembered: OrderedDict[str, tuple[Need, Reading]] = OrderedDict()
        self.forwards = 0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_pid", "_lock", "_remembered", "forwards")}

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

    def register(self, prompt: JudgePrompt, need: Need) -> None:
        """Remember that some reward will ask this of this prompt, so that one request serves all of them."""
        before = self._needs.get(prompt.hash, Need())
        lenses_differ = before.hidden and need.hidden and before.hidden_lens != need.hidden_lens
        self._needs[prompt.hash] = before if lenses_differ else before | need

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Ask the server whether it can read this.

        Raises:
            ValueError: it cannot; the message says why.
        """
        self._backend.check(prompt, need)

    def read(self, prompt: JudgePrompt, rows: Sequence[Row], need: Need) -> Reading:
        """Read B rows; the same rows again cost nothing. See `Judge.read`.

        Raises:
            ValueError: a row that the prompt or the server cannot take; the message has the row number.
            JudgeServerError: the server cannot be reached within the deadline, with `on_failure="raise"`.
        """
        return self.read_many([Request(prompt, rows, need)])[0]

    def read_many(self, requests: Sequence[Request]) -> list[Reading]:
        """Read several prompts, in one request where the rows are the same."""
        if self._pid != os.getpid():
            # A forked child: its parent's OpenMP threads are not here, and torch would wait for them for ever.
            torch.set_num_threads(1)
            self._reset()
        keys = [_key(request) for request in requests]
        out: dict[int, Reading] = {}
        missing: dict[int, Request] = {}
        with self._lock:
            for i, (key, request) in enumerate(zip(keys, requests, strict=True)):
                known = self._remembered.get(key)
                if known is not None and known[0].covers(request.need):
                    out[i] = known[1]
                else:
                    missing[i] = Request(request.prompt, request.rows, self._with_registered(request))
        if missing:
            try:
                readings = self._backend.read_many(list(missing.values()))
            except JudgeServerError as err:
                return self._failed(requests, err)
            with self._lock:
                self.forwards += 1
                for (i, request), reading in zip(missing.items(), readings, strict=True):
                    out[i] = reading
                    self._remembered[keys[i]] = (request.need | requests[i].need, reading)
                while len(self._remembered) > max(4, len(self._needs), len(requests)):
                    self._remembered.popitem(last=False)
        return [out[i] for i in range(len(requests))]

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """Sampled answers, see `Judge.generate`."""
        try:
            return self._backend.generate(
                prompt, rows, n=n, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
            )
        except JudgeServerError as err:
            if self.on_failure == "raise" or not _outage(err):
                raise
            logger.error("no answers: %s", err)
            return [[None] * n for _ in rows]

    def _with_registered(self, request: Request) -> Need:
        registered = self._needs.get(request.prompt.hash, Need())
        lenses_differ = registered.hidden and request.need.hidden and registered.hidden_lens != request.need.hidden_lens
        return request.need if lenses_differ else registered | request.need

    def _failed(self, requests: Sequence[Request], err: JudgeServerError) -> list[Reading]:
        if self.on_failure == "raise" or not _outage(err):
            raise err
        logger.error("no score: %s", err)
        known = self._info or {"layers": 0, "width": 1}
        out = []
        for prompt, rows, need in requests:
            k, why = len(prompt.labels or ()), [str(err)] * len(rows)
            out.append(unread(len(rows), k, need, int(known["layers"]), int(known["width"]), why))
        return out


def connect(url: str | None, *, token: str | None = None, **options: Any) -> Transport:
    """A transport, with URL and token from the environment where they are not given.

    Raises:
        ValueError: no URL.
    """
    url = url or os.environ.get("LATENT_REWARDS_SERVER")
    if not url:
        raise ValueError("give the URL of the judge server, or set LATENT_REWARDS_SERVER")
    return Transport(url, token=token or os.environ.get("LATENT_REWARDS_TOKEN") or None, **options)


def _outage(err: JudgeServerError) -> bool:
    return err.status is None or err.status in (429, 500, 502, 503, 504)


def _key(request: Request) -> str:
    return hashlib.sha256(request.prompt.hash.encode() + encode([dict(row) for row in request.rows])).hexdigest()


class OwnServer:
    """Our own server: all that a judge in this process gives."""

    def __init__(self, transport: Transport, *, alone: bool = False) -> None:
        self.transport, self.alone = transport, alone
        self._max_rows: int | None = None

    def info(self) -> dict[str, Any]:
        """From /info."""
        found = self.transport.request("GET", "/info")
        self._max_rows = int(found["max_rows"])
        return found

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Reads nothing with this prompt, so that the server checks it."""
        try:
            self._read([Request(prompt, [], need)], 0, [])
        except JudgeServerError as err:
            if err.status == 403:
                raise ValueError(str(err)) from err
            raise

    def read_many(self, requests: Sequence[Request]) -> list[Reading]:
        """In one request where the rows are the same and fit; else in several, at once."""
        if any(r.rows != requests[0].rows for r in requests):
            return [reading for request in requests for reading in self.read_many([request])]
        rows = list(requests[0].rows)
        for request in requests:
            request.prompt.render_all(rows)
        if self._max_rows is None:
            self.info()
        starts = _chunks(rows, self._max_rows or 1)
        if len(starts) == 1:
            return self._read(requests, 0, rows)
        with ThreadPoolExecutor(self.transport.concurrency) as pool:
            spans = zip(starts, [*starts[1:], len(rows)], strict=True)
            jobs = [pool.submit(self._read, requests, a, rows[a:b]) for a, b in spans]
            parts = [job.result() for job in jobs]
        return [_concatenate([part[i] for part in parts]) for i in range(len(requests))]

    def _read(self, requests: Sequence[Request], start: int, rows: Sequence[Row]) -> list[Reading]:
        from latent_rewards.serving import schemas

        slots = {slot for request in requests for slot in request.prompt.slots}
        reads = [
            {"prompt": schemas.PromptSpec.of(r.prompt).model_dump(), "need": schemas.NeedSpec.of(r.need).model_dump()}
            for r in requests
        ]
        payload = {
            "rows": [{k: v for k, v in row.items() if k in slots} for row in rows], "reads": reads,
            "alone": self.alone, "deadline": min(max(self.transport.deadline, 1.0), 86_400),
        }  # fmt: skip
        with _RowsFrom(start):
            answer = self.transport.request("POST", "/read", payload)
        readings = schemas.ReadResponse.model_validate(answer).readings
        if len(readings) != len(requests) or any(len(r.reasons) != len(rows) for r in readings):
            raise JudgeServerError(f"{self.transport.url}/read answered with other rows than it was asked for")
        return [reading.build() for reading in readings]

    def generate(self, prompt: JudgePrompt, rows: Sequence[Row], **options: Any) -> list[list[str | None]]:
        """From /generate."""
        from latent_rewards.serving import schemas

        slots = prompt.slots
        payload = {
            "rows": [{k: v for k, v in row.items() if k in slots} for row in rows],
            "prompt": schemas.PromptSpec.of(prompt).model_dump(),
            "deadline": min(max(self.transport.deadline, 1.0), 86_400),
            **options,
        }
        with _RowsFrom(0):
            return self.transport.request("POST", "/generate", payload)["answers"]


class _RowsFrom:
    """Errors that name a row of a part of the rows name the row of the whole."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: Any, err: Any, _trace: Any) -> None:
        if isinstance(err, JudgeServerError) and err.status in (413, 422):
            if err.row is None:
                raise ValueError(str(err)) from err
            said = str(err).partition(f"row {err.row}: ")[2] or str(err)
            raise RowError(self.start + err.row, said) from err


def _chunks(rows: Sequence[Row], max_rows: int) -> list[int]:
    """Where parts start: each of at most `max_rows` rows and some megabytes."""
    starts, size = [0], 0
    for i, row in enumerate(rows):
        length = len(encode(dict(row)))
        if i > starts[-1] and (i - starts[-1] >= max_rows or size + length > _CHUNK_BYTES):
            starts.append(i)
            size = 0
        size += length
    return starts


def _concatenate(parts: Sequence[Reading]) -> Reading:
    first = parts[0]
    return Reading(
        None if first.label_logprobs is None else torch.cat([p.label_logprobs for p in parts]),  # type: ignore[misc]
        None if first.label_mass is None else torch.cat([p.label_mass for p in parts]),  # type: ignore[misc]
        {k: torch.cat([p.hidden[k] for p in parts]) for k in first.hidden},
        {k: torch.cat([p.layer_label_logits[k] for p in parts]) for k in first.layer_label_logits},
        tuple(reason for p in parts for reason in p.reasons),
    )


class RewardClient:
    """The rewards that a judge server was started with, by name: the smallest client, sync and async.

    Args:
        url: of the server; default $LATENT_REWARDS_SERVER.
        reward: which of its rewards; default the first.
        **options: `token`, `deadline`, `concurrency`, `retries` as for `ServerJudge`.
    """

    def __init__(self, url: str | None = None, *, reward: str | None = None, **options: Any) -> None:
        self.transport, self.reward = connect(url, **options), reward

    def score(self, rows: Sequence[Row]) -> list[float]:
        """One score per row.

        Raises:
            JudgeServerError: no answer, or a row without a score (what calls this has no way to leave one out).
        """
        return self._scores(self.transport.request("POST", "/score", self._payload(rows)))

    async def score_async(self, rows: Sequence[Row]) -> list[float]:
        """As `score`."""
        return self._scores(await self.transport.request_async("POST", "/score", self._payload(rows)))

    def _payload(self, rows: Sequence[Row]) -> dict[str, Any]:
        wanted = {} if self.reward is None else {"rewards": [self.reward]}
        return {
            "rows": [dict(row) for row in rows],
            "deadline": min(max(self.transport.deadline, 1.0), 86_400),
            **wanted,
        }

    def _scores(self, answer: Any) -> list[float]:
        scores = next(iter(answer["rewards"].values()))
        for i, (score, reason) in enumerate(zip(scores, answer["reasons"], strict=True)):
            if score is None:
                raise JudgeServerError(f"row {i} has no score: {reason}", row=i)
        return scores
