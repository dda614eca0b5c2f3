"""Divergences between next-token distributions, and entropy: pure functions of log-probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def divergence(student_logprobs: Tensor, teacher_logprobs: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of each position.

    beta KL(t || m) + (1 - beta) KL(s || m), m = (1 - beta) s + beta t; KL(t || s) at beta = 0, KL(s || t) at beta = 1.

    Args:
        student_logprobs: (..., V) nats.
        teacher_logprobs: (..., V) nats; -inf where the teacher rules a token out.
        beta: in [0, 1].

    Returns:
        (...) nats.

    Source: Agarwal et al. 2024, eq. 1 (arXiv 2306.13649), in TRL's convention for beta.
    """
    if beta == 0.0:
        return _kl(teacher_logprobs, student_logprobs)
    if beta == 1.0:
        return _kl(student_logprobs, teacher_logprobs)
    mixture = _mix(student_logprobs, teacher_logprobs, beta)
    return beta * _kl(teacher_logprobs, mixture) + (1.0 - beta) * _kl(student_logprobs, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """(...) sum of exp(p) (p - q), where p = -inf contributes 0."""
    return _dot(p.exp(), (p - q).masked_fill(torch.isneginf(p), 0.0))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """(...) sum of x * y over the last dimension, in their own precision: autocast would do it in bfloat16."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.linalg.vecdot(x, y)


class _Kept(FunctionCtx):
    """What the forward keeps for the backward."""

    saved_tensors: tuple[Tensor, Tensor]
    beta: float
    temperature: float


class LogitDivergence(torch.autograd.Function):
    """`divergence` of softmax(logits / T) whose gradient needs only two (n, V) tensors kept.

    d/dz of the forward KL is (s - t) / T; else (1 - beta) s (ln(s / m) - KL(s || m)) / T, with m = t and factor 1 at
    beta = 1, since beta t + (1 - beta) s = m cancels what comes through the mixture.
    """

    @staticmethod
    def forward(ctx: _Kept, logits: Tensor, teacher: Tensor, beta: float, temperature: float) -> tuple[Tensor, Tensor]:
        """(n,) divergence and (n,) entropy of the student, which has no gradient."""
        student = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)
        ctx.save_for_backward(student, teacher)
        ctx.beta, ctx.temperature = beta, temperature
        own = entropy_of(student)
        ctx.mark_non_differentiable(own)
        return divergence(student, teacher, beta), own

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, grad: Tensor, _: Tensor) -> tuple[Tensor | None, None, None, None]:
        """(n, V) gradient of the logits."""
        student, teacher = ctx.saved_tensors
        beta = ctx.beta
        if beta == 0.0:
            out = student.exp().sub_(teacher.exp())
        else:
            mixture = teacher if beta == 1.0 else _mix(student, teacher, beta)
            out = (student - mixture).masked_fill_(torch.isneginf(student), 0.0)
            del mixture
            s = student.exp()
            out.sub_(_dot(s, out)[..., None]).mul_(s)
            if beta != 1.0:
                out.mul_(1.0 - beta)
        return out.mul_((grad / ctx.temperature)[..., None]), None, None, None


def _mix(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(...) entropy of softmax(logits / temperature) in nats, at most ln V; logits are (..., V)."""
    return entropy_of(torch.log_softmax(wide(logits) / temperature, -1))


def entropy_of(logprobs: Tensor) -> Tensor:
    """(...) entropy of log-probabilities (..., V); -inf contributes 0."""
    return -_dot(logprobs.exp(), logprobs.masked_fill(torch.isneginf(logprobs), 0.0))


def wide(logits: Tensor) -> Tensor:
    """Float32, or float64 where it came as that."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
