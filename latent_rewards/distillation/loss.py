"""Distillation losses on next-token distributions: divergences, entropy and judge weights, mixtures of teachers.

Everything here is a pure function of tensors. `distillation_loss` works on hidden states and heads, a few positions at
a time, so that the (positions, V) logits of student and teachers never exist as a whole, forward or backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latent_rewards.distillation.divergences import LogitDivergence, entropy_of, wide
from latent_rewards.distillation.mixture import Head, TeacherStates, mixture_logprobs
from latent_rewards.distillation.options import LossOptions, Normalize


def er_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    entropy_temperature: float = 4.0,
    normalize: Normalize = "none",
) -> Tensor:
    """Entropy-reweighted distillation: mean over samples of T^2 KL(p_t^T || p_s^T) H(softmax(teacher logits / t)).

    Args:
        student_logits: (N, V).
        teacher_logits: (N, V).
        temperature: T.
        entropy_temperature: t.
        normalize: see `LossOptions`.

    Returns:
        () the distillation term alone, nats^2; the published loss is 0.9 times it plus 0.1 times the cross-entropy.

    Source: Su et al. 2023, ER-KD (arXiv 2311.13621).
    """
    options = LossOptions(
        beta=0.0, temperature=temperature, temperature_squared=True, entropy_temperature=entropy_temperature,
        normalize=normalize,
    )  # fmt: skip
    return distillation_loss(student_logits, _same, [TeacherStates(teacher_logits, _same)], options=options).loss


@dataclass(frozen=True)
class LossParts:
    """A loss and what it was made of.

    Attributes:
        loss: () to call `backward` on.
        tokens: () positions that took part.
        dropped: () positions left out because no teacher gave usable logits.
        divergence: () mean unweighted divergence over the positions that took part, nats; no gradient.
        teacher_entropy: () mean entropy weight before normalisation, nats; 0 when it is off.
        student_entropy: () sum over the positions that took part, nats; no gradient.
    """

    loss: Tensor
    tokens: Tensor
    dropped: Tensor
    divergence: Tensor
    teacher_entropy: Tensor
    student_entropy: Tensor


def distillation_loss(
    student_hidden: Tensor,
    student_head: Head,
    teachers: Sequence[TeacherStates],
    *,
    options: LossOptions | None = None,
    teacher_weights: Tensor | None = None,
    position_weights: Tensor | None = None,
    labels: Tensor | None = None,
    num_items: Tensor | float | None = None,
) -> LossParts:
    """Loss over N completion positions, a chunk at a time; the backward recomputes each chunk.

    loss = (kd_weight sum_i w_i H_i d_i c / h + ce_weight sum_i w_i CE_i) / num_items, with d_i the divergence from the
    mixture of the teachers in probability space, H_i the entropy weight (1 when off), h its normaliser, and c = T^2
    with `temperature_squared`, else 1.

    Args:
        student_hidden: (N, D) states of the positions that predict completion tokens; prompt and padding left out.
        student_head: (n, D) -> (n, V) logits.
        teachers: M teachers of the same vocabulary.
        options: see `LossOptions`.
        teacher_weights: (N, M) mixture weights of each position, at least 0; one-hot routes it to one teacher. They are
            normalised over the teachers that give usable logits there. None: one teacher, or all alike.
        position_weights: (N,) w_i, e.g. the judge's score of the prompt's response; None is 1.
        labels: (N,) token ids, needed for `ce_weight`.
        num_items: what the sum is divided by; None is the number of positions that took part.

    Returns:
        The parts. With N = 0, or every position dropped, the loss is 0 and still has a gradient path.

    Raises:
        ValueError: shapes or vocabularies that do not fit, labels missing; with `on_nan="raise"` an unusable position.
    """
    options = options or LossOptions()
    n = len(student_hidden)
    weights = _teacher_weights(teacher_weights, n, len(teachers), student_hidden)
    scale = torch.ones_like(weights[:, 0]) if position_weights is None else position_weights.to(weights)
    _check_lengths(n, scale, labels, options)
    if n == 0:  # one position with no weight keeps every parameter in the graph, which DDP insists on
        zero = (student_head(student_hidden.new_zeros(1, student_hidden.shape[-1])) * 0.0).sum() + student_hidden.sum()
        nothing = zero.detach() * 0.0
        return LossParts(zero.to(weights.dtype), *[nothing] * 5)
    sums = torch.zeros(6, dtype=weights.dtype, device=student_hidden.device)
    for start in range(0, n, options.chunk):
        part = slice(start, min(start + options.chunk, n))
        given = (student_hidden[part], student_head, teachers, part, weights[part], scale[part])
        sums = sums + checkpoint(
            _chunk_sums, *given, None if labels is None else labels[part], options, use_reentrant=False,
            preserve_rng_state=False,
        )  # fmt: skip
    dropped = n - sums[2].detach()
    if options.on_nan == "raise" and bool(dropped > 0):
        names = [t.name for t in teachers]
        raise ValueError(f"{int(dropped)} of {n} positions have no usable logits from any of the teachers {names}")
    return _parts(sums, dropped, options, num_items)


def _check_lengths(n: int, scale: Tensor, labels: Tensor | None, options: LossOptions) -> None:
    if len(scale) != n or (labels is not None and len(labels) != n):
        raise ValueError(
            f"{n} positions but {len(scale)} position weights, {len(labels) if labels is not None else n} labels"
        )
    if options.ce_weight and labels is None:
        raise ValueError("ce_weight needs labels")


def _parts(sums: Tensor, dropped: Tensor, options: LossOptions, num_items: Tensor | float | None) -> LossParts:
    """The loss of what `_chunk_sums` gives, added over the chunks."""
    kd, ce, tokens, plain, teacher_entropy, student_entropy = sums.unbind()
    used = tokens.detach().clamp(min=1.0)
    mean_entropy = (teacher_entropy / used).detach()
    if options.normalize == "batch_mean" and options.entropy_temperature is not None:
        kd = kd / mean_entropy.clamp(min=1e-12)
    total = options.kd_weight * kd + options.ce_weight * ce
    loss = total / (used if num_items is None else torch.as_tensor(num_items, device=total.device))
    detached = (x.detach() for x in (tokens, dropped, plain / used, mean_entropy, student_entropy))
    return LossParts(loss, *detached)


def _chunk_sums(
    hidden: Tensor,
    student_head: Head,
    teachers: Sequence[TeacherStates],
    part: slice,
    weights_NM: Tensor,
    scale_N: Tensor,
    labels_N: Tensor | None,
    options: LossOptions,
) -> Tensor:
    """(6,) sums over a chunk: weighted divergence, weighted cross-entropy, positions, divergence, both entropies."""
    logits = wide(student_head(hidden))
    temperatures = [options.temperature]
    if options.entropy_temperature is not None:
        temperatures.append(options.entropy_temperature)
    with torch.no_grad():
        mixtures, used = mixture_logprobs(teachers, part, weights_NM, temperatures, logits.shape[-1])
        ok = (used > 0).to(scale_N.dtype)
        h = entropy_of(mixtures[1]) if len(mixtures) > 1 else torch.zeros_like(ok)
        factor = _factor(h, logits.shape[-1], options)
    d, own = LogitDivergence.apply(logits, mixtures[0], options.beta, options.temperature)
    d = d.masked_fill(ok == 0, 0.0)
    ce = logits.new_zeros(())
    if options.ce_weight:
        assert labels_N is not None
        ce = (torch.nn.functional.cross_entropy(logits, labels_N, reduction="none") * scale_N * ok).sum()
    with torch.no_grad():
        facts = [ok.sum(), d.sum(), (h * ok).sum(), (own * ok).sum()]
    return torch.stack([(d * factor * scale_N).sum(), ce, *facts]).to(scale_N.dtype)


def _factor(h: Tensor, vocabulary: int, options: LossOptions) -> Tensor:
    """(N,) what each divergence is multiplied by: T^2 and the entropy weight, as far as they are on."""
    factor = torch.ones_like(h) if options.entropy_temperature is None else h
    if options.entropy_temperature is not None and options.normalize == "max":
        factor = factor / math.log(vocabulary)
    return factor * options.temperature**2 if options.temperature_squared else factor


def _teacher_weights(weights: Tensor | None, n: int, m: int, like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if m == 0:
        raise ValueError("need at least one teacher")
    if weights is None:
        return torch.ones(n, m, dtype=dtype, device=like.device)
    if weights.shape != (n, m):
        raise ValueError(f"expected teacher weights of shape {(n, m)}, got {tuple(weights.shape)}")
    if bool((weights < 0).any()) or not bool(torch.isfinite(weights).all()):
        raise ValueError("teacher weights must be finite and at least 0")
    return weights.to(device=like.device, dtype=dtype)


def _same(logits: Tensor) -> Tensor:
    return logits
