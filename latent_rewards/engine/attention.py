"""Attention over a packed prefix tree: every token sees its ancestors and, causally, its own node. No mask, no padding.

Each node attends twice: to the keys of all its ancestors (whole, one call for all siblings) and to itself (causally).
The two results are merged by their log-sum-exps, which is exact. Where a layer shows less (a window, a chunk) and texts
are longer, each node attends once, to that part of its path; on CPUs a long node below a short prefix does, too.

Source: Juravsky et al. 2024, "Hydragen" (arXiv 2402.05099), generalised from one shared prefix to a tree. A sink is one
more score without a value (gpt-oss): by the same merge, the output times sigmoid(lse - sink).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latent_rewards.engine.attention_kernels import FlashCUDA, Kernel, kernel_for
from latent_rewards.engine.local import Local, from_marker, is_marker, paths_of, wanted_local
from latent_rewards.engine.tree_plan import (
    CannotShareError,
    CaughtKeysError,
    KeyValue,
    Span,
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
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Entry point for transformers' AttentionInterface: (1, H, T, d) queries to (1, T, H, d) outputs.

    The mask says what a layer sees, as in transformers' own eager attention; `sliding_window` counts where a model asks
    for no mask.
    """
    if any(kwargs.get(k) is not None for k in ("position_bias", "cache")):
        raise CannotShareError("its attention adds biases")
    if attention_mask is not None and not is_marker(attention_mask):
        raise CannotShareError("its attention adds a mask of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = -1 if sliding_window is None else int(sliding_window)
    cap = 0.0 if softcap is None else float(softcap)
    return tree_attention(query, key, value, scale, cap, window, attention_mask, s_aux, _temperature(module)), None


def mask_forward(*, mask_function: Callable[..., object], use_vmap: bool = False, **_: object) -> Tensor | None:
    """Entry point for transformers' AttentionMaskInterface: no mask, but a marker of what a layer shows if not all.

    Some models have their window or chunk in the mask alone (Qwen2-MoE, Llama 4).
    """
    plan = active_plan("a tree mask was asked for")
    if use_vmap:
        raise CannotShareError("it masks its attention in a way of its own")
    plan.masked, local = True, wanted_local(mask_function)
    return local.marker() if local is not None and local.first(plan.longest - 1) else None


def _temperature(module: torch.nn.Module) -> list[float]:
    """Llama 4's (floor_scale, attn_scale) where a layer has scaled queries by their place in the call, or none."""
    if getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True):
        return [float(getattr(module, name)) for name in ("floor_scale", "attn_scale")]
    return []


@torch.library.custom_op("latent_rewards::tree_attention", mutates_args=())
def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    softcap: float,
    window: int,
    mask: Tensor | None,
    sinks: Tensor | None,
    temperature: Sequence[float],
) -> Tensor:
    """(1, T, H, d) attention of the packed tree that this thread runs; opaque to torch.compile."""
    plan = active_plan("tree attention was called")
    if plan.layer >= plan.n_layers:
        raise CannotShareError(f"it has more than {plan.n_layers} attentions in {plan.n_layers} layers")
    local = Local("window", window) if window > 0 and not plan.masked else None
    if mask is not None:
        local = from_marker(mask)
    kernel, layer = kernel_for(query, value, softcap), plan.layer
    if plan.caught is None:
        for i, kept in plan.kept.items():
            span = plan.spans[i]
            kept.append((_by_token(key[0, :, span.tokens]), _by_token(value[0, :, span.tokens])))
        if plan._catch:
            plan.caught = key, value
            raise CaughtKeysError
    plan.layer += 1
    rows = None if plan.caught is None else plan.rows
    if temperature:
        query = _by_path(query, plan, rows, *temperature)
    if plan.caught is None:
        out, lse = _attend(kernel, query, key, value, plan, layer, scale, local, wants_lse=sinks is not None)
    else:
        out, lse = _attend_rows(kernel, query, plan, layer, scale, local)
    if sinks is not None:
        out *= torch.sigmoid(lse - sinks.float()[:, None]).t()[None, ..., None].to(out.dtype)
    return out


@tree_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    softcap: float,
    window: int,
    mask: Tensor | None,
    sinks: Tensor | None,
    temperature: Sequence[float],
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


def _by_token(x: Tensor) -> Tensor:
    """A copy of (H_kv, n, d) that lies token by token, as the prefix cache gives it back, so that both round alike."""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def _by_path(query: Tensor, plan: TreePlan, rows: list[int] | None, floor: float, strength: float) -> Tensor:
    """Queries that were scaled by their place in the call, scaled by that on their path."""
    at = plan.positions if rows is None else [plan.positions[row] for row in rows]
    ours, theirs = (
        1 + strength * torch.log1p(((torch.tensor(places) + 1.0) / floor).floor()) for places in (at, range(len(at)))
    )
    return query if torch.equal(ours, theirs) else query * (ours / theirs)[:, None].to(query)


