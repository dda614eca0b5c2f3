"""Request bodies: JSON alone, perhaps compressed; whatever else comes is told what is wrong with it."""

from __future__ import annotations

import asyncio
import json
import zlib
from email.message import Message
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from latent_rewards.serving.checks import RequestError

_LARGE = 1 << 16  # bytes from which a body is unpacked and parsed in a thread, so that the event loop goes on
_PACKED = ("gzip", "x-gzip", "deflate")


class JsonRequest(Request):
    """A request with a JSON body."""

    async def unpack(self, max_bytes: int) -> None:
        """Check the type of the body, and decompress it.

        Args:
            max_bytes: most bytes of the body once it is unpacked.

        Raises:
            RequestError: 415 for a type or encoding that is not taken, 413 for a body that unpacks to more, 400 for one
                that is damaged.
        """
        headers = self.headers
        if self.method != "POST" or headers.get("content-length") == "0":
            return
        given = headers.get("content-type")
        if not _is_json(given):
            said = f"the content type is {given!r:.100}" if given else "the request names no content type"
            raise RequestError(415, "not_json", f"{said}; send JSON with -H 'Content-Type: application/json'")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return
        if encoding not in _PACKED:
            raise RequestError(
                415, "bad_encoding", f"the content encoding is {encoding!r:.100}; send gzip, deflate or none"
            )
        try:
            packed = await self.body()
        except ClientDisconnect as err:
            raise HTTPException(400, "the client left before its body arrived") from err
        self._body = await asyncio.to_thread(_unpacked, packed, encoding, max_bytes)

    async def json(self) -> Any:
        """The body's value; raises JSONDecodeError for all that is none."""
        if not hasattr(self, "_json"):
            body = await self.body()
            self._json = await asyncio.to_thread(_parsed, body) if len(body) > _LARGE else _parsed(body)
        return self._json


def _is_json(content_type: str | None) -> bool:
    message = Message()
    message["content-type"] = content_type or "text/plain"
    kind = message.get_content_type()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except UnicodeDecodeError as err:
        raise json.JSONDecodeError(f"not {err.encoding}: {err.reason}", "", err.start) from err
    except json.JSONDecodeError:
        raise
    except ValueError as err:  # a number of more digits than Python reads
        raise json.JSONDecodeError(str(err), "", 0) from err
    except RecursionError as err:
        raise json.JSONDecodeError("nested too deeply", "", 0) from err


def _unpacked(packed: bytes, encoding: str, max_bytes: int) -> bytes:
    """The bytes of a gzip or zlib stream, never more than `max_bytes` of them in memory."""
    out, rest = b"", packed
    while rest:  # gzip may hold several members
        stream = zlib.decompressobj(wbits=47)  # gzip or zlib, as the first bytes say
        try:
            out += stream.decompress(rest, max_bytes + 1 - len(out))
        except zlib.error as err:
            raise RequestError(400, "bad_encoding", f"the body is no {encoding}: {err}") from err
        if len(out) > max_bytes:
            raise RequestError(413, "too_large", f"the body unpacks to more than {max_bytes} bytes, which is the limit")
        if not stream.eof:
            raise RequestError(400, "bad_encoding", f"the body's {encoding} is cut short")
        rest = stream.unused_data
    return out
