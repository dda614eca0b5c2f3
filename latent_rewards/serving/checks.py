"""What is refused before it is queued: rows that are too many, too long, or do not fit what reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from latent_rewards.files.sources import RowError
from latent_rewards.judge.prompts import JudgePrompt, to_segments
from latent_rewards.judge.reading import Row
from latent_rewards.judge.thoughts import hidden_chars
from latent_rewards.rewards.base import Reward
from latent_rewards.serving.fields import is_listed
from latent_rewards.serving.settings import ServeSettings


class RequestError(Exception):
    """A request that is answered with an error, by the client's fault unless `status` is 500 or more."""

    def __init__(self, status: int, kind: str, message: str, *, row: int | None = None, retry: int | None = None):
        super().__init__(message)
        self.status, self.kind, self.row, self.retry = status, kind, row, retry


def check_size(settings: ServeSettings, rows: Sequence[Row]) -> None:
    """Number of rows and length of texts.

    Raises:
        RequestError: too many, or too long.
    """
    if len(rows) > settings.max_rows:
        raise RequestError(
            413, "too_many_rows", f"{len(rows)} rows; one request may hold {settings.max_rows}: split it"
        )
    for i, row in enumerate(rows):
        for slot, value in row.items():
            parts = [json.dumps(value)] if is_listed(value) else [s.text for s in to_segments(value, slot)]
            length = sum(map(len, parts)) + hidden_chars(value)
            if length > settings.max_text_chars:
                limit = settings.max_text_chars
                raise RequestError(
                    413, "text_too_long", f"row {i}: {slot!r} has {length} characters; the limit is {limit}", row=i
                )


def check_rows(prompt: JudgePrompt, rows: Sequence[Row]) -> None:
    """Every row fills the prompt.

    Raises:
        RequestError: names the row.
    """
    try:
        prompt.render_all(rows)
    except RowError as err:
        raise RequestError(422, "bad_row", str(err), row=err.row) from err


def check_inputs(reward: Reward, rows: Sequence[Row]) -> None:
    """Every row has what the reward takes.

    Raises:
        RequestError: names the row.
    """
    for i, row in enumerate(rows):
        try:
            reward.check_row(row)
        except ValueError as err:
            raise RequestError(422, "bad_row", f"row {i}: {err}", row=i) from err
