"""Requests of many clients as few reads: equal prompts concatenated, and the readings taken apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latent_rewards.judge.reading import Need, Reading, Request


def read_together(judge: Any, requests: Sequence[Sequence[Request]]) -> list[list[Reading]]:
    """Readings of several requests in as few forwards as the judge can do.

    Rows of equal prompts are concatenated in the order given and their needs united; a request alone is read exactly
    as it stands.

    Args:
        judge: the judge; its `read_many` is used if it has one, and what it remembers is not.
        requests: for each request its reads.

    Returns:
        For each request one reading per read, holding what was asked for.
    """
    merged: list[Request] = []
    places: list[list[tuple[int, int]]] = []
    for reads in requests:
        places.append([])
        for read in reads:
            i = next((i for i, m in enumerate(merged) if joins(m, read)), len(merged))
            if i == len(merged):
                merged.append(Request(read.prompt, [], Need()))
            places[-1].append((i, len(merged[i].rows)))
            merged[i] = Request(read.prompt, [*merged[i].rows, *read.rows], merged[i].need | read.need)
    if hasattr(judge, "forget"):
        judge.forget()
    many = getattr(judge, "read_many", None)
    if many is not None and len(merged) > 1:
        readings = many(merged)
    else:
        readings = [judge.read(*m) for m in merged]
    return [
        [part(readings[i], start, len(read.rows), read.need) for read, (i, start) in zip(reads, at, strict=True)]
        for reads, at in zip(requests, places, strict=True)
    ]


def joins(merged: Request, read: Request) -> bool:
    """Whether a read can join: the same prompt, and not both want hidden states through different lenses."""
    lenses = {need.hidden_lens for need in (merged.need, read.need) if need.hidden}
    return merged.prompt.hash == read.prompt.hash and len(lenses) < 2


def part(reading: Reading, start: int, n: int, need: Need) -> Reading:
    """Rows start..start+n of a reading, and of its fields those that were asked for."""
    rows = slice(start, start + n)
    assert not need.labels or reading.label_logprobs is not None
    return Reading(
        reading.label_logprobs[rows] if need.labels and reading.label_logprobs is not None else None,
        reading.label_mass[rows] if need.labels and reading.label_mass is not None else None,
        {layer: reading.hidden[layer][rows] for layer in need.hidden},
        {lens: reading.layer_label_logits[lens][rows] for lens in need.layer_logits},
        tuple(reading.reasons[rows]),
    )
