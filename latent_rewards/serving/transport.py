"""HTTP with a connection pool, a concurrency limit, a deadline and retries; for threads, forks, event loops."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import httpx2 as httpx

from latent_rewards.judge.errors import JudgeError

logger = logging.getLogger(__name__)

RETRIED = frozenset({429, 500, 502, 503, 504})


class JudgeServerError(JudgeError):
    """The judge server did not answer, or not as it should.

    Attributes:
        status: HTTP status; None when no answer came.
        row: the row of the request that is at fault, if the server said so.
        kind: the server's name for the error.
    """

    def __init__(self, message: str, *, status: int | None = None, row: int | None = None, kind: str = "") -> None:
        super().__init__(message)
        self.status, self.row, self.kind = status, row, kind

    @property
    def outage(self) -> bool:
        """No answer came, or one that says that the server cannot answer now."""
        return self.status is None or self.status in RETRIED


def token_here() -> str | None:
    """The token that this process knows: $LATENT_REWARDS_TOKEN, or what is in the file $LATENT_REWARDS_TOKEN_FILE."""
    if path := os.environ.get("LATENT_REWARDS_TOKEN_FILE"):
        with open(path, encoding="ascii") as file:
            return file.read().strip() or None
    return os.environ.get("LATENT_REWARDS_TOKEN") or None


class Transport:
    """Requests to one judge server. All that a judge is asked changes nothing there, so every request may be repeated.

    Args:
        url: of the server, e.g. "http://127.0.0.1:8077".
        token: bearer token; it is left out of pickles, see `token_here`.
        concurrency: most requests under way at once, per process (sync) or event loop (async).
        deadline: seconds after which a request is given up, all retries included.
        retries: most repetitions; None for as many as the deadline allows.
    """

    def __init__(
        self, url: str, *, token: str | None = None, concurrency: int = 16, deadline: float = 600.0,
        retries: int | None = None,
    ) -> None:  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the URL of a judge server starts with http:// or https://, got {url!r}")
        if concurrency < 1 or not deadline > 0:
            raise ValueError(f"need concurrency >= 1 and deadline > 0, got {concurrency} and {deadline}")
        self.url, self.token, self.concurrency = url.rstrip("/"), token, concurrency
        self.deadline, self.retries = float(deadline), retries
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._client: httpx.Client | None = None
        self._slots = threading.BoundedSemaphore(self.concurrency)
        self._ours: _Loop | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without the token: a pickle may lie in a file or travel; where it is read, the environment has one."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "token"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.token = token_here()
        self._reset()

    def request(self, method: str, path: str, payload: Any = None) -> Any:
        """Send and await the answer's JSON.

        Raises:
            JudgeServerError: no good answer within the deadline, or one that repeating cannot change.
        """
        body = None if payload is None else encode(payload)
        attempt = _Attempt(self, f"{method} {self.url}{path}")
        while True:
            try:
                with self._slot(attempt):
                    client = self._sync_client()
                    outcome: Any = client.request(method, path, content=body, timeout=attempt.timeout())
            except httpx.TransportError as err:
                outcome = err
            wait = attempt.wait_before_next(outcome)
            if wait is None:
                return outcome.json()
            time.sleep(wait)

    async def request_async(self, method: str, path: str, payload: Any = None) -> Any:
        """As `request`, without blocking the event loop, from any number of loops: connections are on one of ours.

        A pool that belonged to the caller's loop would leave its sockets open when that loop is closed, and some stacks
        begin a loop for every batch (ms-swift 4.6, rl_core/grpo_algorithm.py: `asyncio.run`).
        """
        body = None if payload is None else encode(payload)
        attempt = _Attempt(self, f"{method} {self.url}{path}")
        return await self._own_loop().run(attempt, method, path, body)

    def close(self) -> None:
        """Close pooled connections; they open again when needed."""
        (client, self._client), (ours, self._ours) = (self._client, None), (self._ours, None)
        if self._pid != os.getpid():
            return
        if client is not None:
            client.close()
        if ours is not None:
            ours.end()

    def _slot(self, attempt: _Attempt) -> threading.BoundedSemaphore:
        self._check_fork()
        return self._slots

    def _check_fork(self) -> None:
        if self._pid != os.getpid():  # sockets and locks of the parent are not ours
            self._reset()

    def _options(self) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        limits = httpx.Limits(
            max_connections=self.concurrency, max_keepalive_connections=self.concurrency, keepalive_expiry=30
        )
        # Judge servers are neighbours: no proxy of the environment stands between.
        return {"base_url": self.url, "headers": headers, "limits": limits, "trust_env": False}

    def _sync_client(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(**self._options())
            return self._client

    def _own_loop(self) -> _Loop:
        self._check_fork()
        with self._lock:
            if self._ours is None:
                self._ours = _Loop(httpx.AsyncClient(**self._options()), self.concurrency)
                weakref.finalize(self, self._ours.end)
            return self._ours


class _Loop:
    """An event loop in a thread of its own, with the client whose connections belong to it.

    Args:
        client: to send with.
        concurrency: most requests under way at once.
    """

    def __init__(self, client: httpx.AsyncClient, concurrency: int) -> None:
        self.client, self.slots = client, asyncio.Semaphore(concurrency)
        self.loop, self.pid = asyncio.new_event_loop(), os.getpid()
        threading.Thread(target=self._serve, name="latent-rewards-http", daemon=True).start()

    async def run(self, attempt: _Attempt, method: str, path: str, body: bytes | None) -> Any:
        """The answer's JSON; whoever is cancelled while waiting for it cancels the request."""
        sent = asyncio.run_coroutine_threadsafe(self._send(attempt, method, path, body), self.loop)
        return await asyncio.wrap_future(sent)

    def end(self) -> None:
        """Close the connections and end the thread; nothing in a process that was forked off, or twice."""
        if self.pid == os.getpid() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)

    async def _send(self, attempt: _Attempt, method: str, path: str, body: bytes | None) -> Any:
        while True:
            try:
                async with self.slots:
                    outcome: Any = await self.client.request(method, path, content=body, timeout=attempt.timeout())
            except httpx.TransportError as err:
                outcome = err
            wait = attempt.wait_before_next(outcome)
            if wait is None:
                return outcome.json()
            await asyncio.sleep(wait)

    async def _finish(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.client.aclose()

    def _serve(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self._finish())
        self.loop.close()


class _Attempt:
    """When to repeat a request, and when to give it up."""

    def __init__(self, transport: Transport, what: str) -> None:
        self.what, self.retries = what, transport.retries
        self.started = time.monotonic()
        self.until = self.started + transport.deadline
        self.count = 0

    def timeout(self) -> httpx.Timeout:
        left = max(0.05, self.until - time.monotonic())
        return httpx.Timeout(left, connect=min(10.0, left))

    def wait_before_next(self, outcome: Any) -> float | None:
        """Seconds to wait before the next try; None when this one was good.

        Raises:
            JudgeServerError: not worth another try, or no time for one.
        """
        answered = isinstance(outcome, httpx.Response)
        if answered and outcome.status_code == 200:
            return None
        error = _error(self.what, outcome)
        if answered and outcome.status_code not in RETRIED:
            raise error
        self.count += 1
        wait = random.uniform(0.5, 1.0) * min(20.0, 0.1 * 2.0**self.count)
        if answered and (after := outcome.headers.get("retry-after", "")).isdigit():
            wait = random.uniform(1.0, 1.25) * int(after)
        late = time.monotonic() + wait >= self.until
        if late or (self.retries is not None and self.count > self.retries):
            seconds = time.monotonic() - self.started
            raise JudgeServerError(
                f"{error} (gave up after {self.count} tries in {seconds:.1f} s)", status=error.status, kind=error.kind
            ) from error
        if self.count in (1, 5) or self.count % 20 == 0:
            logger.warning("%s; trying again in %.1f s", error, wait)
        return wait


def _error(what: str, outcome: Any) -> JudgeServerError:
    if not isinstance(outcome, httpx.Response):
        return JudgeServerError(f"{what}: {type(outcome).__name__}: {outcome}")
    status = outcome.status_code
    try:
        found = outcome.json()
        detail: Any = found["error"] if isinstance(found, Mapping) and "error" in found else found
    except ValueError:
        detail = outcome.text[:300]
    if not isinstance(detail, Mapping):
        detail = {"message": str(detail)}
    message = detail.get("message") or str(dict(detail))
    return JudgeServerError(
        f"{what}: {status} {message}", status=status, row=detail.get("row"), kind=str(detail.get("type", ""))
    )


def encode(payload: Any) -> bytes:
    """JSON; mappings and sequences of other types than dict and list become those.

    Raises:
        ValueError: something that JSON has no word for.
    """
    try:
        return json.dumps(payload, default=_plain, allow_nan=False).encode()
    except TypeError as err:
        raise ValueError(f"cannot be sent as JSON: {err}") from err


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
