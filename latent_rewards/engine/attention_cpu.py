"""Attention of one node to its path on CPUs, but for bfloat16 with AMX: to all above it and, causally, to itself.

PyTorch's CPU flash kernel computes the masked half of a causal square too as long as it fits one block of keys (512),
in matrix products of 64 queries. Here a block of queries meets the keys up to its own end only, with all heads of a
group in one product, and what lies above the node in the same product, so that nothing has to be merged: a third less
time for long nodes below a short prefix (`python -m benchmarks.profile_forward`). Scores and softmax are float32, as
there.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from latent_rewards.engine.local import Local

SHORTEST = 150  # tokens of a path
_SHORTEST_NODE = 48
_QUERIES = 64  # of one block
_SCORES = 1 << 20  # of one block: 4 MB in float32
_scratch = threading.local()


def float32_pays(dtype: torch.dtype) -> bool:
    """Whether bfloat16 attention runs faster in float32 here: PyTorch's small products do, where there is no AMX."""
    return dtype == torch.bfloat16 and not _amx()


def takes(dtype: torch.dtype) -> bool:
    """Whether `path_attention` is for this dtype here: for all that is best read in float32."""
    return dtype == torch.float32 or float32_pays(dtype)


def pays_for(n: int, above: int) -> bool:
    """Whether a node of n tokens is read faster together with those above it than merged with what all siblings see."""
    return n >= _SHORTEST_NODE and n + above >= SHORTEST and above <= 3 * n


def path_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, local: Local | None, path: range, out: Tensor, lse: Tensor | None
) -> None:
    """Write the attention of a node to its path, and its log-sum-exps where they are wanted.

    Args:
        q: (H, n, d) float32 or bfloat16 queries.
        k: (H_kv, P, d) keys, the last n those of the queries; H is a multiple of H_kv.
        v: (H_kv, P, e) values.
        scale: of the scores.
        local: what a query sees of its path; all if None.
        path: positions of the queries.
        out: (n, H, e), written.
        lse: (H, n) float32, written.
    """
    (heads, n, d), (groups, total) = q.shape, k.shape[:2]
    start = path.stop - total  # position of the first key
    keys, values = _float(k).transpose(1, 2), v.contiguous()
    rows = max(16, min(_QUERIES, _SCORES // (heads * total)))
    step = -(-n // max(1, round(n / rows)))
    mask = torch.full((step, step), -math.inf).triu_(1)
    for a in range(0, n, step):
        b = min(n, a + step)
        at = path[a:b]
        first, end = max(0, local.first(at.start) - start) if local else 0, total - n + b
        shape = groups, heads // groups * (b - a), end - first
        scores, shares, rounded = (x.view(shape) for x in _buffers(math.prod(shape), v.dtype))
        queries = _float(q[:, a:b]).view(groups, -1, d)
        torch.baddbmm(scores, queries, keys[:, :, first:end], beta=0, alpha=scale, out=scores)
        by_head = scores.view(heads, b - a, end - first)
        if local is None:
            by_head[..., a - b :].add_(mask[: b - a, : b - a])
        else:
            by_head += local.mask(at, range(start + first, start + end), q.device)
        torch.softmax(scores, -1, out=shares)
        if rounded is not shares:
            rounded.copy_(shares)
        out[a:b] = torch.bmm(rounded, values[:, first:end]).view(heads, b - a, -1).transpose(0, 1)
        if lse is not None:  # the largest score and its share: s = lse + ln p
            lse[:, a:b] = (scores.amax(-1) - shares.amax(-1).log_()).view(heads, b - a)


def _float(x: Tensor) -> Tensor:
    if x.dtype == torch.float32:
        return x.contiguous()
    return x.to(torch.float32, memory_format=torch.contiguous_format)  # in one pass


def _buffers(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Room for n scores, shares and shares in a dtype, kept: fresh memory of this size costs more than the softmax."""
    found: tuple[Tensor, Tensor, Tensor] | None = getattr(_scratch, "buffers", None)
    if found is None or len(found[0]) < n:
        found = torch.empty(n), torch.empty(n), torch.empty(n, dtype=torch.bfloat16)
        _scratch.buffers = found
    scores, shares, halves = (x[:n] for x in found)
    return scores, shares, halves if dtype == torch.bfloat16 else shares


@functools.cache
def _amx() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())
