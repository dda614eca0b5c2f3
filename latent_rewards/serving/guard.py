"""What a request meets before anything of it is parsed: the token, and a limit on how slowly a body may come."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import Any

OPEN = ("/health", "/ready")


class Guard:
    """ASGI middleware: bearer token (compared in constant time), and the time a body may take.

    Args:
        app: what it guards.
        token: None for no check; /health and /ready are always open.
        body_timeout: seconds from the request line to the last byte of the body.
    """

    def __init__(self, app: Any, *, token: str | None, body_timeout: float) -> None:
        self.app, self.token, self.body_timeout = app, token, body_timeout

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.token is not None and scope["path"] not in OPEN and not _allowed(scope, self.token):
            await refuse(send, 401, "unauthorized", "this server needs a bearer token: 'Authorization: Bearer ...'")
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
    given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
    scheme, _, value = given.partition(b" ")
    return hmac.compare_digest(value.strip(), token.encode()) and scheme.lower() == b"bearer"


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
