"""Probes of the benchmark tables: which are trained, on what, and their scores where they saw no prompt of a file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from benchmarks.probe_sample import EVERY, RATED, Sample
from latent_rewards.probes.cross_validation import out_of_fold
from latent_rewards.probes.features import Features
from latent_rewards.probes.fit import Data, FitOptions, fit_head
from latent_rewards.probes.networks import state_scores
from latent_rewards.stats.pairs import PROBE_LENGTH_TOLERANCE, length_matched, pair_indices, wins

OPEN = ("MIT", "Apache-2.0")
PROBE, INSIDE, LENGTH, PROMPTED = "probe, benchmark left out", "probe, in distribution", "length", "prompted"


@dataclass(frozen=True)
class Recipe:
    """How probes of one judge are trained.

    Attributes:
        layers: read side by side where the benchmark is left out.
        sources: files that such a probe may be trained on.
        fit: its settings.
        inside: settings in distribution.
        inside_layers: layers in distribution; none is `layers`.
    """

    layers: tuple[int, ...]
    sources: tuple[str, ...]
    fit: FitOptions
    inside: FitOptions
    inside_layers: tuple[int, ...] = ()


_FIT = FitOptions(objective="bradley_terry", strength=1e-4, guards=("erase", "balance"))
_SOURCES = (
    "pairwise/alpacaeval_lenmatched", "pairwise/hh_harmless", "pairwise/hhh_alignment", "pairwise/llmeval2",
    "pairwise/faireval",
)  # fmt: skip
_BALANCE = dataclasses.replace(_FIT, guards=("balance",))
RECIPES = {
    "embedded": Recipe(
        (30,), _SOURCES, dataclasses.replace(_BALANCE, strength=5e-3), dataclasses.replace(_BALANCE, strength=3e-5),
        (16, 17, 18),
    ),
    "shipped": Recipe((17,), (*_SOURCES, "extra/alpacaeval"), _BALANCE, _BALANCE),
    "Qwen2.5-Coder-0.5B-Instruct": Recipe(
        (18,), (*_SOURCES, "pairwise/llmbar"), dataclasses.replace(_BALANCE, strength=1e-2), _FIT, (10,)
    ),
    "Qwen2.5-Coder-1.5B-Instruct": Recipe((20,), (*_SOURCES, "pairwise/llmbar"), _FIT, _FIT),
}  # fmt: skip
DEFAULT = Recipe((16,), (*_SOURCES, "pairwise/llmbar"), _FIT, _FIT)
FEWEST = 10  # pairs of a file in a mean over files
IN_DISTRIBUTION = ("pairwise/alpacaeval_lenmatched", "pairwise/rmb", "pairwise/autoj")


@dataclass
class Bench:
    """One file: its sample, its features, and which rows of the sample could be read."""

    name: str
    sample: Sample
    features: Features

    def __post_init__(self) -> None:
        self.read = self.features.column("read").astype(bool)
        self.better, self.worse = pair_indices(self.column("label"), self.column("pair"))
        self.group = self.column("group")[self.better]
        self.unseen = ~self.sample.dev[self.read][self.better]
        self.random = self.sample.random[self.read][self.better]
        self.adversarial = np.char.startswith(self.sample.subset[self.read][self.better], "Adversarial")
        self.matched = length_matched(
            *(self.column("length")[rows] for rows in (self.better, self.worse)), tolerance=PROBE_LENGTH_TOLERANCE
        )
        self.longer = np.sign(self.column("length")[self.better] - self.column("length")[self.worse])

    @property
    def family(self) -> str:
        """Files of one family are never on both sides."""
        return EVERY[self.name].family

    def column(self, name: str) -> np.ndarray:
        """A column of the readable rows."""
        return self.features.column(name)[self.read]


def rows_of(benches: list[Bench], layers: tuple[int, ...]) -> Data:
    """Rows of several files; pair numbers and sources are made distinct."""
    parts, start = [], 0
    for i, bench in enumerate(benches):
        data = Data.of(bench.features, layers)
        parts.append(dataclasses.replace(data, pair=data.pair + start, source=np.full(len(data), i)))
        start += int(data.pair.max()) + 1
    return Data(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Data)))


def left_out(benches: dict[str, Bench], name: str, recipe: Recipe, *, dev_only: bool = False) -> np.ndarray:
    """Scores of a file by a probe trained on the sources of other families, without this file's prompts."""
    test = Data.of(benches[name].features, recipe.layers)
    sources = [benches[s] for s in recipe.sources if s in benches and benches[s].family != benches[name].family]
    train = rows_of(sources, recipe.layers)
    if dev_only:
        train = train.take(np.concatenate([b.sample.dev[b.read] for b in sources]))
    train = train.take(~np.isin(train.group, test.group))
    return state_scores(test.x, fit_head(train, recipe.fit, n_layers=len(recipe.layers)), "linear")[:, 0]


def in_distribution(benches: dict[str, Bench], name: str, recipe: Recipe, prompts: int | None = None) -> np.ndarray:
    """Out-of-fold scores of a file by probes trained on other prompts of its family alone; NaN for few prompts."""
    layers = recipe.inside_layers or recipe.layers
    test = Data.of(benches[name].features, layers)
    if len(np.unique(test.group)) < 40:
        return np.full(len(test), np.nan)
    names = [name, *(n for n, b in benches.items() if n != name and b.family == benches[name].family)]
    train = rows_of([benches[n] for n in names if n not in RATED], layers)
    return out_of_fold(train, recipe.inside, n_layers=len(layers), prompts=prompts)[: len(test)]


def won(bench: Bench, score: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of some pairs a score orders rightly, and their prompt groups."""
    return wins(score, bench.better, bench.worse)[rows], bench.group[rows]


def enough(parts: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Those of at least `FEWEST` pairs."""
    return [p for p in parts if len(p[0]) >= FEWEST]
