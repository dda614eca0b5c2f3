"""The plain padded forward: whole texts, nothing shared, no layer deeper than asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from latent_rewards.engine.blocks import Blocks, States, Stop, catch_inner, stop_after


@torch.no_grad()
def read_states(
    blocks: Blocks,
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] = (),
    final: bool = True,
    batch_tokens: int = 8192,
) -> States:
    """States at chosen positions of token sequences: the plain padded forward.

    Args:
        blocks: the judge.
        sequences: N token sequences, none empty.
        positions: for each sequence the positions to read, P in all.
        layers: inner layers wanted, 0..L.
        final: whether the decoder's output is wanted.
        batch_tokens: most tokens, padding included, in one batch.

    Returns:
        States in the order of `positions`, flattened.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    offset = [0]
    for p in positions:
        offset.append(offset[-1] + len(p))
    rows_final = [torch.empty(0)] * offset[-1]
    rows_inner = {layer: list(rows_final) for layer in layers}
    for batch in _batches(order, sequences, batch_tokens):
        where = [(r, p, offset[i] + j) for r, i in enumerate(batch) for j, p in enumerate(positions[i])]
        got = _forward(blocks, [sequences[i] for i in batch], where, layers, final)
        for k, (_, _, target) in enumerate(where):
            if got.final is not None:
                rows_final[target] = got.final[k]
            for layer in layers:
                rows_inner[layer][target] = got.inner[layer][k]
    return States(
        torch.stack(rows_final) if final and rows_final else None,
        {layer: torch.stack(rows) for layer, rows in rows_inner.items()},
    )


def _batches(order: list[int], sequences: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(sequences[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _forward(
    blocks: Blocks,
    rows: list[Sequence[int]],
    where: list[tuple[int, int, int]],
    layers: Sequence[int],
    final: bool,
) -> States:
    width = max(map(len, rows))
    ids = torch.tensor([[*r, *[0] * (width - len(r))] for r in rows], device=blocks.device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=blocks.device)
    padded = {} if min(map(len, rows)) == width else {"attention_mask": mask}
    r_P = torch.tensor([w[0] for w in where], device=blocks.device)
    p_P = torch.tensor([w[1] for w in where], device=blocks.device)
    stop = contextlib.nullcontext() if final else stop_after(blocks, max(layers, default=0))

    def pick(hidden: torch.Tensor) -> torch.Tensor:
        return hidden[r_P.to(hidden.device), p_P.to(hidden.device)]

    with catch_inner(blocks, layers, pick) as inner, stop:
        try:
            last = blocks.decode(input_ids=ids, **padded)
        except Stop:
            return States(None, inner)
    return States(pick(last) if final else None, inner)
