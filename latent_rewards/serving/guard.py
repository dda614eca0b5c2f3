"""What a request meets before anything of it is read: the token, and limits on the size and slowness of its body."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import Any

OPEN = ("/health", "/ready")


class Guard:
    """ASGI middleware: bearer token (compared in constant time), declared size of a body, and the time it may take.

    Args:
        app: what it guards; it counts the bytes of bodies that declare no size.
        token: None for no check; /health and /ready are always open.
        max_body: most bytes that a body may declare.
        body_timeout: seconds from the request line to the last byte of the body.
    """

    def __init__(self, app: Any, *, token: str | None, max_body: int, body_timeout: float) -> None:
        self.app, self.token, self.max_body, self.body_timeout = app, token, max_body, body_timeout

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.token is not None and scope["path"] not in OPEN and not _allowed(scope, self.token):
            await refuse(send, 401, "unauthorized", "this server needs a bearer token: 'Authorization: Bearer ...'")
            return
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > self.max_body:
            await refuse(send, 413, "too_large", f"the body has {int(length[:20])} bytes; the limit is {self.max_body}")
            return
        started, late, arrived = False, False, False
        until = asyncio.get_running_loop().time() + self.body_timeout

        async def receive_in_time() -> Any:
            nonlocal late, arrived
            if arrived:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                late = True
                return {"type": "http.disconnect"}
            arrived = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def send_or_drop(message: Any) -> None:
            nonlocal started
            if late and not started:
                started = True
                await refuse(send, 408, "timeout", f"the body did not arrive within {self.body_timeout:g} s")
            elif not late:
                started = True
                await send(message)

        await self.app(scope, receive_in_time, send_or_drop)
        if late and not started:
            await refuse(send, 408, "timeout", f"the body did not arrive within {self.body_timeout:g} s")


def _allowed(scope: Any, token: str) -> bool:
    scheme, _, value = _header(scope, b"authorization").partition(b" ")
    return hmac.compare_digest(value.strip(), token.encode()) and scheme.lower() == b"bearer"


def _header(scope: Any, name: bytes) -> bytes:
    return next((v for k, v in scope["headers"] if k == name), b"")


async def refuse(send: Any, status: int, kind: str, message: str) -> None:
    """A JSON error, after which the connection is closed."""
    body = json.dumps({"error": {"type": kind, "message": message, "row": None}}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close"),
    ]  # fmt: skip
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
