"""Probes that Adam fits: MLP, orthogonal heads, layer mixtures, KTO and ordinal losses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_rewards.probes.guards import (
    across,
    label_weights,
    length_direction,
    log_length,
    pair_weights,
    row_weights,
)
from latent_rewards.probes.linear import Direction
from latent_rewards.probes.losses import kto_loss, ordinal_loss
from latent_rewards.probes.probe import head_scores
from latent_rewards.probes.states import States, StoredStates, blocks, moments, read, spans
from latent_rewards.stats.pairs import pair_indices

if TYPE_CHECKING:
    from latent_rewards.probes.fit import Data, FitOptions


class _Head(nn.Module):
    """A head on inputs that are shifted and scaled first.

    Args:
        inputs: P.
        outputs: A.
        options: which head.
        n_layers: how many layers the inputs are of.
        direction: (c, u) as `length_direction` finds them: the head reads z - (u z) c.
    """

    def __init__(
        self, inputs: int, outputs: int, options: FitOptions, n_layers: int, direction: Direction | None = None
    ) -> None:
        super().__init__()
        self.direction = None if direction is None else [torch.tensor(x, dtype=torch.float32) for x in direction]
        self.kind, self.n_layers, self.mix = options.architecture, n_layers, options.mix_layers
        width = inputs // n_layers if self.mix else inputs
        rows = {"linear": outputs, "mlp": options.hidden, "orthogonal": options.heads}[self.kind]
        self.first = nn.Linear(width, rows)
        if self.kind == "linear":
            nn.init.zeros_(self.first.weight)
        if self.kind == "orthogonal":
            self.log_scale = nn.Parameter(torch.zeros(rows))
            if self.direction is not None:
                self.first = nn.Linear(width - 1, rows)
            nn.utils.parametrizations.orthogonal(self.first)  # in place
        if self.kind == "mlp":
            self.second = nn.Linear(rows, outputs)
        self.layer_logits = nn.Parameter(torch.zeros(n_layers))
        self.length = nn.Parameter(torch.zeros(outputs))  # weight on log-length; stays 0 without the nuisance guard

    def matrix(self) -> Tensor:
        """(R, P) rows that read the inputs; with a direction (c, u) all of them are orthogonal to c."""
        weight = self.first.weight
        if self.kind == "orthogonal":
            weight = weight * self.log_scale.exp()[:, None]
        if self.mix:
            weight = torch.cat([w * weight for w in torch.softmax(self.layer_logits, 0)], dim=1)
        if self.direction is None:
            return weight
        c, u = self.direction
        return across(weight, c) if self.kind == "orthogonal" else weight - torch.outer(weight @ c, u)

    def forward(self, x: Tensor) -> Tensor:
        linear = x @ self.matrix().T + self.first.bias
        if self.kind == "mlp":
            return self.second(torch.relu(linear))
        if self.kind == "orthogonal":
            return (torch.softmax(linear, -1) * linear).sum(-1, keepdim=True)
        return linear


def fit_network(data: Data, options: FitOptions, *, n_layers: int = 1) -> dict[str, Tensor]:
    """Train by Adam with early stopping on held-out prompts; see `probe_training.fit_head`.

    Orthogonal heads and layer mixtures share one scale over all inputs, so that folding it keeps the weights mutually
    orthogonal; the others are standardised per input.
    """
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(options.seed)
    try:
        return _fit(data, options, n_layers)
    finally:
        torch.random.set_rng_state(torch_state)


def _fit(data: Data, options: FitOptions, n_layers: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(options.seed)
    groups = np.unique(data.group)
    held = rng.choice(groups, max(1, int(len(groups) * options.held_out)), replace=False) if len(groups) > 1 else groups
    inside = np.isin(data.group, held)
    train, valid = (data.take(~inside), data.take(inside)) if not inside.all() else (data, data)
    mean, scale = moments(train.x)
    shared = options.architecture == "orthogonal" or options.mix_layers
    scale = np.full_like(scale, np.sqrt((scale**2).mean())) if shared else np.where(scale > 1e-6, scale, 1.0)
    outputs = 1 if data.label.ndim == 1 else data.label.shape[1]
    direction = length_direction(train, mean, scale) if "erase" in options.guards else None
    head = _Head(data.x.shape[1], outputs, options, n_layers, direction)
    classes = np.unique(data.label)
    cuts = nn.Parameter(torch.linspace(-1, 1, max(1, len(classes) - 1)))
    loss = _Loss(options, classes, cuts)
    _run(head, cuts, loss, _Split(train, mean, scale, options), _Split(valid, mean, scale, options), options)
    with torch.no_grad():
        weight = head.matrix() / torch.tensor(scale, dtype=torch.float32)
        bias = head.first.bias - weight @ torch.tensor(mean, dtype=torch.float32)
        out = {"weight": weight.detach().clone(), "bias": bias.detach().clone()}
        if options.architecture == "mlp":
            out |= {"out_weight": head.second.weight.detach().clone(), "out_bias": head.second.bias.detach().clone()}
    return out


@dataclass
class _Batch:
    """Some rows, or pairs under Bradley-Terry: inputs, those of the worse ones, labels, weights.

    `extra` is what stands beside the states during the fit: log-length, or its difference in a pair; 0 without that.
    """

    x: Tensor
    worse: Tensor | None
    y: Tensor
    weight: Tensor
    extra: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> _Batch:
        worse = None if self.worse is None else self.worse[rows]
        return _Batch(self.x[rows], worse, self.y[rows], self.weight[rows], self.extra[rows])


class _Split:
    """Rows, or pairs, of one split, read in windows that fit in memory; all of them at once where they do."""

    def __init__(self, data: Data, mean: np.ndarray, scale: np.ndarray, options: FitOptions) -> None:
        self.data, self.mean, self.scale = data, mean, scale
        self.rows, self.worse = np.arange(len(data)), None
        extra = log_length(data.length)
        if options.objective == "bradley_terry":
            self.rows, self.worse = pair_indices(data.label, data.pair, seed=options.seed)
            extra = extra[self.rows] - extra[self.worse]
            self.weight = pair_weights(extra, data.source[self.rows], options)
        else:
            self.weight = label_weights(data, options) if options.objective == "bce" else row_weights(data, options)
        self.extra = 10 * extra if "nuisance" in options.guards else np.zeros(len(extra))
        self.held: _Batch | None = None if isinstance(data.x, StoredStates) else self._load(np.arange(len(self)))

    def __len__(self) -> int:
        return len(self.rows)

    def _load(self, pick: np.ndarray) -> _Batch:
        def inputs(rows: np.ndarray) -> Tensor:
            return torch.tensor((read(self.data.x, rows) - self.mean) / self.scale, dtype=torch.float32)

        return _Batch(
            inputs(self.rows[pick]),
            None if self.worse is None else inputs(self.worse[pick]),
            torch.tensor(self.data.label[self.rows[pick]], dtype=torch.float32),
            torch.tensor(self.weight[pick], dtype=torch.float32),
            torch.tensor(self.extra[pick], dtype=torch.float32),
        )

    def windows(self, *, shuffle: bool = False) -> Iterator[_Batch]:
        """Everything once. Shuffled, a window holds short runs from all over, so that little is read for nothing."""
        if self.held is not None:
            yield self.held
            return
        runs = [np.arange(len(self))[s] for s in spans(self.data.x, len(self))]
        if shuffle:
            cut = [part for run in runs for part in np.array_split(run, 8) if len(part)]
            order = torch.randperm(len(cut)).tolist()
            runs = [np.concatenate([cut[i] for i in order[at : at + 8]]) for at in range(0, len(cut), 8)]
        yield from (self._load(run) for run in runs)


class _Loss:
    def __init__(self, options: FitOptions, classes: np.ndarray, cuts: Tensor) -> None:
        self.options, self.cuts = options, cuts
        self.classes = torch.tensor(classes, dtype=torch.float32)

    def __call__(self, head: _Head, batch: _Batch) -> Tensor:
        o, weight = self.options, batch.weight
        g, y = head(batch.x) + batch.extra[:, None] * head.length, batch.y
        if batch.worse is not None:
            return (-F.logsigmoid(g[:, 0] - head(batch.worse)[:, 0]) * weight).mean()
        if o.objective == "regression":
            error = (g - (y if y.dim() == 2 else y[:, None])).square().mean(1)
            return (error * weight).mean()
        if o.objective == "ordinal":
            return ordinal_loss(g[:, 0], torch.searchsorted(self.classes, y), self.cuts.sort().values, weight=weight)
        if o.objective == "kto":
            good, bad = o.desirable, o.undesirable
            return kto_loss(g[:, 0], y, weight=weight, beta=o.beta, desirable=good, undesirable=bad)
        target = y if y.dim() == 2 else y[:, None]
        return (F.binary_cross_entropy_with_logits(g, target, reduction="none") * weight).mean()


def _run(head: _Head, cuts: nn.Parameter, loss: _Loss, train: _Split, valid: _Split, options: FitOptions) -> None:
    decay = 1.0 / (options.strength * max(1, len(train)))
    # torch keeps signs on the diagonal of the orthogonal parameter; decay would round them to 0
    plain = [p for n, p in head.named_parameters() if "parametrizations" not in n]
    fixed = [p for n, p in head.named_parameters() if "parametrizations" in n]
    groups = [{"params": plain, "weight_decay": min(decay, 1.0)}, {"params": [*fixed, cuts], "weight_decay": 0.0}]
    steps = torch.optim.AdamW(groups, lr=options.lr)
    best, waited, kept = float("inf"), 0, copy.deepcopy(head.state_dict())
    for _ in range(options.epochs):
        for window in train.windows(shuffle=True):
            for pick in torch.randperm(len(window)).split(options.batch):
                steps.zero_grad()
                loss(head, window.take(pick)).backward()
                steps.step()
        with torch.no_grad():
            now = _mean_loss(loss, head, valid) if len(valid) else -1.0
        if now < best - 1e-5:
            best, waited, kept = now, 0, copy.deepcopy(head.state_dict())
        else:
            waited += 1
            if waited >= options.patience:
                break
    head.load_state_dict(kept)


def _mean_loss(loss: _Loss, head: _Head, split: _Split) -> float:
    return sum(float(loss(head, window)) * len(window) for window in split.windows()) / len(split)


@torch.no_grad()
def state_scores(x: States, tensors: dict[str, Tensor], architecture: str) -> np.ndarray:
    """(N, A) scores of a trained head, block by block."""
    out = [head_scores(torch.as_tensor(block, dtype=torch.float32), tensors, architecture) for _, block in blocks(x)]
    return torch.cat(out).numpy() if out else np.zeros((0, 1), dtype=np.float32)
