"""Softmax attention that also gives its log-sum-exps, by what runs fastest on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from latent_rewards.engine import attention_cpu

if TYPE_CHECKING:
    from latent_rewards.engine.local import Local, Paths
    from latent_rewards.engine.tree_plan import Span, TreePlan

_ROWS_CPU, _ROWS_ELSEWHERE = 64, 512  # queries of one block of local attention


def kernel_for(query: Tensor, value: Tensor, softcap: float) -> Kernel:
    """What takes these queries and values."""
    most = max(query.shape[-1], value.shape[-1])
    device, half = query.device.type, query.dtype in (torch.float16, torch.bfloat16)
    if device == "cpu" and not softcap:
        return FlashCPU()
    return FlashCUDA() if device == "cuda" and half and most <= 256 and not softcap else Kernel(softcap)


class Kernel:
    """Plain float32 attention for what the fused kernels do not cover (soft-capping, other devices).

    Args:
        softcap: largest score, reached softly; 0 is none.
    """

    def __init__(self, softcap: float = 0.0) -> None:
        self.softcap = softcap

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(n, H, e) attention of (1, H, n, d) queries to (H_kv, P, d) keys, and its (H, n) log-sum-exps in float32.

        Args:
            q: queries.
            k: keys; H is a multiple of H_kv.
            v: (H_kv, P, e) values.
            scale: of the scores.
            causal: query i sees key j where j <= i; n = P then.
            mask: (n, P) added to the scores; every query sees a key.
        """
        (heads, n), groups, dtype = q.shape[1:3], k.shape[0], q.dtype
        q, k, v = q[0].reshape(groups, heads // groups * n, -1).float(), k.float(), v.float()
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale).view(heads, n, -1)
        if self.softcap:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if causal:
            mask = scores.new_full((n, n), -torch.inf).triu_(1)
        if mask is not None:
            scores += mask
        lse = torch.logsumexp(scores, -1)
        shares = (scores - lse[..., None]).exp_().view(groups, -1, k.shape[1])
        return torch.bmm(shares, v).view(heads, n, -1).transpose(0, 1).to(dtype), lse

    def own(
        self, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, spans: Sequence[Span], scale: float
    ) -> tuple[Tensor, Tensor]:
        """(1, T, H, e) causal attention of nodes of a pack to themselves, and (H, T) log-sum-exps; else undefined."""
        out = q.new_empty(1, q.shape[2], q.shape[1], v.shape[-1])
        lse = torch.empty(q.shape[1], q.shape[2], dtype=torch.float32, device=q.device)
        for at in (span.tokens for span in spans):
            out[0, at], lse[:, at] = self.attend(q[:, :, at], k[0, :, at], v[0, :, at], scale, causal=True)
        return out, lse

    def joins(self, n: int, above: int, dtype: torch.dtype) -> bool:
        """Whether a node of n tokens takes the keys above it together with its own (`path`), rather than merged."""
        return False

    def path(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, local: Local | None, path: range, out: Tensor,
        lse: Tensor | None,
    ) -> None:  # fmt: skip
        """Write attention of a node to its path: to all keys up to its own, or to what a layer shows of them.

        Args:
            q: (1, H, n, d) queries.
            k: (H_kv, P, d) keys; the last n are those of the queries.
            v: (H_kv, P, e) values.
            scale: of the scores.
            local: what a query sees; None, which is all, for nodes that are joined.
            path: positions of the queries.
            out: (n, H, e), written.
            lse: (H, n) float32 log-sum-exps, written if they are wanted.
        """
        assert local is not None
        n, start = len(path), path.stop - k.shape[1]
        step = _ROWS_CPU if q.device.type == "cpu" else _ROWS_ELSEWHERE
        for a in range(0, n, step):
            rows = path[a : a + step]
            keys = range(max(start, local.first(rows.start)), rows.stop)
            at, seen = slice(a, a + step), slice(keys.start - start, keys.stop - start)
            mask = local.mask(rows, keys, q.device)
            out[at], found = self.attend(q[:, :, at], k[:, seen], v[:, seen], scale, mask=mask)
            if lse is not None:
                lse[:, at] = found


