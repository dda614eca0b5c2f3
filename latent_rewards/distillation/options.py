"""How student and teacher are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
