"""What `ServerJudge` asks of our own server: all that a judge in this process gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from latent_rewards.files.sources import RowError
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Request, Row
from latent_rewards.serving import schemas
from latent_rewards.serving.parts import of_whole, parts
from latent_rewards.serving.transport import JudgeServerError, Transport


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
            self._post([Request(prompt, [], need)], [], [])
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
        split = parts(rows, self._max_rows or 1)
        if len(split) == 1:
            return self._post(requests, split[0], rows)
        with ThreadPoolExecutor(self.transport.concurrency) as pool:
            jobs = [pool.submit(self._post, requests, part, [rows[i] for i in part]) for part in split]
            found = [job.result() for job in jobs]
        return [Reading.join([readings[i] for readings in found]) for i in range(len(requests))]

    def _post(self, requests: Sequence[Request], part: Sequence[int], rows: Sequence[Row]) -> list[Reading]:
        slots = {slot for request in requests for slot in request.prompt.slots}
        reads = [
            {"prompt": schemas.PromptSpec.of(r.prompt).model_dump(), "need": schemas.NeedSpec.of(r.need).model_dump()}
            for r in requests
        ]
        payload = {
            "rows": [{k: v for k, v in row.items() if k in slots} for row in rows], "reads": reads,
            "alone": self.alone, "deadline": min(max(self.transport.deadline, 1.0), 86_400),
        }  # fmt: skip
        with _faults_of(part):
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
        with _faults_of(range(len(rows))):
            return self.transport.request("POST", "/generate", payload)["answers"]


@contextlib.contextmanager
def _faults_of(part: Sequence[int]) -> Iterator[None]:
    """What the server refuses is the fault of who gave the rows; errors name the row of the whole."""
    try:
        with of_whole(part):
            yield
    except JudgeServerError as err:
        if err.status not in (413, 422):
            raise
        if err.row is None:
            raise ValueError(str(err)) from err
        raise RowError(err.row, str(err).partition(f"row {err.row}: ")[2] or str(err)) from err
