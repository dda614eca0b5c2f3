"""When a judge runs out of memory: read fewer rows at a time, and if one alone is too much, say what would help."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from latent_rewards.judge.reading import Judge, Reading, Request

logger = logging.getLogger(__name__)

T = TypeVar("T")


def read_all(judge: Judge, requests: Sequence[Request]) -> list[Reading]:
    """Readings of all requests: one forward where the judge can do that, else one for each; fewer rows when it must.

    Args:
        judge: the judge; what it does itself against lack of memory comes first.
        requests: as many rows in each, or any number.

    Returns:
        A reading for each request. Rows that were read in another batch than asked for differ by rounding.

    Raises:
        torch.OutOfMemoryError: one row alone is too much; names it and what would help.
    """
    many = getattr(judge, "read_many", None)

    def read(first: int, end: int) -> list[Reading]:
        some = [Request(r.prompt, r.rows[first:end], r.need) for r in requests]
        return many(some) if many is not None and len(some) > 1 else [judge.read(*r) for r in some]

    parts = in_halves(read, max((len(r.rows) for r in requests), default=0), judge.name)
    return parts[0] if len(parts) == 1 else [_join([p[i] for p in parts]) for i in range(len(requests))]


def in_halves(run: Callable[[int, int], T], n: int, who: str) -> list[T]:
    """What `run` gives for rows 0..n, asked in two halves, and those in halves, where memory does not last.

    Args:
        run: (first, end) -> the result for these rows.
        n: number of rows.
        who: the judge's name, for messages.

    Raises:
        torch.OutOfMemoryError: one row alone is too much.
    """
    return _in_halves(run, 0, n, who)


def _in_halves(run: Callable[[int, int], T], first: int, end: int, who: str) -> list[T]:
    try:
        return [run(first, end)]
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
    return [*_in_halves(run, first, half, who), *_in_halves(run, half, end, who)]


def _is_lack_of_memory(err: Exception) -> bool:
    """Accelerators have an error of their own; the CPU allocator raises a plain RuntimeError."""
    return isinstance(err, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(err)


def _join(parts: Sequence[Reading]) -> Reading:
    parts = [p for p in parts if len(p)] or parts[:1]
    first = parts[0]
    return Reading(
        _cat([p.label_logprobs for p in parts]),
        _cat([p.label_mass for p in parts]),
        {layer: torch.cat([p.hidden[layer] for p in parts]) for layer in first.hidden},
        {lens: torch.cat([p.layer_label_logits[lens] for p in parts]) for lens in first.layer_label_logits},
        tuple(reason for p in parts for reason in p.reasons),
    )


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    return torch.cat([p for p in parts if p is not None]) if parts[0] is not None else None
