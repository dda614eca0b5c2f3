"""Attention over a packed prefix tree: every token sees its ancestors and, causally, its own node. No mask, no padding.

Each node attends twice: to the keys of all its ancestors (whole, one call for all siblings) and to itself (causally).
The two results are merged by their log-sum-exps, which is exact.

Source: Juravsky et al. 2024, "Hydragen" (arXiv 2402.05099), generalised from one shared prefix to a tree.
"""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

from latent_rewards.engine.attention_kernels import Kernel, kernel_for
from latent_rewards.engine.tree_plan import (
    CannotShareError,
    CaughtKeysError,
    KeyValue,
    TreePlan,
    active_plan,
)

NAME = "latent_rewards_tree"


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
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Entry point for transformers' AttentionInterface: (1, H, T, d) queries to (1, T, H, d) outputs."""
    if attention_mask is not None or any(kwargs.get(k) is not None for k in ("s_aux", "position_bias", "cache")):
        raise CannotShareError("its attention adds biases or sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = -1 if sliding_window is None else int(sliding_window)
    cap = 0.0 if softcap is None else float(softcap)
    return tree_attention(query, key, value, scale, window, cap), None


def mask_forward(*, local_size: int | None = None, use_vmap: bool = False, **_: object) -> None:
    """Entry point for transformers' AttentionMaskInterface: no mask, but what the model wanted to mask is looked at.

    Some models have their window or chunk in the mask alone (Qwen2-MoE, Llama 4).
    """
    plan = active_plan("a tree mask was asked for")
    if use_vmap:
        raise CannotShareError("it masks its attention in a way of its own")
    if local_size is not None:
        plan.see(int(local_size))


@torch.library.custom_op("latent_rewards::tree_attention", mutates_args=())
def tree_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    """(1, T, H, d) attention of the packed tree that this thread runs; opaque to torch.compile."""
    plan = active_plan("tree attention was called")
    if window > 0:
        plan.see(window)
    if plan.layer >= plan.n_layers:
        raise CannotShareError(f"it has more than {plan.n_layers} attentions in {plan.n_layers} layers")
    kernel = kernel_for(query, softcap)
    if plan.caught is not None:
        return _attend_rows(kernel, query, plan, scale)
    layer = plan.layer
    for i, kept in plan.kept.items():
        span = plan.spans[i]
        kept.append((_by_token(key[0, :, span.tokens]), _by_token(value[0, :, span.tokens])))
    if plan._catch:
        plan.caught = key, value
        raise CaughtKeysError
    plan.layer += 1
    out, lse = kernel.own(query, key, value, plan, scale)
    memo: dict[int, KeyValue | None] = {}
    for first, start, stop in plan.groups:
        prefix = _prefix(plan, first, layer, key, value, memo)
        if prefix is None:
            continue
        attended, lse_prefix = kernel.attend(query[:, :, start:stop], *prefix, scale)
        share = torch.sigmoid(lse_prefix - lse[:, start:stop])[..., None].transpose(0, 1).to(out.dtype)
        out[0, start:stop].lerp_(attended, share)
    return out


def _by_token(x: Tensor) -> Tensor:
    """A copy of (H_kv, n, d) that lies token by token, as the prefix cache gives it back, so that both round alike."""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def _attend_rows(kernel: Kernel, query: Tensor, plan: TreePlan, scale: float) -> Tensor:
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
        out[0, r : r + 1], lse[:, r : r + 1] = kernel.attend(query[:, :, r : r + 1], *own, scale)
    memo: dict[int, KeyValue | None] = {}
    for first, start, stop in plan.groups:
        at = [r for r, row in enumerate(plan.rows) if start <= row < stop]
        prefix = _prefix(plan, first, layer, key, value, memo) if at else None
        if prefix is not None:
            attended, lse_prefix = kernel.attend(query[:, :, at], *prefix, scale)
            share = torch.sigmoid(lse_prefix - lse[:, at])[..., None].transpose(0, 1).to(out.dtype)
            out[0, at] = out[0, at].lerp(attended, share)
    return out


@tree_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


def _prefix(
    plan: TreePlan, index: int, layer: int, key: Tensor, value: Tensor, memo: dict[int, KeyValue | None]
) -> KeyValue | None:
    """(H_kv, P, d) keys and values of all ancestors of a span at one layer; None at the top."""
    parent = plan.spans[index].parent
    if parent < 0:
        return _join([entry[layer] for entry in plan.spans[index].past])
    if parent not in memo:
        above = plan.spans[parent].tokens
        before = _prefix(plan, parent, layer, key, value, memo)
        memo[parent] = _join([*([] if before is None else [before]), (key[0, :, above], value[0, :, above])])
    return memo[parent]


def _join(parts: list[KeyValue]) -> KeyValue | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return torch.cat([k for k, _ in parts], dim=1), torch.cat([v for _, v in parts], dim=1)
