"""From data files and a judge to a measured, saved probe: features, layer sweep, fit, figures on unseen prompts."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from latent_rewards import readouts
from latent_rewards.files.types import JsonObject, Row
from latent_rewards.judge.hf import HFJudge, Lens
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.probes import seen
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.cross_validation import Criterion, best, sweep_layers
from latent_rewards.probes.examples import Example, prompt_group
from latent_rewards.probes.features import Features
from latent_rewards.probes.fit import Data, FitOptions, check_disjoint, check_pairs, fit_head
from latent_rewards.probes.networks import state_scores
from latent_rewards.probes.probe import Probe, ProbeConfig
from latent_rewards.stats.bootstrap import mean_estimate, statistic_estimate
from latent_rewards.stats.pairs import pair_indices, pair_report, wins

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How a probe is made from examples.

    Attributes:
        layers: layers of the sweep; empty is all. With `concatenate` all of them are read side by side.
        strengths: inverse L2 strengths of the sweep.
        folds: of the cross-validation, grouped by prompt.
        select: figure that picks layer and strength: "accuracy", "matched" (pairs of equal length), "balanced" (longer
            and shorter winners count alike), or "r" for ratings.
        test_share: share of prompts kept from everything but the final figures.
        concatenate: one probe over all layers instead of the best one.
        lens: of the states.
        shard_rows: rows in a feature shard.
    """

    layers: tuple[int, ...] = ()
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    folds: int = 5
    select: Criterion = "balanced"
    test_share: float = 0.2
    concatenate: bool = False
    lens: Lens = "normed"
    shard_rows: int = 512

    def __post_init__(self) -> None:
        if self.select not in get_args(Criterion):
            raise ValueError(f"select must be one of {get_args(Criterion)}, got {self.select!r}")
        if not 0 <= self.test_share < 1:
            raise ValueError(f"test_share lies in [0, 1), got {self.test_share}")


def check_objective(examples: Sequence[Example], objective: str) -> None:
    """Refuse examples that an objective cannot be fitted on.

    Raises:
        ValueError: "bradley_terry" without pairs; says which objectives take ratings.
    """
    if objective == "bradley_terry":
        check_pairs(np.array([e.label for e in examples]), np.array([e.pair for e in examples]))


def check_prompts(examples: Sequence[Example], run: RunOptions) -> None:
    """Refuse examples whose prompts are too few for the folds.

    Raises:
        ValueError: they are; says how many would do.
    """
    prompts, folds = len({prompt_group(e.prompt) for e in examples}), 1 if run.concatenate else run.folds
    if _to_train_on(prompts, run) < folds:
        enough = next(n for n in itertools.count(prompts) if _to_train_on(n, run) >= folds)
        raise ValueError(
            f"{prompts} different prompts, {_to_train_on(prompts, run)} of them to train on, cannot make {folds} "
            f"folds: rows of {enough} prompts would do, and some hundreds to tell how good the probe is"
        )


def _to_train_on(prompts: int, run: RunOptions) -> int:
    return prompts - math.floor(prompts * run.test_share)


def train_probe(
    judge: HFJudge,
    prompt: JudgePrompt,
    examples: Sequence[Example],
    *,
    features_folder: str | Path,
    fit: FitOptions,
    run: RunOptions,
    training: JsonObject | None = None,
    outputs: Sequence[str] = ("score",),
) -> tuple[Probe, list[Row]]:
    """Train a probe and measure it on prompts it never saw.

    Args:
        judge: the judge.
        prompt: the judge prompt.
        examples: all examples; the test share is taken out of them by prompt.
        features_folder: where features are kept; a second run goes on there.
        fit: how the head is trained.
        run: what is tried and how it is chosen.
        training: entries for the model card: "licence", "data", "limits", "command".
        outputs: name of each label.

    Returns:
        The probe (fitted on all but the test prompts), with its figures in `config.training["metrics"]`, and the rows
        of the layer sweep.

    Raises:
        ValueError: see `collect_features` and `fit_head`.
    """
    check_objective(examples, fit.objective)  # before hours of reading
    check_prompts(examples, run)
    layers = run.layers or tuple(range(1, judge.n_layers + 1))
    features = collect_features(
        judge, prompt, examples, layers, folder=features_folder, lens=run.lens, shard_rows=run.shard_rows
    )
    every = features.info.layers
    test = _test_prompts(features, run.test_share, fit.seed)
    if run.concatenate:
        rows: list[Row] = []
        chosen, strength = every, run.strengths[0]
    else:
        rows = sweep_layers(
            features, every, fit, strengths=run.strengths, folds=run.folds, leave_out=test, by=run.select
        )
        top, by = best(rows, run.select if "accuracy" in rows[0] else "r")
        chosen, strength = (top["layer"],), top["strength"]
        logger.info("best by %s: layer %d, strength %g", by, top["layer"], strength)
    options = dataclasses.replace(fit, strength=strength)
    data = Data.of(features, chosen)
    unseen = np.isin(data.group, test)
    check_disjoint(data.group[~unseen], data.group[unseen])
    tensors = fit_head(data.take(~unseen), options, n_layers=len(chosen))
    record = dict(training or {}) | {"settings": {**options.applied(), **dataclasses.asdict(run)}}
    record["prompts"] = seen.sketch(data.group[~unseen])
    if unseen.any():
        record["metrics"] = measure(features, data, unseen, tensors, options, prompt, outputs)
    info = features.info
    config = ProbeConfig(
        judge.name, judge.revision, prompt.hash, chosen, data.x.shape[1] // len(chosen), run.lens, options.architecture,
        tuple(outputs), options.objective, record,
    )  # fmt: skip
    logger.info("trained on %d rows of %s", int((~unseen).sum()), list(info.sources))
    return Probe(config, tensors, prompt), rows