def _attend(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, layer: int, scale: float,
    local: Local | None, *, wants_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(1, T, H, e) attention of all tokens of a pack, and (H, T) log-sum-exps, undefined in part if not wanted."""
    whole = [group for group in plan.groups if group.sees_all(local)]
    if local is not None and len(whole) < len(plan.groups) and isinstance(kernel, FlashCUDA):
        return _attend_paths(kernel, query, key, value, plan, layer, scale, local)
    alone = [span for group in whole for span in group.spans if not _joined(kernel, span, query.dtype)]
    out, lse = kernel.own(query, key, value, plan, alone, scale)
    memo: dict[int, KeyValue | None] = {}
    for group in plan.groups:
        prefix = _prefix(plan, group.first, layer, key, value, memo)
        shown = None if group.sees_all(local) else local
        merged = []
        for span in group.spans:
            if shown is None and not _joined(kernel, span, query.dtype):
                merged.append(span)
                continue
            at, first = span.tokens, shown.first(span.path.start) if shown else 0
            seen = _seen(prefix, key[0, :, at], value[0, :, at], span.path, first)
            kernel.path(query[:, :, at], *seen, scale, shown, span.path, out[0, at], lse[:, at] if wants_lse else None)
        if prefix is not None and merged:
            every = len(merged) == len(group.spans)
            rows = group.tokens if every else [row for span in merged for row in range(span.start, span.stop)]
            _merge(out, lse, rows, *kernel.attend(query[:, :, rows], *prefix, scale))
    return out, lse


def _joined(kernel: Kernel, span: Span, dtype: torch.dtype) -> bool:
    return kernel.joins(span.stop - span.start, span.path.start, dtype)


def _merge(out: Tensor, lse: Tensor, at: slice | list[int], attended: Tensor, lse_attended: Tensor) -> None:
    """Take (n, H, e) attention to other keys, with its (H, n) log-sum-exps, into that of rows `at`."""
    share = torch.sigmoid(lse_attended - lse[:, at])[..., None].transpose(0, 1).to(out.dtype)
    rows = out[0, at].lerp_(attended, share)
    if isinstance(at, list):
        out[0, at] = rows
    lse[:, at] = torch.logaddexp(lse[:, at], lse_attended)


def _seen(prefix: KeyValue | None, key: Tensor, value: Tensor, path: range, first: int) -> KeyValue:
    """Keys and values of a node, and of what lies above it from position `first` on."""
    if prefix is None or first >= path.start:
        return key, value
    above = slice(prefix[0].shape[1] - path.start + first, None)
    return torch.cat([prefix[0][:, above], key], 1), torch.cat([prefix[1][:, above], value], 1)


def _attend_paths(
    kernel: FlashCUDA, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, layer: int, scale: float, local: Local
) -> tuple[Tensor, Tensor]:
    """As `_attend`, every node to what it sees of its path, in one launch."""
    if local not in plan.paths:
        plan.paths[local] = paths_of(plan.spans, local, query.device)
    pasts = {id(span.past): span.past for span in plan.spans if span.past}.values()
    above = [entry[layer] for past in pasts for entry in past]
    keys, values = (torch.cat([*(kv[i] for kv in above), own[0]], 1) for i, own in enumerate((key, value)))
    window = local.size if local.kind == "window" else 0
    return kernel.paths(query, keys, values, plan.paths[local], scale, window)


def _attend_rows(
    kernel: Kernel, query: Tensor, plan: TreePlan, layer: int, scale: float, local: Local | None
) -> tuple[Tensor, Tensor]:
    """As `_attend` for `plan.rows` alone, (1, H, R, d) queries, over the keys and values caught for all tokens."""
    assert plan.caught is not None
    (key, value), plan.caught = plan.caught, None
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    lse = torch.empty(query.shape[1], query.shape[2], dtype=torch.float32, device=query.device)
    ends = [span.stop for span in plan.spans]
    for r, row in enumerate(plan.rows):
        span = plan.spans[bisect.bisect_right(ends, row)]
        first = span.start + max(0, (local.first(plan.positions[row]) if local else 0) - span.path.start)
        own = key[0, :, first : row + 1], value[0, :, first : row + 1]
        out[0, r : r + 1], lse[:, r : r + 1] = kernel.attend(query[:, :, r : r + 1], *own, scale)
    memo: dict[int, KeyValue | None] = {}
    for group in plan.groups:
        at = [r for r, row in enumerate(plan.rows) if group.tokens.start <= row < group.tokens.stop]
        prefix = _prefix(plan, group.first, layer, key, value, memo) if at else None
        if prefix is None:
            continue
        if group.sees_all(local):
            _merge(out, lse, at, *kernel.attend(query[:, :, at], *prefix, scale))
            continue
        assert local is not None
        n, start = prefix[0].shape[1], group.spans[0].path.start
        for r in at:
            if (first := local.first(plan.positions[plan.rows[r]])) < start:
                above = prefix[0][:, n - start + first :], prefix[1][:, n - start + first :]
                _merge(out, lse, [r], *kernel.attend(query[:, :, r : r + 1], *above, scale))
    return out, lse


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
