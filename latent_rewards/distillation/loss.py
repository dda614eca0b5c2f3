"""Distillation losses on next-token distributions: divergences, entropy and judge weights, mixtures of teachers.

Everything here is a pure function of tensors. `distillation_loss` works on hidden states and heads, a few positions at
a time, so that the (positions, V) logits of student and teachers never exist as a whole, forward or backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latent_rewards.distillation.divergences import LogitDivergence, entropy_of, wide

Head = Callable[[Tensor], Tensor]
Normalize = Literal["none", "max", "batch_mean"]


@dataclass(frozen=True)
class LossOptions:
    """How student and teacher are compared.

    Attributes:
        beta: 0 is the forward KL(teacher || student), 1 the reverse KL(student || teacher), between them the
            generalised Jensen-Shannon divergence with mixture (1 - beta) student + beta teacher, as in TRL.
        temperature: T of both distributions.
        temperature_squared: multiply the divergence by T^2, as ER-KD and classic distillation do; TRL does not.
        entropy_temperature: t of ER-KD's entropy weight H(softmax(teacher logits / t)); None switches it off.
        normalize: of the entropy weight: "none" (as published), "max" (divide by ln V, so that it lies in [0, 1]) or
            "batch_mean" (divide by its mean over the positions of this call, which keeps the learning rate comparable;
            in a trainer those of a process's micro-batch, so that how a batch is split matters a little).
        kd_weight: factor of the divergence.
        ce_weight: factor of the cross-entropy with the labels; ER-KD uses 0.9 and 0.1.
        on_nan: positions where no teacher gives usable logits: "drop" (counted, no part in the loss) or "raise".
        chunk: positions whose logits exist at once; at most 14 * chunk * V * 4 bytes are needed on top of the inputs
            and the head's gradient.

    Raises:
        ValueError: values outside their ranges.

    Sources: Agarwal et al. 2024 (GKD, arXiv 2306.13649) eq. 1; Su et al. 2023 (ER-KD, arXiv 2311.13621).
    """

    beta: float = 0.5
    temperature: float = 1.0
    temperature_squared: bool = False
    entropy_temperature: float | None = None
    normalize: Normalize = "none"
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    on_nan: Literal["drop", "raise"] = "drop"
    chunk: int = 256

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta must lie in [0, 1], got {self.beta}")
        if self.temperature <= 0 or (self.entropy_temperature is not None and self.entropy_temperature <= 0):
            raise ValueError("temperature and entropy_temperature must be above 0")
        if self.normalize not in ("none", "max", "batch_mean"):
            raise ValueError(f"normalize must be 'none', 'max' or 'batch_mean', got {self.normalize!r}")
        if self.on_nan not in ("drop", "raise"):
            raise ValueError(f"on_nan must be 'drop' or 'raise', got {self.on_nan!r}")
        if self.chunk < 1 or min(self.kd_weight, self.ce_weight) < 0:
            raise ValueError("chunk must be at least 1, kd_weight and ce_weight at least 0")


ER_KD = LossOptions(
    beta=0.0, temperature=4.0, temperature_squared=True, entropy_temperature=4.0, kd_weight=0.9, ce_weight=0.1
)  # the published settings, for image classifiers


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
class TeacherStates:
    """A teacher's side of N positions.

    Attributes:
        hidden: (R, D) states that `head` turns into logits.
        head: (n, D) -> (n, V) logits.
        index: (N,) row of `hidden` for each position, -1 where this teacher was not asked; None: position i is row i.
        name: for messages.
    """

    hidden: Tensor
    head: Head
    index: Tensor | None = None
    name: str = "teacher"


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
    n, m = len(student_hidden), len(teachers)
    weights = _teacher_weights(teacher_weights, n, m, student_hidden)
    scale = torch.ones_like(weights[:, 0]) if position_weights is None else position_weights.to(weights)
    if len(scale) != n or (labels is not None and len(labels) != n):
        raise ValueError(
            f"{n} positions but {len(scale)} position weights, {len(labels) if labels is not None else n} labels"
        )
    if options.ce_weight and labels is None:
        raise ValueError("ce_weight needs labels")
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
    return _put_together(sums, n, [t.name for t in teachers], options, num_items)


def _put_together(
    sums: Tensor, n: int, names: Sequence[str], options: LossOptions, num_items: Tensor | float | None
) -> LossParts:
    """The parts of the loss from the sums over all n positions (`_chunk_sums`)."""
    kd, ce, tokens, plain, teacher_entropy, student_entropy = sums.unbind()
    used = tokens.detach().clamp(min=1.0)
    dropped = n - tokens.detach()
    if options.on_nan == "raise" and bool(dropped > 0):
        raise ValueError(f"{int(dropped)} of {n} positions have no usable logits from any of the teachers {names}")
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


@torch.no_grad()
def mixture_logprobs(
    teachers: Sequence[TeacherStates], part: slice, weights_NM: Tensor, temperatures: Sequence[float], vocabulary: int
) -> tuple[list[Tensor], Tensor]:
    """Mixture of the teachers in probability space, ln sum_m w_m softmax(z_m / T), for each temperature T.

    Args:
        teachers: M teachers.
        part: the positions wanted.
        weights_NM: (N, M) weights of these positions, at least 0.
        temperatures: as many mixtures are made.
        vocabulary: V that the teachers must have.

    Returns:
        One (N, V) tensor per temperature, in nats, and (N,) the weight of the teachers that were usable. Weights are
        normalised over those; where there is none the mixture is uniform, to be masked by the caller.

    Raises:
        ValueError: a teacher of another vocabulary size.
    """
    n = len(weights_NM)
    out = [weights_NM.new_full((n, vocabulary), -math.inf) for _ in temperatures]
    used = weights_NM.new_zeros(n)
    for m, teacher in enumerate(teachers):
        index = (
            torch.arange(part.start, part.stop, device=used.device) if teacher.index is None else teacher.index[part]
        )
        asked = torch.nonzero((weights_NM[:, m] > 0) & (index >= 0)).squeeze(1)
        if not len(asked):
            continue
        logits = wide(teacher.head(teacher.hidden[index[asked]]))
        if logits.shape[-1] != vocabulary:
            raise ValueError(
                f"teacher {teacher.name!r} has {logits.shape[-1]} logits, the student {vocabulary}: probabilities can "
                "be compared only over one vocabulary. Train on its chosen responses (SFT), or use TRL's GOLDTrainer"
            )
        good = torch.isfinite(torch.logsumexp(logits, -1))
        if not bool(good.all()):
            logits, asked = logits[good], asked[good]
        weight = weights_NM[asked, m]
        used[asked] += weight
        for total, temperature in zip(out, temperatures, strict=True):
            logprobs = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1).to(total.dtype)
            logprobs += weight.log()[:, None]
            if len(asked) == n:
                torch.logaddexp(total, logprobs, out=total)
            else:
                total[asked] = torch.logaddexp(total[asked], logprobs)
    for total in out:
        total -= used.log()[:, None].nan_to_num(neginf=0.0)
        total[used == 0] = -math.log(vocabulary)
    return out, used


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
