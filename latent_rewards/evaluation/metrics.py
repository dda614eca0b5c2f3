"""The figures, in pure numpy: how well scores order, rate and pick responses, beside what length alone does.

A metric takes a `Table` and returns either (N,) per-item values, whose mean is the figure (NaN items are left out), or
one number for the whole table. `METRICS` at the foot lists them by kind; a new one is a function and a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from latent_rewards.evaluation.table import Table
from latent_rewards.stats.correlation import kendall_tau_b, partial_spearman, pearson, spearman
from latent_rewards.stats.distributions import histogram, unit
from latent_rewards.stats.pairs import EVALUATION_LENGTH_TOLERANCE, length_matched
from latent_rewards.stats.ranking import dcg

Metric = Callable[[Table], "np.ndarray | float"]


def accuracy(t: Table) -> np.ndarray:
    """1 where chosen > rejected, 1/2 for a tie, else 0: the expectation of breaking ties by a coin."""
    return _where_known(t, (np.sign(_gap(t)) + 1) / 2)


def accuracy_strict(t: Table) -> np.ndarray:
    """1 where chosen > rejected; a tie is wrong."""
    return _where_known(t, (_gap(t) > 0).astype(float))


def accuracy_lenient(t: Table) -> np.ndarray:
    """1 where chosen >= rejected; a tie is right."""
    return _where_known(t, (_gap(t) >= 0).astype(float))


def accuracy_random_ties(t: Table) -> np.ndarray:
    """One draw of ties split at random (fixed seed), as Girrbach et al. 2025 report Likert judges."""
    coin = np.random.default_rng(0).integers(0, 2, len(t))
    gap = _gap(t)
    return _where_known(t, np.where(gap == 0, coin, gap > 0).astype(float))


def accuracy_length_balanced(t: Table) -> float:
    """Mean of the accuracy where the chosen is the longer and where it is the shorter; length alone gets 0.5."""
    right, longer = accuracy(t), np.sign(t.lengths[:, 0] - t.lengths[:, 1])
    strata = [right[(longer == side) & ~np.isnan(right)] for side in (1, -1)]
    return float(np.mean([s.mean() for s in strata])) if all(map(len, strata)) else math.nan


def accuracy_length_matched(t: Table) -> np.ndarray:
    """Accuracy on the pairs whose lengths differ by at most 10 % of the longer one."""
    matched = length_matched(*t.lengths[:, :2].T, tolerance=EVALUATION_LENGTH_TOLERANCE)
    return np.where(matched, accuracy(t), np.nan)


def margin(t: Table) -> np.ndarray:
    """Chosen minus rejected score, in standard deviations of all scores of the benchmark."""
    spread = np.nanstd(t.scores) if not np.isnan(t.scores).all() else math.nan
    return _gap(t) / spread if spread > 0 else np.zeros(len(t)) * spread


def ties(t: Table) -> np.ndarray:
    """1 where two responses to one prompt have the same score; for lists, the share of such pairs."""
    i, j = np.triu_indices(t.scores.shape[1], 1)
    same, known = _equal_pairs(t.scores, i, j)
    with np.errstate(invalid="ignore"):
        return same.sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def rating_pearson(t: Table) -> float:
    """Pearson correlation of score and gold."""
    return pearson(*_ratings(t))


def rating_spearman(t: Table) -> float:
    """Spearman rank correlation of score and gold, average ranks for ties."""
    return spearman(*_ratings(t))


def rating_kendall(t: Table) -> float:
    """Kendall's tau-b of score and gold."""
    return kendall_tau_b(*_ratings(t))


def rating_spearman_length_partial(t: Table) -> float:
    """Spearman correlation of score and gold with the rank of length regressed out of both; 0 for length itself."""
    keep = t.complete & ~np.isnan(t.gold[:, 0])
    return partial_spearman(t.scores[keep, 0], t.gold[keep, 0], t.lengths[keep, 0])


def rating_mse(t: Table) -> np.ndarray:
    """Squared difference of score and gold, both mapped from their scales to [0, 1]."""
    return (unit(t.scores[:, 0], t.score_range) - unit(t.gold[:, 0], t.gold_range)) ** 2


def rating_kl(t: Table, bins: int = 10) -> float:
    """KL(gold || scores) of the two histograms over [0, 1], nats; half a count is added to every bin."""
    score, gold = _ratings(t)
    if not len(score):
        return math.nan
    p, q = (histogram(x, r, bins) + 0.5 for x, r in ((gold, t.gold_range), (score, t.score_range)))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def list_spearman(t: Table) -> np.ndarray:
    """Spearman correlation within each list; 0 where all scores tie, NaN where all gold ties."""
    return _per_list(t, lambda s, g, n: 0.0 if _flat(s) else spearman(s, g))


def list_accuracy(t: Table) -> np.ndarray:
    """Share of a list's pairs of different gold that the scores order rightly; a tie is half right."""
    right, _ = _ordered_pairs(t)
    known = ~np.isnan(right)
    with np.errstate(invalid="ignore"):
        return np.where(known, right, 0).sum((1, 2)) / np.where(known.any((1, 2)), known.sum((1, 2)), np.nan)


