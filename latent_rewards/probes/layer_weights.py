"""Tuned layer weights for the cross-layer score (LAGER): one weight per layer, learnt once per judge."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_rewards.readouts import cross_layer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneOptions:
    """Settings of the tuning; the defaults are the paper's.

    Attributes:
        lr: Adam's learning rate.
        batch: examples in a step.
        epochs: passes (the paper: 1, and 2 for Qwen2.5).
        factor: by which ReduceLROnPlateau cuts the rate.
        patience: epochs it waits.
        min_lr: lowest rate, as in the reference code.
        alpha: share of the cross-entropy in the loss; None learns it (a sigmoid, from 0.5), as the reference code does.
        parameters: "softmax" keeps the weights positive and summing to 1 (reference code); "free" does not.
        drop_last: leave out the last layer, as the reference code does.
        held_out: share of the examples on which tuned weights must beat uniform ones, else they stay uniform.
        seed: of the order and the split.
    """

    lr: float = 0.01
    batch: int = 4
    epochs: int = 1
    factor: float = 0.5
    patience: int = 1
    min_lr: float = 1e-3
    alpha: float | None = None
    parameters: Literal["softmax", "free"] = "softmax"
    drop_last: bool = False
    held_out: float = 0.2
    seed: int = 42


def lager_loss(logits: Tensor, classes: Tensor, ratings: Tensor, values: Tensor, *, alpha: Tensor | float) -> Tensor:
    """Loss of the tuning: alpha CE(label) + (1 - alpha) (1/2) (S - y)^2, mean over the batch.

    Args:
        logits: (B, K) aggregated label logits z.
        classes: (B,) index of the label nearest to the rating.
        ratings: (B,) ratings y, on the scale of the values.
        values: (K,) rating of each label.
        alpha: share of the cross-entropy.

    Source: Lai et al. 2025 (LAGER).
    """
    score = (torch.softmax(logits, -1) * values).sum(-1)
    return alpha * F.cross_entropy(logits, classes) + (1 - alpha) * 0.5 * (score - ratings).square().mean()


class TuneFacts(TypedDict):
    """How the tuning went; squared errors are of the held-out examples."""

    n: int
    mse_tuned: float
    mse_uniform: float
    uniform: bool
    alpha: float


def tune_layers(
    layer_label_logits: Tensor,
    ratings: Sequence[float] | Tensor,
    values: Sequence[float],
    options: TuneOptions | None = None,
) -> tuple[Tensor, TuneFacts]:
    """Learn one weight per layer.

    Args:
        layer_label_logits: (N, L+1, K) label logits of every layer.
        ratings: (N,) on the scale of the values.
        values: (K,) rating of each label.
        options: settings.

    Returns:
        the weights, (L+1,) or (L,) with `drop_last`, uniform ones if the tuned do not have a lower squared error on the
        held-out share; and figures: `mse_tuned`, `mse_uniform` (held out), `uniform`, `alpha`, `n`.

    Raises:
        ValueError: NaN, ratings outside the labels' range, or fewer than 10 examples.

    Source: Lai et al. 2025 (LAGER) and its reference code.
    """
    o = options or TuneOptions()
    y, v = torch.as_tensor(ratings, dtype=torch.float32), torch.tensor(list(values), dtype=torch.float32)
    _check(layer_label_logits, y, v)
    x = layer_label_logits.float()[:, :-1] if o.drop_last else layer_label_logits.float()
    generator = torch.Generator().manual_seed(o.seed)
    order = torch.randperm(len(x), generator=generator)
    n_held = max(1, int(len(x) * o.held_out))
    held, train = order[:n_held], order[n_held:]
    weights, alpha = _fit(x[train], y[train], v, o, generator)
    uniform = torch.full((x.shape[1],), 1.0 / x.shape[1])
    errors = [float((cross_layer(x[held], values, weights=w) - y[held]).square().mean()) for w in (weights, uniform)]
    fallback = not errors[0] < errors[1]
    if fallback:
        logger.warning("tuned layer weights do not beat uniform ones (%.3f, %.3f): uniform it is", *errors)
    facts: TuneFacts = {
        "n": len(x), "mse_tuned": errors[0], "mse_uniform": errors[1], "uniform": fallback, "alpha": alpha,
    }  # fmt: skip
    return (uniform if fallback else weights), facts


def _fit(x: Tensor, y: Tensor, v: Tensor, o: TuneOptions, generator: torch.Generator) -> tuple[Tensor, float]:
    n = x.shape[1]
    raw = torch.nn.Parameter(torch.zeros(n) if o.parameters == "softmax" else torch.full((n,), 1.0 / n))
    raw_alpha = torch.nn.Parameter(torch.tensor(0.5))
    learnt = [raw] if o.alpha is not None else [raw, raw_alpha]
    adam = torch.optim.Adam(learnt, lr=o.lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=o.factor, patience=o.patience, min_lr=o.min_lr)
    classes = (y[:, None] - v[None]).abs().argmin(1)
    for _ in range(o.epochs):
        total = 0.0
        for pick in torch.randperm(len(x), generator=generator).split(o.batch):
            weights = torch.softmax(raw, 0) if o.parameters == "softmax" else raw
            alpha = torch.sigmoid(raw_alpha) if o.alpha is None else o.alpha
            loss = lager_loss(torch.einsum("l,blk->bk", weights, x[pick]), classes[pick], y[pick], v, alpha=alpha)
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += float(loss.detach()) * len(pick)
        plateau.step(total / len(x))
    weights = torch.softmax(raw, 0) if o.parameters == "softmax" else raw
    return weights.detach().clone(), float(torch.sigmoid(raw_alpha.detach())) if o.alpha is None else o.alpha


def _check(logits: Tensor, y: Tensor, v: Tensor) -> None:
    if logits.dim() != 3 or logits.shape[2] != len(v) or len(logits) != len(y):
        raise ValueError(f"logits of shape {tuple(logits.shape)} do not fit {len(y)} ratings and {len(v)} labels")
    if not (torch.isfinite(logits).all() and torch.isfinite(y).all()):
        raise ValueError("layer logits or ratings hold NaN or infinite values; leave unread rows out")
    if y.min() < v.min() or y.max() > v.max():
        raise ValueError(
            f"ratings from {y.min()} to {y.max()} are outside the labels' {v.min()} to {v.max()}; rescale them"
        )
    if len(y) < 10:
        raise ValueError(f"{len(y)} examples are too few to tune layer weights; about 1,000 are usual")
