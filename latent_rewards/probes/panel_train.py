"""From labelled data and a judge to a measured panel: readings, fit, figures on unseen prompts and sources."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latent_rewards.files.types import JsonObject, Row
from latent_rewards.judge.reading import Judge, Reading
from latent_rewards.probes.examples import Example
from latent_rewards.probes.fit import check_disjoint
from latent_rewards.probes.panel import Panel
from latent_rewards.probes.panel_collect import collect_readings
from latent_rewards.probes.panel_fit import PanelOptions, Table, fit_line, folds_of, table_of
from latent_rewards.probes.questions import LENGTH, Feature, Question, features_of, lenses_of
from latent_rewards.stats.bootstrap import difference, mean_estimate, statistic_estimate
from latent_rewards.stats.correlation import spearman
from latent_rewards.stats.pairs import pair_indices, pair_report, wins

logger = logging.getLogger(__name__)

PANEL, LEFT_OUT, BEST = "panel", "panel, source left out", "best member"
ALL = "all sources"

Fold = tuple[np.ndarray, np.ndarray]


def train_panel(
    judge: Judge,
    questions: Sequence[Question],
    examples: Sequence[Example],
    *,
    statistics: Sequence[str] = ("mean", "sd"),
    folder: str | Path | None = None,
    options: PanelOptions | None = None,
    training: JsonObject | None = None,
) -> Panel:
    """Read the examples, fit a panel on all of them, and measure panels that did not see what they are measured on.

    Args:
        judge: any judge that gives label probabilities; "normed" and "raw" need label logits of every layer.
        questions: what is asked.
        examples: pairs, lists or ratings; 50 to 500 completions do.
        statistics: what is taken of each reading; see `latent_rewards.probes.questions.STATISTICS`.
        folder: where the readings are kept; a second run goes on there.
        options: how it is fitted.
        training: entries for the card: "data", "command", "limits".

    Returns:
        The panel, with its figures in `training["metrics"]`.

    Raises:
        ValueError: see `features_of`, `table_of` and `fit_line`.
    """
    o = options or PanelOptions()
    features = features_of(questions, statistics)
    readings = collect_readings(judge, questions, examples, folder=folder, lenses=lenses_of(features))
    table = table_of(features, questions, examples, readings)
    line = fit_line(table, o)
    record = dict(training or {})
    record["settings"] = {**dataclasses.asdict(o), "strength": line.strength, "rows": len(table)}
    record["metrics"] = figures(table, members_of(features, questions, examples, readings), o)
    w, mean, sd = line.weights, line.location, line.scales
    if o.length == "residual":
        features = (*features, Feature("", LENGTH))
        w, mean = np.append(w, line.by_length), np.append(mean, line.mean_length)
        sd = np.append(sd, np.log1p(table.length).std())
    logger.info("fitted on %d of %d completions, strength %g", len(table), len(examples), line.strength)
    return Panel(tuple(questions), features, w, mean, sd, line.bias, judge.name, judge.revision, record)


def members_of(
    features: Sequence[Feature], questions: Sequence[Question], examples: Sequence[Example], readings: Sequence[Reading]
) -> dict[str, np.ndarray]:
    """What each question says by itself, higher is better; rows as in `table_of` of the same features."""
    lenses = lenses_of(features)
    sign = {q.name: q.sign for q in questions}
    wanted = [Feature(q.name, s) for q in questions for s in ("mean", *sorted(lenses))]
    both = table_of([*wanted, *features], questions, examples, readings)
    return {f.name: sign[f.question] * both.x[:, i] for i, f in enumerate(wanted)}


def figures(table: Table, members: dict[str, np.ndarray], options: PanelOptions) -> list[Row]:
    """Figures by source and scorer: the panel on unseen prompts and on unseen sources, its members, and length.

    The best member is chosen on the rows that the panel was trained on, as one would choose it; so what it is compared
    with is no choice made on the figures themselves.
    """
    folds = folds_of(table.group, options)
    scores = {PANEL: unseen(table, folds, options)}
    chosen = folds
    if len(set(table.source)) > 1:
        chosen = source_folds(table)
        scores[LEFT_OUT] = unseen(table, chosen, options)
    scores[BEST] = _best_member(table, members, chosen)
    return rows_of(table, {**scores, **members, LENGTH: table.length.astype(float)})


def rows_of(table: Table, scores: dict[str, np.ndarray]) -> list[Row]:
    """A row for each source and scorer, and one for the panel's lead over its best member and over length."""
    sources = sorted(set(table.source))
    out = []
    for source in [*([ALL] if len(sources) > 1 and table.paired else []), *sources]:
        rows = np.ones(len(table), bool) if source == ALL else table.source == source
        part = table.take(rows)
        own = {name: s[rows] for name, s in scores.items()}
        for name, s in own.items():
            out.append({"source": source, "scorer": name, **_figures(part, s)})
        out += [{"source": source, **row} for row in leads(part, own)]
    return out


