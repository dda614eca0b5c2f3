"""Softmax attention that also gives its log-sum-exps, by what runs fastest on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_rewards.engine import attention_cpu as cpu_attention

if TYPE_CHECKING:
    from latent_rewards.engine.tree_plan import TreePlan


def kernel_for(query: Tensor, softcap: float) -> Kernel:
    """What takes these queries."""
    device, half = query.device.type, query.dtype in (torch.float16, torch.bfloat16)
    if device == "cpu" and not softcap:
        return FlashCPU()
    return FlashCUDA() if device == "cuda" and half and query.shape[-1] <= 256 and not softcap else Kernel(softcap)


class Kernel:
    """Plain float32 attention for what the fused kernels do not cover (soft-capping, other devices).

    Args:
        softcap: largest score, reached softly; 0 is none.
    """

    def __init__(self, softcap: float = 0.0) -> None:
        self.softcap = softcap

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False) -> tuple[Tensor, Tensor]:
        """(n, H, e) attention of (1, H, n, d) queries to (H_kv, P, d) keys, and its (H, n) log-sum-exps in float32."""
        groups = q.shape[1] // k.shape[0]
        k, v = (x.repeat_interleave(groups, 0).float() for x in (k, v))
        scores = q[0].float() @ k.transpose(-1, -2) * scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if causal:
            n = scores.shape[-1]
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
        lse = torch.logsumexp(scores, -1)
        return (torch.exp(scores - lse[..., None]) @ v).transpose(0, 1).to(q.dtype), lse

    def own(self, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float) -> tuple[Tensor, Tensor]:
        """(1, T, H, e) causal attention of every node of a pack to itself, and its (H, T) log-sum-exps."""
        out = q.new_empty(1, q.shape[2], q.shape[1], v.shape[-1])
        lse = torch.empty(q.shape[1], q.shape[2], dtype=torch.float32, device=q.device)
        for at in (span.tokens for span in plan.spans):
            out[0, at], lse[:, at] = self.attend(q[:, :, at], k[0, :, at], v[0, :, at], scale, causal=True)
        return out, lse


class FlashCPU(Kernel):
    """PyTorch's CPU flash attention; grouped queries natively.

    Without AMX it runs in float32, which is a tenth faster there than bfloat16, and `cpu_attention` takes long nodes.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False) -> tuple[Tensor, Tensor]:
        """As `Kernel.attend`."""
        (heads, n), dtype = q.shape[1:3], q.dtype
        upcast = cpu_attention.float32_pays(q)
        if upcast and causal and n >= cpu_attention.SHORTEST:
            out, lse = q.new_empty(n, heads, v.shape[-1]), q.new_empty(heads, n, dtype=torch.float32)
            cpu_attention.causal_attention(q[0], k, v, scale, out, lse)
            return out, lse
        if upcast:
            q, k, v = q.float(), k.float(), v.float()
        if upcast and not causal:  # all heads of a group as one: the kernel's products get larger
            q = q.reshape(1, len(k), heads // len(k) * n, q.shape[-1])
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(q, k[None], v[None], 0.0, causal, scale=scale)
        return out.reshape(heads, n, -1).transpose(0, 1).to(dtype), lse.reshape(heads, n)


class FlashCUDA(Kernel):
    """Variable-length flash attention: one launch for all nodes of the batch."""

    def own(self, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float) -> tuple[Tensor, Tensor]:
        """As `Kernel.own`."""
        if plan.ends is None or plan.ends.device != q.device:
            plan.ends = torch.tensor([0, *(span.stop for span in plan.spans)], dtype=torch.int32, device=q.device)
        ends, longest = plan.ends, max(span.stop - span.start for span in plan.spans)
        packed = (x[0].transpose(0, 1) for x in (q, k, v))
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *packed, ends, ends, longest, longest, 0.0, True, False, scale=scale
        )
        return out[None], lse

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False) -> tuple[Tensor, Tensor]:
        """As `Kernel.attend`."""
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q.transpose(1, 2), k.transpose(0, 1)[None], v.transpose(0, 1)[None], None, None, q.shape[2], k.shape[1],
            0.0, causal, False, scale=scale,
        )  # fmt: skip
        return out[0], lse[0]