def list_accuracy_length_balanced(t: Table) -> float:
    """Mean over all lists' pairs in which the better is the longer and in which it is the shorter; length gets 0.5."""
    right, longer = _ordered_pairs(t)
    strata = [right[(longer == side) & ~np.isnan(right)] for side in (1, -1)]
    return float(np.mean([s.mean() for s in strata])) if all(map(len, strata)) else math.nan


def ndcg(t: Table) -> np.ndarray:
    """Normalised discounted cumulative gain: linear gains above the list's worst, ties averaged."""
    return _per_list(t, lambda s, g, n: dcg(s, g - g.min()) / dcg(g, g - g.min()))


def top1_gold(t: Table) -> np.ndarray:
    """Gold of the response with the highest score, averaged over ties for the highest."""
    return _per_list(t, lambda s, g, n: float(g[s == s.max()].mean()))


def top1_hit(t: Table) -> np.ndarray:
    """Chance that the pick is one of the best responses of its list, ties for the highest score broken by a coin."""
    return _per_list(t, lambda s, g, n: float((g[s == s.max()] == g.max()).mean()))


def regret_oracle(t: Table) -> np.ndarray:
    """Best gold of the list minus the gold of the pick; 0 is perfect."""
    return np.nanmax(t.gold, 1, initial=-np.inf, where=~np.isnan(t.gold)) - top1_gold(t)


def gain_random(t: Table) -> np.ndarray:
    """Gold of the pick minus the mean gold: what is won over picking at random."""
    return top1_gold(t) - np.nanmean(t.gold, 1)


def gain_longest(t: Table) -> np.ndarray:
    """Gold of the pick minus the gold of the longest response."""
    return _per_list(t, lambda s, g, n: float(g[s == s.max()].mean() - g[n == n.max()].mean()))


def _gap(t: Table) -> np.ndarray:
    return t.scores[:, 0] - t.scores[:, 1]


def _where_known(t: Table, values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(_gap(t)), np.nan, values)


def _equal_pairs(scores: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(scores[:, i]) & ~np.isnan(scores[:, j])
    return (scores[:, i] == scores[:, j]) & known, known


def _ratings(t: Table) -> tuple[np.ndarray, np.ndarray]:
    keep = ~np.isnan(t.scores[:, 0]) & ~np.isnan(t.gold[:, 0])
    return t.scores[keep, 0], t.gold[keep, 0]


def _ordered_pairs(t: Table) -> tuple[np.ndarray, np.ndarray]:
    """(N, M, M) whether response i is rightly scored over j (NaN unless its gold is higher), and sign of its length."""

    def gap(a: np.ndarray) -> np.ndarray:
        return np.sign(a[:, :, None] - a[:, None, :])

    with np.errstate(invalid="ignore"):
        return np.where(gap(t.gold) > 0, (gap(t.scores) + 1) / 2, np.nan), gap(t.lengths)


def _per_list(t: Table, f: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> np.ndarray:
    """A function of (scores, gold, lengths) on each list that is scored throughout and whose gold differs."""
    out = np.full(len(t), np.nan)
    for i in np.flatnonzero(t.complete):
        there = ~np.isnan(t.gold[i])
        scores, gold, lengths = t.scores[i, there], t.gold[i, there], t.lengths[i, there]
        if len(gold) > 1 and not _flat(gold):
            out[i] = f(scores, gold, lengths)
    return out


def _flat(values: np.ndarray) -> bool:
    return bool((values == values[0]).all()) if len(values) else True


# The first metric of a kind is the one that scorers are compared by.
METRICS: dict[str, dict[str, Metric]] = {
    "pair": {
        "accuracy": accuracy,
        "accuracy_strict": accuracy_strict,
        "accuracy_lenient": accuracy_lenient,
        "accuracy_random_ties": accuracy_random_ties,
        "accuracy_length_balanced": accuracy_length_balanced,
        "accuracy_length_matched": accuracy_length_matched,
        "margin": margin,
        "ties": ties,
    },
    "rating": {
        "spearman": rating_spearman,
        "pearson": rating_pearson,
        "kendall": rating_kendall,
        "spearman_length_partial": rating_spearman_length_partial,
        "mse": rating_mse,
        "kl": rating_kl,
    },
    "list": {
        "spearman": list_spearman,
        "accuracy": list_accuracy,
        "accuracy_length_balanced": list_accuracy_length_balanced,
        "ndcg": ndcg,
        "top1_gold": top1_gold,
        "top1_hit": top1_hit,
        "regret_oracle": regret_oracle,
        "gain_random": gain_random,
        "gain_longest": gain_longest,
        "ties": ties,
    },
}

# The figure that length alone cannot win: it scores 0.5 on pairs and lists and 0 on ratings.
LENGTH_CONTROLLED = {
    "pair": "accuracy_length_balanced",
    "rating": "spearman_length_partial",
    "list": "accuracy_length_balanced",
}
