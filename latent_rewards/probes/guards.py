"""What keeps length, and uneven data, out of probes: a direction taken out of the states, and weights of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor, outer

from latent_rewards.probes.states import within_groups

if TYPE_CHECKING:
    from latent_rewards.probes.fit import Data, FitOptions


def log_length(length: np.ndarray) -> np.ndarray:
    """(N,) log-length, mean 0 and deviation 1."""
    log = np.log1p(length.astype(np.float64))
    return (log - log.mean()) / (log.std() or 1.0)


def length_direction(data: Data, mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(c, S^-1 c / c' S^-1 c): covariance of states and log-length within prompts, and the direction to take out.

    Args:
        data: N rows.
        mean: (P,) shift of the states.
        scale: (P,) divisor.

    Raises:
        ValueError: no prompt has several completions.

    Source: the least-squares concept erasure of Belrose et al. 2023 (LEACE, arXiv 2306.03819) for one number.
    """
    c, covariance = within_groups(data.x, log_length(data.length), data.group, mean, scale)
    covariance = covariance + 1e-2 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    u = np.linalg.solve(covariance, c)
    return c, u / (c @ u)


def row_weights(data: Data, options: FitOptions) -> np.ndarray:
    """(N,) with "balance", good and bad rows weigh alike in each tenth of a source's lengths; and sources, if asked."""
    weight = np.ones(len(data))
    if "balance" in options.guards:
        for s in np.unique(data.source):
            rows = np.flatnonzero(data.source == s)
            weight[rows] = _balanced(data.length[rows], data.label[rows])
    return _by_source(weight, data.source, options)


def label_weights(data: Data, options: FitOptions) -> np.ndarray:
    """(N, A) weights for bce: with `class_weight` each class of each label weighs half of all ("balanced")."""
    label = data.label.reshape(len(data), -1)
    weight = np.repeat(row_weights(data, options)[:, None], label.shape[1], axis=1)
    for good, column in zip(label.T > 0.5, weight.T, strict=True) if options.class_weight else ():
        half = column.sum() / 2
        for side in (good, ~good):
            column[side] *= half / (column[side].sum() or 1.0)  # the held-out share may lack a class
    return weight


def pair_weights(gap: np.ndarray, source: np.ndarray, options: FitOptions) -> np.ndarray:
    """(n,) with "balance", longer and shorter winners weigh alike in each source; and sources, if asked for.

    Args:
        gap: (n,) log-length of the better completion less that of the worse.
        source: (n,) number of the data source.
        options: which weights.
    """
    weight = np.ones(len(gap))
    if "balance" in options.guards:
        for s in np.unique(source):
            for side in (1, -1):
                rows = (source == s) & (np.sign(gap) == side)
                if rows.any():
                    weight[rows] = (source == s).sum() / (2 * rows.sum())
    return _by_source(weight, source, options)


def _balanced(length: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(N,) weights with which, in every tenth of the lengths, high and low labels weigh the same."""
    weight, high = np.ones(len(length)), np.zeros(len(length), dtype=int)
    if label.ndim == 1:
        middle = np.median(label)
        high = (label > middle if (label > middle).any() else label >= middle).astype(int)  # most may have the highest
    bins = np.searchsorted(np.quantile(length, np.arange(0.1, 1, 0.1)), length)
    cells = bins * 2 + high
    for b in np.unique(bins):
        inside = bins == b
        for cell in np.unique(cells[inside]):
            weight[cells == cell] = inside.sum() / (2 * (cells == cell).sum())
    return weight


def _by_source(weight: np.ndarray, source: np.ndarray, options: FitOptions) -> np.ndarray:
    if options.balance_sources:
        names = np.unique(source)
        for s in names:
            weight[source == s] *= len(weight) / (len(names) * weight[source == s].sum())
    return weight


def across(weight: Tensor, c: Tensor) -> Tensor:
    """(R, P-1) rows -> (R, P) rows with the same lengths and angles, all of them orthogonal to (P,) c.

    Householder's reflection that takes c to the first axis, of which the rows have nothing before it.
    """
    mirror = c / c.norm()
    mirror[0] += 1.0 if mirror[0] >= 0 else -1.0
    wide = F.pad(weight, (1, 0))
    return wide - outer(wide @ mirror, mirror) * (2 / (mirror @ mirror))