def measure(
    features: Features,
    data: Data,
    unseen: np.ndarray,
    tensors: dict[str, Tensor],
    options: FitOptions,
    prompt: JudgePrompt,
    outputs: Sequence[str] = ("score",),
) -> list[Row]:
    """Figures on the unseen rows, for each source and scorer: the probe, the prompted judge, and length alone.

    Of a probe with several outputs each has its own, against its own labels.
    """
    made = state_scores(data.x, tensors, options.architecture)
    others: dict[str, np.ndarray] = {}
    read = features.column("read").astype(bool)
    if prompt.labels is not None:
        logprobs = torch.tensor(features.column("label_logprobs")[read])
        others["prompted"] = readouts.expected_rating(logprobs, prompt.labels.values).numpy()
    others["length"] = data.length.astype(float)
    if len(outputs) == 1:
        return _figures(features, data, unseen, {"probe": made[:, 0]} | others)
    out = []
    for i, aspect in enumerate(outputs):
        part = dataclasses.replace(data, label=data.label[:, i])
        out += [{"aspect": aspect, **row} for row in _figures(features, part, unseen, {"probe": made[:, i]} | others)]
    return out


def _figures(features: Features, data: Data, unseen: np.ndarray, scores: dict[str, np.ndarray]) -> list[Row]:
    out = []
    for i, source in enumerate(features.info.sources):
        rows = unseen & (data.source == i)
        for scorer, score in scores.items():
            if not rows.any():
                continue
            part, s = data.take(rows), score[rows]
            about, prompts = {"source": source, "scorer": scorer}, len(np.unique(part.group))
            gap = None if scorer == "probe" else _gap(scores["probe"][rows], s, part)
            if (part.pair >= 0).any():
                report = pair_report(s, part.label, part.pair, part.group, part.length)
                keys = ("accuracy", "n_matched", "matched", "balanced", "length_correlation")
                counts = {"n": report["n"], "prompts": prompts}
                out.append({**about, **counts, **{k: report[k] for k in keys}, "probe_minus": gap})
            else:
                rank = _spearman(s, part.label)
                out.append({**about, "n": len(part), "prompts": prompts, "spearman": rank, "probe_minus": gap})
    return out


def _gap(probe: np.ndarray, other: np.ndarray, data: Data) -> tuple[float, float, float]:
    """How far the probe's figure is above another scorer's on the same rows, with its 95 % interval."""
    if (data.pair >= 0).any():
        better, worse = pair_indices(data.label, data.pair)
        apart = wins(probe, better, worse) - wins(other, better, worse)
        return mean_estimate(apart, data.group[better])[:3]
    return statistic_estimate(
        lambda i: _spearman(probe[i], data.label[i]) - _spearman(other[i], data.label[i]), data.group
    )[:3]


def _spearman(scores: np.ndarray, label: np.ndarray) -> float:
    return float(spearmanr(scores, label, nan_policy="omit").statistic)


def _test_prompts(features: Features, share: float, seed: int) -> np.ndarray:
    groups = np.unique(features.column("group"))
    n = math.floor(len(groups) * share)
    return np.random.default_rng(seed).choice(groups, n, replace=False)
