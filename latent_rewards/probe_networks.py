"""Probes that Adam fits: MLP, orthogonal heads, layer mixtures, KTO and ordinal losses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_rewards.probe_metrics import pair_indices
from latent_rewards.probe_states import States, StoredStates, blocks, moments, read, spans

if TYPE_CHECKING:
    from latent_rewards.probe_training import Data, FitOptions


def kto_loss(
    logits: Tensor, labels: Tensor, *, beta: float = 1.0, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """KTO objective for a score against a constant reference.

    p = sigmoid(g),  m = (1 - p) ln(p / (1 - p)) = (1 - p) g.  A good example has value lambda_D sigmoid(beta m), a bad
    one lambda_U sigmoid(-beta m);  loss = mean(lambda - value).

    Args:
        logits: (B,) scores g.
        labels: (B,) 1 for good, 0 for bad.
        beta: steepness.
        desirable: lambda_D.
        undesirable: lambda_U.

    Source: Girrbach et al. 2025, appendix D (arXiv 2509.24678).
    """
    m = (1 - torch.sigmoid(logits)) * logits
    good = desirable * (1 - torch.sigmoid(beta * m))
    bad = undesirable * (1 - torch.sigmoid(-beta * m))
    return torch.where(labels > 0.5, good, bad).mean()


def ordinal_loss(scores: Tensor, classes: Tensor, cuts: Tensor) -> Tensor:
    """Cumulative-logit loss: P(class <= k) = sigmoid(c_k - score).

    Args:
        scores: (B,) latent scores.
        classes: (B,) integers 0..K-1.
        cuts: (K-1,) increasing thresholds.
    """
    ends = torch.cat([cuts.new_full((1,), -torch.inf), cuts, cuts.new_full((1,), torch.inf)])
    upper = torch.sigmoid(ends[classes + 1] - scores)
    lower = torch.sigmoid(ends[classes] - scores)
    return -(upper - lower).clamp(min=1e-12).log().mean()


class _Head(nn.Module):
    """A head on inputs that are shifted and scaled first."""

    def __init__(self, inputs: int, outputs: int, options: FitOptions, n_layers: int) -> None:
        super().__init__()
        self.kind, self.n_layers, self.mix = options.architecture, n_layers, options.mix_layers
        width = inputs // n_layers if self.mix else inputs
        rows = {"linear": outputs, "mlp": options.hidden, "orthogonal": options.heads}[self.kind]
        self.first: Any = nn.Linear(width, rows)
        if self.kind == "linear":
            nn.init.zeros_(self.first.weight)
        if self.kind == "orthogonal":
            self.log_scale = nn.Parameter(torch.zeros(rows))
            self.first = nn.utils.parametrizations.orthogonal(self.first)
        if self.kind == "mlp":
            self.second = nn.Linear(rows, outputs)
        self.layer_logits = nn.Parameter(torch.zeros(n_layers))

    def matrix(self) -> Tensor:
        """(R, P) rows that read the inputs."""
        weight = self.first.weight
        if self.kind == "orthogonal":
            weight = weight * self.log_scale.exp()[:, None]
        if not self.mix:
            return weight
        return torch.cat([w * weight for w in torch.softmax(self.layer_logits, 0)], dim=1)

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
    head = _Head(data.x.shape[1], outputs, options, n_layers)
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
    """Some rows, or pairs under Bradley-Terry: inputs, those of the worse ones, labels, weights."""

    x: Tensor
    worse: Tensor | None
    y: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> _Batch:
        worse = None if self.worse is None else self.worse[rows]
        return _Batch(self.x[rows], worse, self.y[rows], self.weight[rows])


class _Split:
    """Rows, or pairs, of one split, read in windows that fit in memory; all of them at once where they do."""

    def __init__(self, data: Data, mean: np.ndarray, scale: np.ndarray, options: FitOptions) -> None:
        from latent_rewards.probe_training import _log_length, _pair_weights, _row_weights

        self.data, self.mean, self.scale = data, mean, scale
        self.rows, self.worse = np.arange(len(data)), None
        weight = _row_weights(data, options)
        if options.objective == "bradley_terry":
            self.rows, self.worse = pair_indices(data.label, data.pair, seed=options.seed)
            log = _log_length(data.length)
            weight = _pair_weights(log[self.rows] - log[self.worse], data.source[self.rows], options)
        elif options.objective in ("bce", "kto") and options.class_weight:
            share = data.label.mean()
            weight = weight * np.where(data.label > 0.5, 0.5 / max(share, 1e-9), 0.5 / max(1 - share, 1e-9))
        self.weight = weight
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
        g, y = head(batch.x), batch.y
        if batch.worse is not None:
            return (-F.logsigmoid(g[:, 0] - head(batch.worse)[:, 0]) * weight).mean()
        if o.objective == "regression":
            error = (g - (y if y.dim() == 2 else y[:, None])).square().mean(1)
            return (error * weight).mean()
        if o.objective == "ordinal":
            return ordinal_loss(g[:, 0], torch.searchsorted(self.classes, y), self.cuts.sort().values)
        if o.objective == "kto":
            return kto_loss(g[:, 0], y, beta=o.beta, desirable=o.desirable, undesirable=o.undesirable)
        target = y if y.dim() == 2 else y[:, None]
        return (F.binary_cross_entropy_with_logits(g, target, reduction="none").mean(1) * weight).mean()


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


def head_scores(x: States, tensors: dict[str, Tensor], architecture: str) -> np.ndarray:
    """(N, A) scores of a trained head, as `Probe` computes them."""
    out = [_head_scores(torch.as_tensor(block, dtype=torch.float32), tensors, architecture) for _, block in blocks(x)]
    return torch.cat(out).numpy() if out else np.zeros((0, 1), dtype=np.float32)


@torch.no_grad()
def _head_scores(x: Tensor, tensors: dict[str, Tensor], architecture: str) -> Tensor:
    linear = x @ tensors["weight"].T + tensors["bias"]
    if architecture == "mlp":
        linear = torch.relu(linear) @ tensors["out_weight"].T + tensors["out_bias"]
    if architecture == "orthogonal":
        linear = (torch.softmax(linear, -1) * linear).sum(-1, keepdim=True)
    return linear
