"""The HTTP server: routes, errors as JSON, start and graceful end."""

# No `from __future__ import annotations` here: FastAPI must see the request models that are made at start.
import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import fastapi
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from latent_rewards.judge import reading
from latent_rewards.serving import compat, docs_page, schemas
from latent_rewards.serving.batching import QueueFullError
from latent_rewards.serving.bodies import JsonRequest
from latent_rewards.serving.checks import RequestError
from latent_rewards.serving.errors import error_response
from latent_rewards.serving.guard import Guard
from latent_rewards.serving.service import Service
from latent_rewards.version import __version__

logger = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody, "description": text}
    for status, text in {
        400: "the body is no JSON", 401: "no or a wrong token", 403: "not allowed here", 404: "unknown reward",
        408: "the body came too slowly", 413: "too large", 415: "the body is not sent as JSON",
        422: "the request does not fit; may name a row",
        429: "the queue is full; see Retry-After", 503: "not ready; see Retry-After", 504: "deadline passed",
    }.items()
}  # fmt: skip


class Route(APIRoute):
    """Counts and times requests, and gives a request up when its client has left."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's own."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            metrics = request.app.state.service.metrics
            started, status = time.perf_counter(), 499
            try:
                asked = JsonRequest(request.scope, request.receive)
                await asked.unpack(request.app.state.service.settings.max_body_bytes)
                response = await inner(asked)
                status = response.status_code
                return response
            except Exception as err:
                status = error_response(err).status_code
                raise
            finally:
                seconds = time.perf_counter() - started
                metrics.requests.labels(self.path, str(status)).inc()
                metrics.seconds.labels(self.path).observe(seconds)
                if request.app.state.service.settings.log_requests:
                    logger.info("%s %s %d %.3f s", request.method, self.path, status, seconds)

        return handle


async def while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """Await work, and cancel it when the client disconnects: what it queued is then not judged."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "client_gone", "the client has disconnected")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def create_app(service: Service, *, failed: Callable[[], None] = lambda: None) -> FastAPI:
    """The server as an ASGI application; the judges are loaded when it starts.

    Args:
        service: judges, rewards and limits.
        failed: called when a judge cannot be loaded.
    """
    app = FastAPI(
        title="latent-rewards", version=__version__, lifespan=_lifespan(service, failed), docs_url=None, redoc_url=None,
        summary="Rewards from the inside of a frozen judge model.",
    )  # fmt: skip
    app.router.route_class = Route
    app.state.service = service
    limits = service.settings
    app.add_middleware(
        Guard,
        token=limits.token,
        url_token=limits.url_token,
        open_routes=limits.open_routes,
        max_body=limits.max_body_bytes,
        body_timeout=limits.body_timeout,
    )
    for kind in (RequestValidationError, HTTPException, RequestError, QueueFullError, Exception):
        app.add_exception_handler(kind, _handle)
    _add_state_routes(app, service)
    _add_judge_routes(app, service)
    compat.add_routes(app, service, while_connected, _ERRORS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return fastapi.responses.HTMLResponse(docs_page.page(app.openapi()))

    return app


def _lifespan(service: Service, failed: Callable[[], None]) -> Any:
    async def watch() -> None:
        while service.batcher.failure is None:
            await asyncio.sleep(0.2)
        logger.error("the judge cannot be loaded: %s", service.batcher.failure)
        failed()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        watcher = asyncio.create_task(watch())
        yield
        watcher.cancel()
        await asyncio.to_thread(service.batcher.close)

    return lifespan


def _add_state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="The process lives.", responses={503: _ERRORS[503]})
    async def health() -> dict[str, str]:
        if not service.batcher.alive:
            raise RequestError(503, "dead", f"a judge has stopped: {service.batcher.failure}")
        return {"status": "ok"}

    @app.get("/ready", summary="All judges are loaded.", responses={503: _ERRORS[503]})
    async def ready() -> dict[str, str]:
        need_ready(service)
        return {"status": "ready"}

    @app.get("/metrics", summary="Prometheus metrics.", response_class=fastapi.responses.PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/info", summary="The judge, its rewards and the limits.", responses=_only(401, 503))
    async def info() -> schemas.Info:
        need_ready(service)
        judge = service.judges[0]
        return schemas.Info(
            judge=judge.name, revision=judge.revision, fingerprint=judge.fingerprint, layers=judge.n_layers,
            width=judge.blocks.config.hidden_size, capabilities=sorted(judge.capabilities),
            rewards={name: reward.prompt.name for name, reward in service.rewards[0].items()},
            inputs={name: list(reward.inputs) for name, reward in service.rewards[0].items()},
            bounds={name: list(r.bounds) if r.bounds else None for name, r in service.rewards[0].items()},
            max_rows=service.settings.max_rows, max_text_chars=service.settings.max_text_chars,
            version=__version__,
        )  # fmt: skip


def need_ready(service: Service) -> None:
    """Raise RequestError (503) while judges are loading."""
    if not service.batcher.ready:
        raise RequestError(503, "not_ready", "the judge is loading", retry=2)


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def _add_judge_routes(app: FastAPI, service: Service) -> None:
    model = schemas.score_request(service.names, service.required)

    @app.post("/score", summary="Rewards of rows, several at once from one forward.", responses=_ERRORS)
    async def score(body: model, request: Request) -> schemas.ScoreResponse:  # type: ignore[valid-type]
        need_ready(service)
        given: Any = body
        rows, names = schemas.rows_of(given.rows), given.rewards or service.names
        work = service.score(rows, names, alone=given.alone, deadline=given.deadline)
        scores, reasons, readings, explanations = await while_connected(request, work)
        return schemas.ScoreResponse(
            rewards={name: schemas.finite(values) for name, values in scores.items()},
            reasons=reasons,
            label_mass={n: schemas.finite(r.label_mass) for n, r in readings.items() if r.label_mass is not None},
            distribution=_distributions(service, readings) if given.distribution else None,
            explanations=explanations if given.explain else None,
        )

    @app.post("/read", summary="Readings, bit for bit as the judge gives them; for `ServerJudge`.", responses=_ERRORS)
    async def read(body: schemas.ReadRequest, request: Request) -> schemas.ReadResponse:
        need_ready(service)
        rows = schemas.rows_of(body.rows)
        reads = [reading.Request(_build(r.prompt), rows, r.need.build()) for r in body.reads]
        got = await while_connected(request, service.read(reads, alone=body.alone, deadline=body.deadline))
        return await asyncio.to_thread(lambda: schemas.ReadResponse(readings=[schemas.ReadingSpec.of(r) for r in got]))

    @app.post("/generate", summary="Sampled answers of the judge.", responses=_ERRORS)
    async def generate(body: schemas.GenerateRequest, request: Request) -> schemas.GenerateResponse:
        need_ready(service)
        options = {k: getattr(body, k) for k in ("n", "temperature", "max_new_tokens", "seed")}
        work = service.generate(_build(body.prompt), schemas.rows_of(body.rows), body.deadline, **options)
        return schemas.GenerateResponse(answers=await while_connected(request, work))


def _build(spec: schemas.PromptSpec) -> Any:
    try:
        return spec.build()
    except ValueError as err:
        raise RequestError(422, "bad_prompt", str(err)) from err


def _distributions(service: Service, readings: dict[str, reading.Reading]) -> dict[str, schemas.Distribution]:
    out = {}
    for name, got in readings.items():
        labels = service.rewards[0][name].prompt.labels
        if labels is not None and got.label_logprobs is not None:
            rows = [schemas.finite(row) for row in got.label_logprobs]
            out[name] = schemas.Distribution(labels=list(labels.names), values=list(labels.values), logprobs=rows)
    return out


async def _handle(request: Request, err: Exception) -> Response:
    if not isinstance(err, RequestValidationError | HTTPException | RequestError | QueueFullError):
        logger.error("%s %s failed", request.method, request.url.path, exc_info=err)
    return error_response(err)
