"""Any error of the server as JSON, with the row that is at fault."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from latent_rewards.serving import schemas
from latent_rewards.serving.batching import QueueFullError
from latent_rewards.serving.checks import RequestError


def error_response(err: Exception) -> JSONResponse:
    """Any error as our JSON."""
    headers: dict[str, str] = {}
    row: int | None = None
    if isinstance(err, QueueFullError):
        status, kind, text = 429, "queue_full", str(err)
        headers["retry-after"] = str(err.retry_after)
    elif isinstance(err, RequestError):
        status, kind, text, row = err.status, err.kind, str(err), err.row
        if err.retry is not None:
            headers["retry-after"] = str(err.retry)
    elif isinstance(err, RequestValidationError):
        status, kind, text, row = _validation(err)
    elif isinstance(err, HTTPException):
        status, kind, text = err.status_code, f"http_{err.status_code}", str(err.detail)
        headers |= dict(err.headers or {})
    else:
        status, kind, text = 500, "internal", f"{type(err).__name__}; see the server's log"
    detail = schemas.ErrorDetail(type=kind, message=text.encode("utf-8", "replace").decode(), row=row)
    return JSONResponse(schemas.ErrorBody(error=detail).model_dump(), status, headers)


def _validation(err: RequestValidationError) -> tuple[int, str, str, int | None]:
    first = err.errors()[0]
    if first["type"] == "json_invalid":
        return 400, "bad_json", f"the body is no JSON: {first.get('ctx', {}).get('error')} at {first['loc'][-1]}", None
    where = [str(x) for x in first["loc"] if x != "body"]
    row = int(where[1]) if len(where) > 1 and where[0] == "rows" and where[1].isdigit() else None
    text = f"row {row}: " if row is not None else ""
    place = ".".join(where[2:] if row is not None else where) or "body"
    more = f" (and {len(err.errors()) - 1} more)" if len(err.errors()) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return 422, "bad_request", f"{text}{place}: {message}{more}", row
