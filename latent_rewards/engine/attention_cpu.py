"""Causal attention of one node on CPUs without AMX, a block of queries at a time.

PyTorch's CPU flash kernel computes the masked half of a causal square too as long as it fits one block of keys (512),
in matrix products of 64 queries. Here a block of queries meets the keys up to its own end only, with all heads of a
group in one product: a sixth to a third less time from 200 tokens on (`python -m benchmarks.profile_forward`). Scores
and softmax are float32, as there.
"""

from __future__ import annotations

import functools
import math
import threading

import torch
from torch import Tensor

SHORTEST = 150
_SCORES = 1 << 20  # of one block: 4 MB in float32
_scratch = threading.local()


def float32_pays(query: Tensor) -> bool:
    """Whether bfloat16 attention runs faster in float32 here: PyTorch's small products do, where there is no AMX."""
    return query.dtype == torch.bfloat16 and not _amx()


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Write causal attention and its log-sum-exps.

    Args:
        q: (H, n, d) bfloat16 queries.
        k: (H_kv, n, d) keys; H is a multiple of H_kv.
        v: (H_kv, n, e) values.
        scale: of the scores.
        out: (n, H, e) bfloat16, written.
        lse: (H, n) float32, written.
    """
    heads, n, d = q.shape
    groups = k.shape[0]
    keys, values = _float(k).transpose(1, 2), v.contiguous()
    rows = max(16, min(96, _SCORES // (heads * n)))
    step = -(-n // max(1, round(n / rows)))
    mask = torch.full((step, step), -math.inf).triu_(1)
    for a in range(0, n, step):
        b = min(n, a + step)
        shape = groups, heads // groups * (b - a), b
        queries = _float(q[:, a:b]).mul_(scale).view(groups, -1, d)
        scores, shares, rounded = _buffers(math.prod(shape))
        scores, shares, rounded = scores.view(shape), shares.view(shape), rounded.view(shape)
        torch.bmm(queries, keys[:, :, :b], out=scores)
        scores.view(heads, b - a, b)[..., a:].add_(mask[: b - a, : b - a])
        torch.softmax(scores, -1, out=shares)
        rounded.copy_(shares)
        out[a:b] = torch.bmm(rounded, values[:, :b]).view(heads, b - a, -1).transpose(0, 1)
        # The largest score and its share: s = lse + ln p.
        lse[:, a:b] = (scores.amax(-1) - shares.amax(-1).log_()).view(heads, b - a)


def _float(x: Tensor) -> Tensor:
    return x.to(torch.float32, memory_format=torch.contiguous_format)


def _buffers(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for n scores, kept from call to call: fresh memory of this size costs more than the softmax."""
    found: tuple[Tensor, Tensor, Tensor] | None = getattr(_scratch, "buffers", None)
    if found is None or len(found[0]) < n:
        found = torch.empty(n), torch.empty(n), torch.empty(n, dtype=torch.bfloat16)
        _scratch.buffers = found
    return found[0][:n], found[1][:n], found[2][:n]


@functools.cache
def _amx() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())
