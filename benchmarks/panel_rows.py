"""Rows that panels, probes and contrasts are fitted and measured on, from the files of `panel_sample` alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import readings_file
from benchmarks.readings_file import Arrays
from latent_rewards import Reading
from latent_rewards.probes.panel_fit import Table
from latent_rewards.probes.questions import Question, default_questions, features_of, values_of
from latent_rewards.stats.bootstrap import Estimate, difference, mean_estimate
from latent_rewards.stats.pairs import PROBE_LENGTH_TOLERANCE, length_matched

LEFT_OUT, SEEN, OWN = "set left out", "prompts left out", "own set, prompts left out"
SIZES = (50, 150, 500)  # labelled rows, two of a pair
FOLDS = 5

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """2 P completions, those of a pair side by side and the better one first.

    Attributes:
        about: what was read, by what.
        arrays: as `panel_sample.packed` made them.
        table: features of the panel, labels and the rest.
        members: what each question says by itself, higher is better; (2 P,) each.
    """

    about: dict[str, Any]
    arrays: Arrays
    table: Table
    members: dict[str, np.ndarray]

    @property
    def group(self) -> np.ndarray:
        """(P,) prompt of each pair."""
        return self.table.group[::2]

    @property
    def source(self) -> np.ndarray:
        """(P,) file of each pair."""
        return self.table.source[::2]

    @property
    def matched(self) -> np.ndarray:
        """(P,) whether the lengths of a pair differ by at most a fifth."""
        return length_matched(self.table.length[::2], self.table.length[1::2], tolerance=PROBE_LENGTH_TOLERANCE)

    def won(self, score: np.ndarray) -> np.ndarray:
        """(P,) 1 where the better one of a pair scores higher, 0.5 for a tie, NaN where a score is missing."""
        gap = score[::2] - score[1::2]
        return np.where(np.isnan(gap), np.nan, (np.sign(gap) + 1) / 2)


def load_rows(folder: Path, statistics: tuple[str, ...] = ("mean", "sd")) -> Rows:
    """The readings in a folder; pairs of which one could not be read are left out and counted in `about["unread"]`.

    Raises:
        ValueError: they were made with other questions than this version asks.
    """
    about, arrays = readings_file.load_all(sorted(folder.glob("panel-*.npz")))
    questions = default_questions()
    if about["questions"] != [[q.name, q.prompt.hash, q.criterion] for q in questions]:
        raise ValueError(f"{folder} was read with other questions than this version's")
    _, place, count = np.unique(arrays["pair"], return_inverse=True, return_counts=True)
    read = np.all([np.isfinite(arrays[f"{q.name}/logprobs"]).all(1) for q in questions], axis=0)
    whole = count[place] == 2
    bad = ~whole | np.isin(arrays["pair"], arrays["pair"][~read])
    order = np.lexsort((-arrays["label"], arrays["pair"]))
    order = order[~bad[order]]
    about["unread"] = int((bad & whole).sum())
    arrays = {name: x[order] for name, x in arrays.items()}
    features = features_of(questions, statistics)
    readings = [reading_of(arrays, q) for q in questions]
    x = values_of(features, questions, readings, arrays["length"])
    source = np.array([s.rsplit("/", 1)[-1] for s in arrays["source"]])
    table = Table(x, arrays["label"].astype(float), arrays["pair"], arrays["group"], arrays["length"], source)
    means = values_of(features_of(questions, ("mean",)), questions, readings, arrays["length"])
    return Rows(about, arrays, table, {q.name: q.sign * means[:, i] for i, q in enumerate(questions)})


def reading_of(arrays: Arrays, question: Question) -> Reading:
    """What is kept of a question, as the judge gave it; of layers their mean."""
    lenses = [lens for lens in ("normed", "raw") if f"{question.name}/{lens}" in arrays]
    return Reading(
        torch.tensor(arrays[f"{question.name}/logprobs"]),
        torch.tensor(arrays[f"{question.name}/mass"]),
        layer_label_logits={lens: torch.tensor(arrays[f"{question.name}/{lens}"])[:, None] for lens in lenses},
        reasons=(None,) * len(arrays["label"]),
    )


def splits(rows: Rows, setting: str, seed: int = 42) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train, test) pair numbers of one setting, no prompt on both sides."""
    group, source = rows.group, rows.source
    if setting == LEFT_OUT:
        for name in np.unique(source):
            test = source == name
            yield np.flatnonzero(~test & ~np.isin(group, group[test])), np.flatnonzero(test)
        return
    prompts = np.unique(group)
    fold_of = dict(zip(prompts, np.random.default_rng(seed).permutation(len(prompts)) % FOLDS, strict=True))
    fold = np.array([fold_of[g] for g in group])
    for own in [np.ones(len(group), bool)] if setting == SEEN else [source == s for s in np.unique(source)]:
        for k in range(FOLDS):
            yield np.flatnonzero(own & (fold != k)), np.flatnonzero(own & (fold == k))


def wins_of(
    rows: Rows, setting: str, size: int | None, fits: dict[str, Fit], *, draws: int, seed: int = 42
) -> dict[str, np.ndarray]:
    """(P,) share of `draws` training samples of `size` rows after which each fit orders a pair rightly.

    Args:
        rows: the pairs.
        setting: what the pair that is measured has in common with those that are fitted on.
        size: labelled rows; None takes all that there are, once.
        fits: name -> function of (training rows, test rows) that gives the scores of the test rows.
        draws: samples of the training pairs, the same for all fits.
        seed: of the samples.
    """
    out = {name: np.full(len(rows.group), np.nan) for name in fits}
    for number, (train, test) in enumerate(splits(rows, setting)):
        if (size is not None and 2 * len(train) < size) or not len(test):
            continue
        made: dict[str, list[np.ndarray]] = {name: [] for name in fits}
        for draw in range(draws if size is not None else 1):
            rng = np.random.default_rng([seed, number, draw])
            some = train if size is None else rng.permutation(train)[: size // 2]
            for name, fit in fits.items():
                score = np.full(len(rows.table), np.nan)
                both = _rows_of(test)
                score[both] = fit(_rows_of(some), both)
                made[name].append(rows.won(score)[test])
        for name, won in made.items():
            out[name][test] = np.mean(won, axis=0)
    return out


def _rows_of(pairs: np.ndarray) -> np.ndarray:
    return np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()


def estimates(rows: Rows, won: np.ndarray, part: np.ndarray | None = None) -> Estimate:
    """Share of pairs that are ordered rightly, with the interval over prompts."""
    part = np.ones(len(won), bool) if part is None else part
    return mean_estimate(won[part], rows.group[part])


def lead(rows: Rows, first: np.ndarray, second: np.ndarray, part: np.ndarray | None = None) -> tuple[float, ...]:
    """First less second on the same pairs, with the paired interval."""
    known = np.isfinite(first) & np.isfinite(second) & (True if part is None else part)
    return tuple(difference(estimates(rows, first, known), estimates(rows, second, known))[:3])


def balanced(rows: Rows, won: np.ndarray) -> float:
    """Mean of the shares where the better one is longer and where it is shorter."""
    gap = rows.table.length[::2] - rows.table.length[1::2]
    parts = [won[(np.sign(gap) == side) & np.isfinite(won)] for side in (1, -1)]
    return float(np.mean([p.mean() for p in parts])) if all(map(len, parts)) else float("nan")
