"""Attention over a packed prefix tree: every token sees its ancestors and, causally, its own node. No mask, no padding.

Each node attends twice: to the keys of all its ancestors (whole, one call for all siblings) and to itself (causally).
The two results are merged by their log-sum-exps, which is exact.

Source: Juravsky et al. 2024, "Hydragen" (arXiv 2402.05099), generalised from one shared prefix to a tree.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latent_rewards.engine import attention_cpu as cpu_attention

NAME = "latent_rewards_tree"

_active = threading.local()


class CannotShareError(RuntimeError):
    """This model's attention does something that a packed prefix tree does not reproduce."""


class WindowError(CannotShareError):
    """A layer sees less than the whole text; shorter texts can share."""


class CaughtKeysError(RuntimeError):
    """Leaves a layer once its keys and values are caught."""


@dataclass
class Span:
    """One node of the packed batch: tokens start..stop, below `parent` (index into the spans, -1: none)."""

    start: int
    stop: int
    parent: int
    past: Sequence[list[tuple[Tensor, Tensor]]] = ()
    keep: bool = False
    end: int = 0

    @property
    def tokens(self) -> slice:
        """Where its tokens lie in the pack."""
        return slice(self.start, self.stop)


@dataclass
class TreePlan:
    """What the attention of one packed forward needs; filled with keys and values as the layers run.

    Attributes:
        spans: nodes in packed order, siblings side by side. `past` holds, for nodes whose ancestors are not in this
            batch, the ancestors' (K, V) per layer, outermost first.
        kept: span -> one (K, V) pair per layer run so far, for spans with `keep`.
        n_layers: how many attention layers there shall be.
        window: most tokens that every layer sees, as far as the layers that ran have said.
        layer: how many attention layers have run.
        caught: keys and values of all tokens at a layer that was left there, see `catching`.
        rows: packed tokens whose queries alone come next, to meet `caught`.
    """

    spans: list[Span]
    kept: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    n_layers: int = 1 << 30
    window: int = 1 << 62
    layer: int = 0
    caught: tuple[Tensor, Tensor] | None = None
    rows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = {i: [] for i, s in enumerate(self.spans) if s.keep}
        self.longest = max(s.end for s in self.spans)
        self.ends: Tensor | None = None
        self._catch = False
        self.groups: list[tuple[int, int, int]] = []
        for i, span in enumerate(self.spans):
            last = self.spans[self.groups[-1][0]] if self.groups else None
            if last is not None and (last.parent, id(last.past)) == (span.parent, id(span.past)):
                first, start, _ = self.groups[-1]
                self.groups[-1] = (first, start, span.stop)
            else:
                self.groups.append((i, span.start, span.stop))

    def see(self, window: int) -> None:
        """Note that some layer sees so many tokens only.

        Raises:
            WindowError: they are fewer than the longest text has.
        """
        self.window = min(self.window, window)
        if window < self.longest:
            raise WindowError(f"a sliding window or chunk of {window} tokens, shorter than the texts")

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """The next attention leaves its layer with CaughtKeysError; its keys and values are in `caught`."""
        self._catch = True
        try:
            yield
        finally:
            self._catch = False


