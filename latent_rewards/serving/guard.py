"""What a request meets before anything of it is read: the token, and limits on the size and slowness of its body."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

OPEN = ("/health", "/ready", "/docs", "/openapi.json")
_QUIET = 1.0  # seconds without a byte after which what an answered client still sends is no longer waited for


class Guard:
    """ASGI middleware: bearer token (compared in constant time), size of a body, declared or not, and its time.

    Args:
        app: what it guards.
        token: None for no check; /health, /ready and the description of the routes are always open.
        url_token: whether `?token=` of the URL will do, too.
        open_routes: further paths that are open.
        max_body: most bytes of a body; what comes beyond is not read.
        body_timeout: seconds from the request line to the last byte of the body.
    """

    def __init__(
        self, app: Any, *, token: str | None, url_token: bool, open_routes: Iterable[str], max_body: int,
        body_timeout: float,
    ) -> None:  # fmt: skip
        self.url_token, self.open = url_token, {*OPEN, *open_routes}
        self.app, self.token, self.max_body, self.body_timeout = app, token, max_body, body_timeout

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (
            self.token is not None
            and scope["path"] not in self.open
            and not _allowed(scope, self.token, self.url_token)
        ):
            said = "this server needs a bearer token: 'Authorization: Bearer ...'"
            await refuse(receive, send, (401, "unauthorized", said), self.body_timeout)
            return
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > self.max_body:
            said = f"the body has {int(length[:20])} bytes; the limit is {self.max_body}"
            await refuse(receive, send, (413, "too_large", said), self.body_timeout)
            return
        body = _Body(receive, send, self.max_body, self.body_timeout)
        await self.app(scope, body.receive, body.send)
        if body.refusal is not None and not body.started:
            await refuse(receive, send, body.refusal, self.body_timeout)


class _Body:
    """A body on its way: when it is too long or too slow the app sees a client that left, and the client an error.

    When the app answers before all of it is here, the rest is drained before the answer ends.
    """

    def __init__(self, receive: Any, send: Any, max_body: int, seconds: float) -> None:
        self._receive, self._send, self.max_body, self.seconds = receive, send, max_body, seconds
        self.until = asyncio.get_running_loop().time() + seconds
        self.refusal: tuple[int, str, str] | None = None
        self.started = self.arrived = False
        self.size = 0

    async def receive(self) -> Any:
        """ASGI's receive."""
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        if self.arrived:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self.until):
                message = await self._receive()
        except TimeoutError:
            self.refusal = 408, "timeout", f"the body did not arrive within {self.seconds:g} s"
            return {"type": "http.disconnect"}
        self.size += len(message.get("body", b""))
        if self.size > self.max_body:
            self.refusal = 413, "too_large", f"the body has more than {self.max_body} bytes, which is the limit"
            return {"type": "http.disconnect"}
        self.arrived = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Any) -> None:
        """ASGI's send; the refusal in place of what the app says of the client that left."""
        if self.refusal is None:
            self.started = True
            if self.arrived or message["type"] != "http.response.body" or message.get("more_body", False):
                await self._send(message)
            else:
                await self._send(message | {"more_body": True})
                await _drain(self._receive, self.seconds)
                await self._send({"type": "http.response.body", "body": b""})
        elif not self.started:
            self.started = True
            await refuse(self._receive, self._send, self.refusal, self.seconds)


def _allowed(scope: Any, token: str, url_token: bool) -> bool:
    scheme, _, value = _header(scope, b"authorization").partition(b" ")
    if url_token and not value:
        given = parse_qs(scope.get("query_string", b"")).get(b"token", [b""])[0]
        return hmac.compare_digest(given, token.encode())
    return hmac.compare_digest(value.strip(), token.encode()) and scheme.lower() == b"bearer"


def _header(scope: Any, name: bytes) -> bytes:
    return next((v for k, v in scope["headers"] if k == name), b"")


async def refuse(receive: Any, send: Any, refusal: tuple[int, str, str], seconds: float) -> None:
    """A JSON error of a status, kind and message, after which the connection is closed."""
    status, kind, message = refusal
    body = json.dumps({"error": {"type": kind, "message": message, "row": None}}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close"),
    ]  # fmt: skip
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _drain(receive, seconds)
    await send({"type": "http.response.body", "body": b""})


async def _drain(receive: Any, seconds: float) -> None:
    """Read and throw away what the client still sends: until its end, a second of silence, or `seconds` in all.

    A connection that is closed on unread bytes is reset, and the client may lose the answer (RFC 9112, 9.6).
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            more = True
            while more:
                part = await asyncio.wait_for(receive(), _QUIET)
                more = part["type"] == "http.request" and part.get("more_body", False)
