"""Requests put together and taken apart: those of many clients as few, and one as halves where memory does not last."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from latent_rewards.judge.reading import Judge, Need, Reading, Request

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_together(judge: Judge, requests: Sequence[Sequence[Request]]) -> list[list[Reading]]:
    """Readings of several clients' requests in as few forwards as the judge can do; what it remembers is not used.

    Rows of equal prompts are concatenated in the order given and their needs united; a request alone is read exactly
    as it stands.

    Args:
        judge: the judge.
        requests: for each client its requests.

    Returns:
        For each client one reading per request, holding what was asked for.
    """
    merged: list[Request] = []
    places: list[list[tuple[int, int]]] = []
    for asked in requests:
        places.append([])
        for request in asked:
            i = next((i for i, m in enumerate(merged) if joins(m, request)), len(merged))
            if i == len(merged):
                merged.append(Request(request.prompt, [], Need()))
            places[-1].append((i, len(merged[i].rows)))
            merged[i] = Request(request.prompt, [*merged[i].rows, *request.rows], merged[i].need | request.need)
    judge.forget()
    readings = judge.read(merged)
    return [
        [readings[i].take(start, start + len(r.rows)).only(r.need) for r, (i, start) in zip(asked, at, strict=True)]
        for asked, at in zip(requests, places, strict=True)
    ]


def joins(merged: Request, request: Request) -> bool:
    """Whether one request can take in another: the same prompt, and one reading can serve both needs."""
    return merged.prompt.hash == request.prompt.hash and merged.need.joins(request.need)


def in_halves(run: Callable[[int, int], T], n: int, who: str) -> list[T]:
    """What `run` gives for rows 0..n, asked in two halves, and those in halves, where memory does not last.

    Args:
        run: (first, end) -> the result for these rows.
        n: number of rows.
        who: the judge's name, for messages.

    Returns:
        The results, in the order of the rows; one where memory lasted.

    Raises:
        torch.OutOfMemoryError: one row alone is too much.
    """
    done: list[T] = []
    todo = [(0, n)]
    while todo:
        first, end = todo.pop()
        try:
            done.append(run(first, end))
            continue
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
            if not _is_lack_of_memory(err):
                raise
            if end - first <= 1:
                raise torch.OutOfMemoryError(
                    f"judge {who!r} has not enough memory for row {first} alone: give it less (max_length with "
                    "on_overflow='truncate', a smaller batch_tokens), more room (a device of its own, quantization), "
                    f"or leave the row out; the cause: {str(err).splitlines()[0] if str(err) else type(err).__name__}"
                ) from err
            logger.warning("judge %r has not enough memory for %d rows: reading them in two halves", who, end - first)
        gc.collect()  # only here, where the failed call's tensors are no longer held by its traceback
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        half = (first + end) // 2
        todo += [(half, end), (first, half)]
    return done


def _is_lack_of_memory(err: Exception) -> bool:
    """Accelerators have an error of their own; the CPU allocator raises a plain RuntimeError."""
    return isinstance(err, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(err)
