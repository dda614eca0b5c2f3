"""Training probes: what a fit is made of, and the linear ones."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from latent_rewards.files.types import JsonObject
from latent_rewards.probes import states as probe_states
from latent_rewards.probes.features import Features
from latent_rewards.probes.guards import label_weights, length_direction, log_length, pair_weights, row_weights
from latent_rewards.probes.linear import Design, fit, logistic, squares
from latent_rewards.probes.probe import Architecture
from latent_rewards.probes.states import States, StoredStates, moments, not_finite
from latent_rewards.stats.pairs import pair_indices

logger = logging.getLogger(__name__)

Guard = Literal["erase", "nuisance", "balance"]
Objective = Literal["bce", "kto", "bradley_terry", "regression", "ordinal"]


@dataclass(frozen=True)
class Data:
    """Rows a probe is trained on: N rows of P inputs.

    Attributes:
        x: (N, P) float32 states, in memory or on disk.
        label: (N,) or (N, A) labels or ratings.
        group: (N,) prompt groups.
        pair: (N,) pair numbers, -1 for none.
        length: (N,) characters of the completion.
        source: (N,) number of the data source.
    """

    x: States
    label: np.ndarray
    group: np.ndarray
    pair: np.ndarray
    length: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray) -> Data:
        """Some of the rows, by mask or index."""
        return Data(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    @classmethod
    def of(cls, features: Features, layers: Sequence[int]) -> Data:
        """The readable rows of a folder of features, for one or several layers.

        States of more than `probe_states.WHOLE_BYTES` bytes stay on disk; training then reads them block by block.
        """
        names = ("label", "group", "pair", "length", "source")
        stored = StoredStates(features, layers)
        small = 4 * stored.shape[0] * stored.shape[1] <= probe_states.WHOLE_BYTES
        data = cls(features.states(layers) if small else stored, *(features.column(n) for n in names))
        read = features.column("read").astype(bool)
        if not read.all():
            logger.warning(
                "%s: %d of %d rows could not be read and are left out", features.folder, (~read).sum(), len(read)
            )
        return data.take(read)


@dataclass(frozen=True)
class FitOptions:
    """How a probe is trained.

    Attributes:
        architecture: "linear", "mlp" or "orthogonal".
        objective: "bce" (labels 0/1), "kto" (labels 0/1), "bradley_terry" (pairs), "regression" or "ordinal" (ratings).
        strength: inverse L2 strength on standardised inputs (scikit-learn's C); larger fits closer.
        guards: against learning length. "erase": what the head reads of the states has no linear covariance with length
            within prompts; nor then has the score of a linear head (an MLP or orthogonal heads may bend one out of it).
            "nuisance": log-length is added to the score during the fit, with a weight that is dropped. "balance": rows
            are weighted so that within each source longer and shorter completions win equally often.
        balance_sources: whether each data source weighs the same.
        class_weight: whether both classes weigh the same (bce).
        mix_layers: learn one softmax weight per layer instead of one weight per layer and dimension.
        heads: of the orthogonal probe.
        hidden: units of the MLP.
        desirable: KTO's lambda_D.
        undesirable: KTO's lambda_U.
        beta: of KTO.
        lr: Adam's learning rate, for everything but plain linear fits.
        epochs: most passes.
        patience: passes without gain on the held-out share before stopping.
        held_out: share of prompts for early stopping.
        batch: rows in a step.
        seed: of everything random.
    """

    architecture: Architecture = "linear"
    objective: Objective = "bce"
    strength: float = 1e-3
    guards: tuple[Guard, ...] = ()
    balance_sources: bool = False
    class_weight: bool = True
    mix_layers: bool = False
    heads: int = 4
    hidden: int = 64
    desirable: float = 1.0
    undesirable: float = 1.0
    beta: float = 1.0
    lr: float = 1e-3
    epochs: int = 100
    patience: int = 5
    held_out: float = 0.1
    batch: int = 64
    seed: int = 42

    def __post_init__(self) -> None:
        for name, known in (("architecture", Architecture), ("objective", Objective)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {get_args(known)}, got {getattr(self, name)!r}")
        if unknown := sorted(set(self.guards) - set(get_args(Guard))):
            raise ValueError(f"unknown guards {unknown}; known are {list(get_args(Guard))}")
        if "erase" in self.guards and self.mix_layers and self.architecture == "orthogonal":
            raise ValueError(
                "guard 'erase' would leave the heads of an 'orthogonal' layer mixture not orthogonal; use architecture "
                "'linear' or 'mlp', or no mix_layers"
            )

    @property
    def smooth(self) -> bool:
        """Whether Adam fits it, rather than a linear solver."""
        return self.objective in ("kto", "ordinal") or self.mix_layers or self.architecture != "linear"

    def applied(self) -> JsonObject:
        """The settings that this kind of fit uses, for the record."""
        unused = {
            "heads": self.architecture != "orthogonal", "hidden": self.architecture != "mlp",
            "class_weight": self.objective != "bce",
            **dict.fromkeys(("desirable", "undesirable", "beta"), self.objective != "kto"),
            **dict.fromkeys(("lr", "epochs", "patience", "held_out", "batch"), not self.smooth),
        }  # fmt: skip
        return {k: v for k, v in dataclasses.asdict(self).items() if not unused.get(k)}


def fit_head(data: Data, options: FitOptions, *, n_layers: int = 1) -> dict[str, Tensor]:
    """Train one head; returns the tensors of a `Probe` of `options.architecture`, standardisation folded in.

    Args:
        data: training rows.
        options: how.
        n_layers: how many layers stand side by side in `data.x`.

    Raises:
        ValueError: NaN features, labels of one class only, no pairs, or an objective that does not fit the labels.
    """
    check_data(data, options)
    if options.smooth:
        from latent_rewards.probes.networks import fit_network

        return fit_network(data, options, n_layers=n_layers)
    mean, scale = moments(data.x)
    scale = np.where(scale > 1e-6, scale, 1.0)
    direction = length_direction(data, mean, scale) if "erase" in options.guards else None
    fits = {"bce": _fit_bce, "bradley_terry": _fit_pairs, "regression": _fit_squares}
    weight, bias = fits[options.objective](data, options, Design(data.x, mean, scale, direction))
    return {"weight": torch.tensor(weight, dtype=torch.float32), "bias": torch.tensor(bias, dtype=torch.float32)}


def check_data(data: Data, options: FitOptions) -> None:
    """Raise ValueError for data that cannot be trained on; see `fit_head`."""
    several = data.label.ndim == 2 and data.label.shape[1] > 1
    for what, wrong in (
        (f"objective {options.objective!r}", options.objective not in ("bce", "regression")),
        ("an orthogonal head", options.architecture == "orthogonal"),
        ("guard 'balance'", "balance" in options.guards),
    ):
        if several and wrong:
            raise ValueError(
                f"{what} takes one label, these rows have {data.label.shape[1]}; several labels take a linear or mlp "
                "head with objective 'bce' or 'regression' and guards 'erase' and 'nuisance'"
            )
    bad = not_finite(data.x)
    if len(bad):
        raise ValueError(f"features hold NaN or infinite values in {len(bad)} of {len(data)} rows (first row {bad[0]})")
    if not np.isfinite(data.label).all():
        raise ValueError("labels hold NaN or infinite values")
    if options.objective in ("bce", "kto"):
        for column in data.label.reshape(len(data), -1).T:
            if set(found := np.unique(column)[:5].tolist()) != {0.0, 1.0}:
                raise ValueError(f"objective {options.objective!r} needs labels 0 and 1, both present; found {found}")
    if options.objective == "bradley_terry":
        check_pairs(data.label, data.pair)
    if options.objective in ("regression", "ordinal") and len(np.unique(data.label)) < 2:
        raise ValueError(f"objective {options.objective!r} needs at least two different ratings")


def check_pairs(label: np.ndarray, pair: np.ndarray) -> None:
    """Raise ValueError if no two of N examples, with these labels and pair numbers, are better and worse."""
    if not len(pair_indices(label, pair)[0]):
        raise ValueError(
            "objective 'bradley_terry' needs pairs: examples with one pair number and different labels; for ratings of "
            "single completions take objective 'regression' or 'ordinal'"
        )


def check_disjoint(train: np.ndarray, test: np.ndarray) -> None:
    """Raise ValueError if a prompt group stands in both."""
    both = np.intersect1d(train, test)
    if len(both):
        raise ValueError(
            f"{len(both)} prompts stand both in the training and in the test split ({both[0]}, ...); split by prompt"
        )


def _fit_bce(data: Data, options: FitOptions, design: Design) -> tuple[np.ndarray, np.ndarray]:
    label = data.label.reshape(len(data), -1)
    weight = label_weights(data, options)
    if "nuisance" in options.guards:
        design = dataclasses.replace(design, extra=10 * log_length(data.length))
    loss = logistic(2 * label - 1, weight)
    return fit(design, loss, weight[:, 0].sum(), options.strength, outputs=label.shape[1])


def _fit_pairs(data: Data, options: FitOptions, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Bradley-Terry: logistic regression without intercept on the differences of better and worse states."""
    better, worse = pair_indices(data.label, data.pair, seed=options.seed)
    log = log_length(data.length)
    gap = log[better] - log[worse]
    extra = 10 * gap if "nuisance" in options.guards else None
    weight = pair_weights(gap, data.source[better], options)[:, None]
    design = dataclasses.replace(design, rows=better, minus=worse, extra=extra)
    loss = logistic(np.ones_like(weight), weight)
    return fit(design, loss, weight.sum(), options.strength, intercept=False)


def _fit_squares(data: Data, options: FitOptions, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression."""
    label = data.label.reshape(len(data), -1)
    weight = row_weights(data, options)[:, None]
    if "nuisance" in options.guards:
        design = dataclasses.replace(design, extra=10 * log_length(data.length))
    return fit(design, squares(label, weight), weight.sum(), options.strength, outputs=label.shape[1])