def leads(table: Table, scores: dict[str, np.ndarray], over: Sequence[str] = (BEST, LENGTH)) -> list[Row]:
    """The panel's accuracy less that of others on the same pairs, resampled together; nothing for ratings."""
    if not table.paired:
        return []
    better, worse = pair_indices(table.label, table.pair)
    made = {name: mean_estimate(wins(s, better, worse), table.group[better]) for name, s in scores.items()}
    mine = LEFT_OUT if LEFT_OUT in made else PANEL
    return [
        {"scorer": f"{mine} - {other}", "n": len(better), "accuracy": difference(made[mine], made[other])[:3]}
        for other in over if other in made
    ]  # fmt: skip


def _figures(table: Table, score: np.ndarray) -> Row:
    if table.paired:
        report = pair_report(score, table.label, table.pair, table.group, table.length)
        return {k: report[k] for k in ("n", "accuracy", "n_matched", "matched", "balanced", "length_correlation")}
    found = statistic_estimate(lambda rows: spearman(score[rows], table.label[rows]), table.group)
    return {"n": len(table), "spearman": found[:3]}


def source_folds(table: Table) -> list[Fold]:
    """Each source as the test, with all rows of other sources whose prompts do not stand in it."""
    out = []
    for source in sorted(set(table.source)):
        test = table.source == source
        train = ~test & ~np.isin(table.group, table.group[test])
        out.append((np.flatnonzero(train), np.flatnonzero(test)))
    return out


def unseen(table: Table, folds: Sequence[Fold], options: PanelOptions) -> np.ndarray:
    """(N,) scores of rows by panels that saw none of their prompts; NaN where nothing is left to learn from."""
    score = np.full(len(table), np.nan)
    for train, test in folds:
        check_disjoint(table.group[train], table.group[test])
        part = table.take(train)
        if len(np.unique(part.group)) >= options.folds and np.ptp(part.label) > 0:
            score[test] = fit_line(part, options)(table.take(test))
        else:
            logger.warning("no panel for %d rows: too little is left to learn from beside them", len(test))
    return score


def _best_member(table: Table, members: dict[str, np.ndarray], folds: Sequence[Fold]) -> np.ndarray:
    """(N,) scores of the member that is best on the other rows of each fold; standardised there."""
    out = np.full(len(table), np.nan)
    for train, test in folds:
        if not len(train):
            continue
        part = table.take(train)
        best = max(members.values(), key=lambda s: _worth(part, s[train]))
        spread = best[train].std()
        out[test] = (best[test] - best[train].mean()) / (spread if spread > 0 else 1.0)
    return out


def _worth(table: Table, score: np.ndarray) -> float:
    if not table.paired:
        return spearman(score, table.label)
    better, worse = pair_indices(table.label, table.pair)
    return float(np.mean(wins(score, better, worse)))
