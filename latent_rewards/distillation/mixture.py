"""A mixture of teachers in probability space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_rewards.distillation.divergences import wide

Head = Callable[[Tensor], Tensor]


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