class FlashCPU(Kernel):
    """PyTorch's CPU flash attention; grouped queries natively.

    Without AMX bfloat16 runs in float32, which is a tenth faster there. Long nodes run in products of our own.
    """

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Kernel.attend`."""
        (heads, n), dtype = q.shape[1:3], q.dtype
        if upcast := attention_cpu.float32_pays(q.dtype):
            q, k, v = q.float(), k.float(), v.float()
        if upcast and not causal and mask is None:  # all heads of a group as one: the kernel's products get larger
            q = q.reshape(1, len(k), heads // len(k) * n, q.shape[-1])
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        added = None if mask is None else mask.to(q.dtype)[None, None]
        size, (q, k, v) = v.shape[-1], _one_size(q, k, v)
        out, lse = flash(q, k[None], v[None], 0.0, causal, attn_mask=added, scale=scale)
        return out.reshape(heads, n, -1)[..., :size].transpose(0, 1).to(dtype), lse.reshape(heads, n)

    def joins(self, n: int, above: int, dtype: torch.dtype) -> bool:
        """As `Kernel.joins`."""
        return attention_cpu.takes(dtype) and attention_cpu.pays_for(n, above)

    def path(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, local: Local | None, path: range, out: Tensor,
        lse: Tensor | None,
    ) -> None:  # fmt: skip
        """As `Kernel.path`."""
        if attention_cpu.takes(q.dtype):
            attention_cpu.path_attention(q[0], k, v, scale, local, path, out, lse)
        else:
            super().path(q, k, v, scale, local, path, out, lse)


class FlashCUDA(Kernel):
    """Variable-length flash attention: one launch for all nodes of the batch."""

    def own(
        self, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, spans: Sequence[Span], scale: float
    ) -> tuple[Tensor, Tensor]:
        """As `Kernel.own`, of all nodes whatever is asked for."""
        if plan.ends is None or plan.ends.device != q.device:
            plan.ends = torch.tensor([0, *(span.stop for span in plan.spans)], dtype=torch.int32, device=q.device)
        ends, longest = plan.ends, max(span.stop - span.start for span in plan.spans)
        packed = (x[0].transpose(0, 1) for x in _one_size(q, k, v))
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *packed, ends, ends, longest, longest, 0.0, True, False, scale=scale
        )
        return out[None, ..., : v.shape[-1]], lse

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Kernel.attend`, without masks."""
        assert mask is None
        size, (q, k, v) = v.shape[-1], _one_size(q, k, v)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q.transpose(1, 2), k.transpose(0, 1)[None], v.transpose(0, 1)[None], None, None, q.shape[2], k.shape[1],
            0.0, causal, False, scale=scale,
        )  # fmt: skip
        return out[0, ..., :size], lse[0]

    def paths(self, q: Tensor, k: Tensor, v: Tensor, paths: Paths, scale: float, window: int) -> tuple[Tensor, Tensor]:
        """(1, T, H, e) attention of pieces of nodes to what they see of their paths, and (H, T) log-sum-exps.

        Args:
            q: (1, H, T, d) queries.
            k: (H_kv, S, d) keys of the pack and of what lies above it.
            v: (H_kv, S, e) values.
            paths: rows of `k` for each piece; its last key is that of its last query.
            scale: of the scores.
            window: how many keys a query sees; 0 is all up to its own.
        """
        size, (q, k, v) = v.shape[-1], _one_size(q, k, v)
        keys, values = (x.index_select(1, paths.rows).transpose(0, 1) for x in (k, v))
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q[0].transpose(0, 1), keys, values, paths.query_ends, paths.key_ends, paths.most_queries, paths.most_keys,
            0.0, True, False, scale=scale, window_size_left=window - 1 if window else None,
            window_size_right=0 if window else None,
        )  # fmt: skip
        return out[None, ..., :size], lse


def _one_size(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Heads of one size, as fused kernels want them: zeros more change no score and no other value (DeepSeek)."""
    size = max(x.shape[-1] for x in tensors)
    return tuple(x if x.shape[-1] == size else pad(x, (0, size - x.shape[-1])) for x in tensors)
