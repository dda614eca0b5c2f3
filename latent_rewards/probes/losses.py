"""Losses of probes that neither torch nor scikit-learn has: pure functions of scores."""

from __future__ import annotations

import torch
from torch import Tensor


def kto_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    beta: float = 1.0,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """KTO objective for a score against a constant reference.

    p = sigmoid(g),  m = (1 - p) ln(p / (1 - p)) = (1 - p) g.  A good example has value lambda_D sigmoid(beta m), a bad
    one lambda_U sigmoid(-beta m);  loss = mean(lambda - value).

    Args:
        logits: (B,) scores g.
        labels: (B,) 1 for good, 0 for bad.
        weight: (B,) of the examples; None weighs all alike.
        beta: steepness.
        desirable: lambda_D.
        undesirable: lambda_U.

    Source: Girrbach et al. 2025, appendix D (arXiv 2509.24678).
    """
    m = (1 - torch.sigmoid(logits)) * logits
    good = desirable * (1 - torch.sigmoid(beta * m))
    bad = undesirable * (1 - torch.sigmoid(-beta * m))
    loss = torch.where(labels > 0.5, good, bad)
    return (loss if weight is None else loss * weight).mean()


def ordinal_loss(scores: Tensor, classes: Tensor, cuts: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Cumulative-logit loss: P(class <= k) = sigmoid(c_k - score).

    Args:
        scores: (B,) latent scores.
        classes: (B,) integers 0..K-1.
        cuts: (K-1,) increasing thresholds.
        weight: (B,) of the examples; None weighs all alike.
    """
    ends = torch.cat([cuts.new_full((1,), -torch.inf), cuts, cuts.new_full((1,), torch.inf)])
    upper = torch.sigmoid(ends[classes + 1] - scores)
    lower = torch.sigmoid(ends[classes] - scores)
    loss = -(upper - lower).clamp(min=1e-12).log()
    return (loss if weight is None else loss * weight).mean()