class following:
    """Context in which this thread's tree attention follows a plan."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan

    def __enter__(self) -> TreePlan:
        _active.plan = self.plan
        return self.plan

    def __exit__(self, *_: object) -> None:
        _active.plan = None


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Entry point for transformers' AttentionInterface: (1, H, T, d) queries to (1, T, H, d) outputs."""
    if attention_mask is not None or any(kwargs.get(k) is not None for k in ("s_aux", "position_bias", "cache")):
        raise CannotShareError("attention with extra biases or sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = -1 if sliding_window is None else int(sliding_window)
    cap = 0.0 if softcap is None else float(softcap)
    return tree_attention(query, key, value, scale, window, cap), None


def mask_forward(*, local_size: int | None = None, use_vmap: bool = False, **_: Any) -> None:
    """Entry point for transformers' AttentionMaskInterface: no mask, but what the model wanted to mask is looked at.

    Some models have their window or chunk in the mask alone (Qwen2-MoE, Llama 4).
    """
    plan: TreePlan | None = getattr(_active, "plan", None)
    if plan is None:
        raise RuntimeError("a tree mask was asked for outside a packed forward")
    if use_vmap:
        raise CannotShareError("a mask of its own")
    if local_size is not None:
        plan.see(int(local_size))


@torch.library.custom_op("latent_rewards::tree_attention", mutates_args=())
def tree_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    """(1, T, H, d) attention of the packed tree that this thread runs; opaque to torch.compile."""
    plan: TreePlan | None = getattr(_active, "plan", None)
    if plan is None:
        raise RuntimeError("tree attention was called outside a packed forward")
    if window > 0:
        plan.see(window)
    if plan.layer >= plan.n_layers:
        raise CannotShareError(f"more than {plan.n_layers} attentions in {plan.n_layers} layers")
    attend = _attention_for(query, softcap)
    if plan.caught is not None:
        return _attend_rows(attend, query, plan, scale, softcap)
    layer = plan.layer
    for i, kept in plan.kept.items():
        span = plan.spans[i]
        kept.append((_by_token(key[0, :, span.tokens]), _by_token(value[0, :, span.tokens])))
    if plan._catch:
        plan.caught = key, value
        raise CaughtKeysError
    plan.layer += 1
    out, lse = attend.own(query, key, value, plan, scale, softcap)
    memo: dict[int, tuple[Tensor, Tensor] | None] = {}
    for first, start, stop in plan.groups:
        prefix = _prefix(plan, first, layer, key, value, memo)
        if prefix is None:
            continue
        o, lse_prefix = attend.whole(query[:, :, start:stop], *prefix, scale, softcap)
        share = torch.sigmoid(lse_prefix - lse[:, start:stop])[..., None].transpose(0, 1).to(out.dtype)
        out[0, start:stop].lerp_(o, share)
    return out


def _by_token(x: Tensor) -> Tensor:
    """A copy of (H_kv, n, d) that lies token by token, as the prefix cache gives it back, so that both round alike."""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def _attend_rows(attend: Any, query: Tensor, plan: TreePlan, scale: float, softcap: float) -> Tensor:
    """Attention of `plan.rows` alone, (1, H, R, d) queries, over the keys and values caught for all tokens."""
    assert plan.caught is not None
    key, value = plan.caught
    layer, plan.caught = plan.layer, None
    plan.layer += 1
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    lse = torch.empty(query.shape[1], query.shape[2], dtype=torch.float32, device=query.device)
    ends = [span.stop for span in plan.spans]
    first_of = [bisect.bisect_right(ends, row) for row in plan.rows]
    for r, row in enumerate(plan.rows):
        start = plan.spans[first_of[r]].start
        own = key[0, :, start : row + 1], value[0, :, start : row + 1]
        out[0, r : r + 1], lse[:, r : r + 1] = attend.whole(query[:, :, r : r + 1], *own, scale, softcap)
    memo: dict[int, tuple[Tensor, Tensor] | None] = {}
    for first, start, stop in plan.groups:
        at = [r for r, row in enumerate(plan.rows) if start <= row < stop]
        prefix = _prefix(plan, first, layer, key, value, memo) if at else None
        if prefix is not None:
            o, lse_prefix = attend.whole(query[:, :, at], *prefix, scale, softcap)
            share = torch.sigmoid(lse_prefix - lse[:, at])[..., None].transpose(0, 1).to(out.dtype)
            out[0, at] = out[0, at].lerp(o, share)
    return out


@tree_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


def _prefix(
    plan: TreePlan,
    index: int,
    layer: int,
    key: Tensor,
    value: Tensor,
    memo: dict[int, tuple[Tensor, Tensor] | None],
) -> tuple[Tensor, Tensor] | None:
    """(H_kv, P, d) keys and values of all ancestors of a span at one layer; None at the top."""
    span = plan.spans[index]
    if span.parent < 0:
        parts = [entry[layer] for entry in span.past]
    else:
        if span.parent not in memo:
            above = plan.spans[span.parent]
            before = _prefix(plan, span.parent, layer, key, value, memo)
            own = (key[0, :, above.tokens], value[0, :, above.tokens])
            memo[span.parent] = _join([before, own] if before is not None else [own])
        return memo[span.parent]
    return _join(parts) if parts else None


def _join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([k for k, _ in parts], dim=1), torch.cat([v for _, v in parts], dim=1)


def _attention_for(query: Tensor, softcap: float) -> Any:
    if softcap:
        return _Math
    if query.device.type == "cpu":
        return _FlashCPU
    if query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256:
        return _FlashCUDA
    return _Math


class _FlashCPU:
    """PyTorch's CPU flash attention, which also gives the log-sum-exp; grouped queries natively.

    Without AMX it runs in float32, which is a tenth faster there than bfloat16, and `cpu_attention` takes long nodes.
    """

    @staticmethod
    def own(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out = q.new_empty(1, q.shape[2], q.shape[1], v.shape[-1])
        lse = torch.empty(q.shape[1], q.shape[2], dtype=torch.float32)
        upcast = cpu_attention.float32_pays(q)
        for span in plan.spans:
            part = [x[:, :, span.tokens] for x in (q, k, v)]
            if upcast and span.stop - span.start >= cpu_attention.SHORTEST:
                rows, keys, values = (x[0] for x in part)
                cpu_attention.causal_attention(rows, keys, values, scale, out[0, span.tokens], lse[:, span.tokens])
                continue
            o, norm = flash(*(x.float() if upcast else x for x in part), 0.0, True, scale=scale)
            out[0, span.tokens] = o[0].transpose(0, 1)
            lse[:, span.tokens] = norm[0]
        return out, lse

    @staticmethod
    def whole(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        if not cpu_attention.float32_pays(q):
            o, norm = flash(q, k[None], v[None], 0.0, False, scale=scale)
            return o[0].transpose(0, 1), norm[0]
        # All heads of a group as one: the kernel's products get larger.
        heads, n = q.shape[1:3]
        rows = q.float().reshape(1, len(k), heads // len(k) * n, q.shape[-1])
        o, norm = flash(rows, k.float()[None], v.float()[None], 0.0, False, scale=scale)
        return o.reshape(heads, n, -1).transpose(0, 1).to(q.dtype), norm.reshape(heads, n)


class _FlashCUDA:
    """Variable-length flash attention: one launch for all nodes of the batch."""

    @staticmethod
    def own(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        if plan.ends is None or plan.ends.device != q.device:
            plan.ends = torch.tensor([0, *(span.stop for span in plan.spans)], dtype=torch.int32, device=q.device)
        ends, longest = plan.ends, max(span.stop - span.start for span in plan.spans)
        packed = (x[0].transpose(0, 1) for x in (q, k, v))
        o, lse, *_ = torch.ops.aten._flash_attention_forward(
            *packed, ends, ends, longest, longest, 0.0, True, False, scale=scale
        )
        return o[None], lse

    @staticmethod
    def whole(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        o, lse, *_ = torch.ops.aten._flash_attention_forward(
            q.transpose(1, 2), k.transpose(0, 1)[None], v.transpose(0, 1)[None], None, None, q.shape[2], k.shape[1],
            0.0, False, False, scale=scale,
        )  # fmt: skip
        return o[0], lse[0]


class _Math:
    """Plain float32 attention for what the fused kernels do not cover (soft-capping, other devices)."""

    @staticmethod
    def own(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        out = q.new_empty(1, q.shape[2], q.shape[1], v.shape[-1])
        lse = torch.empty(q.shape[1], q.shape[2], dtype=torch.float32, device=q.device)
        for span in plan.spans:
            part = (q[:, :, span.tokens], k[0, :, span.tokens], v[0, :, span.tokens])
            out[0, span.tokens], lse[:, span.tokens] = _Math._attend(*part, scale, softcap, causal=True)
        return out, lse

    @staticmethod
    def whole(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        return _Math._attend(q, k, v, scale, softcap, causal=False)

    @staticmethod
    def _attend(
        q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, *, causal: bool
    ) -> tuple[Tensor, Tensor]:
        groups = q.shape[1] // k.shape[0]
        k, v = (x.repeat_interleave(groups, 0).float() for x in (k, v))
        scores = q[0].float() @ k.transpose(-1, -2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if causal:
            n = scores.shape[-1]
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
        lse = torch.logsumexp(scores, -1)
        return (torch.exp(scores - lse[..., None]) @ v).transpose(0, 1).to(q.dtype), lse
