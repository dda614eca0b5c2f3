"""What `ServerJudge` asks of our own server: all that a judge in this process gives."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from latent_rewards.files.sources import RowError
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Request, Row
from latent_rewards.serving import schemas
from latent_rewards.serving.transport import JudgeServerError, Transport, encode

_CHUNK_BYTES = 8 << 20


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
            self._post([Request(prompt, [], need)], 0, [])
        except JudgeServerError as err:
            if err.status == 403:
                raise ValueError(str(err)) from err
            raise

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """In one request where the rows are the same and fit; else in several, at once."""
        if any(r.rows != requests[0].rows for r in requests):
            return [reading for request in requests for reading in self.read([request])]
        rows = list(requests[0].rows)
        for request in requests:
            request.prompt.render_all(rows)
        if self._max_rows is None:
            self.info()
        starts = _chunks(rows, self._max_rows or 1)
        if len(starts) == 1:
            return self._post(requests, 0, rows)
        with ThreadPoolExecutor(self.transport.concurrency) as pool:
            spans = zip(starts, [*starts[1:], len(rows)], strict=True)
            jobs = [pool.submit(self._post, requests, a, rows[a:b]) for a, b in spans]
            parts = [job.result() for job in jobs]
        return [Reading.join([part[i] for part in parts]) for i in range(len(requests))]

    def _post(self, requests: Sequence[Request], start: int, rows: Sequence[Row]) -> list[Reading]:
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

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
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
