"""Choosing a probe's layer and strength: cross-validation in which no prompt is on both sides."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from latent_rewards.files.types import Row
from latent_rewards.probes.features import Features
from latent_rewards.probes.fit import Data, FitOptions, check_disjoint, fit_head
from latent_rewards.probes.networks import state_scores
from latent_rewards.stats.pairs import pair_report

logger = logging.getLogger(__name__)

Criterion = Literal["accuracy", "matched", "balanced", "r"]


def cross_validate(
    data: Data, options: FitOptions, *, strengths: Sequence[float], folds: int = 5, n_layers: int = 1
) -> list[Row]:
    """Out-of-fold figures for each strength; folds never share a prompt.

    Returns:
        one dict per strength: `strength` and the entries of `pair_report` (or `r`, Pearson, for ratings without pairs).
    """
    out = []
    for strength in strengths:
        score = out_of_fold(data, dataclasses.replace(options, strength=strength), folds=folds, n_layers=n_layers)
        row: Row = {"strength": float(strength)}
        if (data.pair >= 0).any():
            row |= pair_report(score, data.label, data.pair, data.group, data.length)
        else:
            label = data.label if data.label.ndim == 1 else data.label.mean(1)  # of aspects the mean, like the score
            row |= {"n": len(data), "r": float(np.corrcoef(score, label)[0, 1])}
        out.append(row)
    return out


def out_of_fold(
    data: Data, options: FitOptions, *, folds: int = 5, n_layers: int = 1, prompts: int | None = None
) -> np.ndarray:
    """(N,) scores of rows by heads that saw none of their prompts, and at most `prompts` others.

    Raises:
        ValueError: fewer prompts than folds.
    """
    from sklearn.model_selection import GroupKFold

    groups = np.unique(data.group)
    if len(groups) < folds:
        raise ValueError(f"{len(groups)} different prompts cannot make {folds} folds")
    score = np.full(len(data), np.nan)
    split = GroupKFold(folds, shuffle=True, random_state=options.seed).split(np.zeros(len(data)), groups=data.group)
    for train, test in split:
        check_disjoint(data.group[train], data.group[test])
        if prompts is not None:
            some = np.random.default_rng(options.seed).permutation(np.unique(data.group[train]))[:prompts]
            train = train[np.isin(data.group[train], some)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = fit_head(data.take(train), options, n_layers=n_layers)
        score[test] = state_scores(data.x[test], tensors, options.architecture).mean(1)
    return score


def sweep_layers(
    features: Features,
    layers: Sequence[int],
    options: FitOptions,
    *,
    strengths: Sequence[float],
    folds: int = 5,
    leave_out: np.ndarray | None = None,
    by: Criterion = "balanced",
) -> list[Row]:
    """`cross_validate` on every layer of one feature pass; holds at most one layer in memory at a time.

    Args:
        features: collected features.
        layers: layers to try.
        options: how heads are trained.
        strengths: inverse L2 strengths to try.
        folds: of the cross-validation.
        leave_out: prompt groups kept for the final test.
        by: the figure to log, of pairs; of ratings it is r.
    """
    rows = []
    for layer in layers:
        data = Data.of(features, [layer])
        if leave_out is not None:
            data = data.take(~np.isin(data.group, leave_out))
        found = [{"layer": int(layer), **r} for r in cross_validate(data, options, strengths=strengths, folds=folds)]
        key = by if by in found[0] else "r"
        shown = ", ".join(f"{_first(r[key]):.3f} ({r['strength']:g})" for r in found)
        logger.info("layer %d: %s by strength %s", layer, key, shown)
        rows += found
    return rows


def best(rows: Sequence[Row], by: Criterion) -> tuple[Row, Criterion]:
    """The row with the highest value of `by` (the first number, where it has an interval), and what it was chosen by.

    Where no row has a value, as none is balanced where the better reply is always the longer one, that is accuracy.
    """
    if by != "accuracy" and "accuracy" in rows[0] and all(np.isnan(_first(row[by])) for row in rows):
        logger.warning("no layer has a value of %r on these pairs: chosen by accuracy, which length may make up", by)
        by = "accuracy"

    def value(row: Row) -> float:
        found = _first(row[by])
        return -np.inf if np.isnan(found) else found

    return max(rows, key=value), by


def _first(figure: Any) -> float:
    return float(figure[0] if isinstance(figure, tuple | list) else figure)
