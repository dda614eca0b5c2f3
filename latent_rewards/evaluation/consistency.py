"""Does a judge agree with itself when it compares: order swap, transitivity, and its scores against its comparisons.

Sources: TrustJudge (arXiv 2509.21117; likelihood-aware comparison, score-comparison inconsistency), Sage (arXiv
2512.16041; instability within pairs, violations of a weak order).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from latent_rewards.evaluation.benchmarks.rows import Benchmark, Item
from latent_rewards.evaluation.results import Consistency
from latent_rewards.files.types import Row
from latent_rewards.rewards.games import in_both_orders, sigmoid
from latent_rewards.stats import bootstrap
from latent_rewards.stats.bootstrap import Figure


def pairs(item: Item, width: int = 3) -> list[tuple[int, int]]:
    """Pairs of an item that are compared: those among its first responses."""
    return list(itertools.combinations(range(min(len(item.responses), width)), 2))


def rows(benchmark: Benchmark, count: int) -> list[Row]:
    """Texts for the pairwise prompt: every pair in both orders, one after the other."""
    return [
        text
        for item in benchmark.sample(count).items
        for i, j in pairs(item)
        for text in in_both_orders({"prompt": item.prompt}, item.responses[i], item.responses[j])
    ]


def measure(
    benchmark: Benchmark,
    count: int,
    d: np.ndarray,
    first: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    resamples: int = 1000,
) -> Consistency:
    """All measures of one benchmark, before and after the mean over both orders.

    "one order" decides a pair as it is shown, "aware" by d, the mean log-odds over both orders, which is what
    `PairwiseReward` gives. Sage's two are of ordered pairs (i, j), y_ij the sign of what is said with i first; after
    the mean y_ij = -y_ji by construction, so the first of them is 0 then and only the second is given.

    Args:
        benchmark: pairs or lists.
        count: items used, as in `rows`.
        d: (P,) log-odds that the first of each pair beats the second, nats; see `PairwiseReward.odds`.
        first: (P, 2) log-odds of the first shown, in the pair's order and swapped, nats.
        scores: scorer -> (P, 2) scores of the two responses of every pair.
        resamples: bootstrap draws.

    Returns:
        `local`: share of pairs whose choice survives the swap; `first_place`: mean P(first shown); `accuracy_one_order`
        and `accuracy_aware` against gold; `global_one_order` and `global_aware`: share of triples without a cycle;
        `ipi`: mean over items of the share of pairs with y_ij != -y_ji; `tov_one_order` and `tov_aware`: mean over
        items of three responses or more of the fewest y_ij that have to change to make a weak order of them;
        `conflict_one_order` and `conflict`: by scorer the share of pairs that are scored one way and compared the
        other way.

    Source: Sage (arXiv 2512.16041), eq. 2 (IPI) and 3 (TOV).
    """
    items = benchmark.sample(count).items
    owner = [(item, i, j) for item in items for i, j in pairs(item)]
    groups = np.array([item.group for item, *_ in owner])
    gold = np.sign([item.gold[i] - item.gold[j] for item, i, j in owner])
    shown, swapped, read = first[:, 0], first[:, 1], ~np.isnan(d)

    def estimate(values: np.ndarray, known: np.ndarray, by: np.ndarray = groups) -> Figure:
        usable = np.where(known, values.astype(float), np.nan)
        return bootstrap.mean_estimate(usable, by, resamples=resamples).to_dict()

    def conflict(odds: np.ndarray) -> dict[str, Figure]:
        return {
            name: estimate(np.sign(s[:, 0] - s[:, 1]) * np.sign(odds) < 0, read & (s[:, 0] != s[:, 1]))
            for name, s in scores.items()
        }

    out: Consistency = {
        "local": estimate((shown > 0) != (swapped > 0), read),
        "first_place": estimate((sigmoid(shown) + sigmoid(swapped)) / 2, read),
        "accuracy_one_order": estimate((np.sign(shown) * gold + 1) / 2, read & (gold != 0)),
        "accuracy_aware": estimate((np.sign(d) * gold + 1) / 2, read & (gold != 0)),
        "conflict_one_order": conflict(shown),
        "conflict": conflict(d),
    }
    own = _by_item(items, np.sign(np.column_stack([shown, swapped, d, -d])))
    by_item = np.array([item.group for item in items])
    flips = np.array([np.mean(y[:, 0] != -y[:, 1]) if len(y) else np.nan for y in own])
    out["ipi"] = estimate(flips, ~np.isnan(flips), by_item)
    ranked = [(y, item.group) for y, item in zip(own, items, strict=True) if len(y) >= 3 and not np.isnan(y).any()]
    if ranked:
        by = np.array([group for _, group in ranked])
        every = np.ones(len(ranked), bool)
        out["tov_one_order"] = estimate(np.array([violations(y[:, :2]) for y, _ in ranked]), every, by)
        out["tov_aware"] = estimate(np.array([violations(y[:, 2:]) for y, _ in ranked]), every, by)
    one_order, by = _triples(items, shown)
    both_orders, _ = _triples(items, d)
    if len(by):
        out["global_one_order"] = estimate(_transitive(one_order), ~np.isnan(one_order).any(1), by)
        out["global_aware"] = estimate(_transitive(both_orders), ~np.isnan(both_orders).any(1), by)
    return out


def violations(y: np.ndarray) -> int:
    """Fewest verdicts on ordered pairs that have to change to make a weak order, ties allowed, of all.

    Args:
        y: (P, 2) signs of what is said of each pair (i, j), in the order of `itertools.combinations`, and of (j, i).

    Source: Sage, eq. 3.
    """
    n = round((1 + np.sqrt(1 + 8 * len(y))) / 2)
    orders = _weak_orders(n)
    return int(((orders != y[:, 0]).sum(1) + (-orders != y[:, 1]).sum(1)).min())


@functools.cache
def _weak_orders(n: int) -> np.ndarray:
    """(O, P) signs that each weak order of n items gives to their pairs; 13 for three items, 75 for four."""
    ranks = np.array(list(itertools.product(range(n), repeat=n)))
    i, j = (np.array(at) for at in zip(*itertools.combinations(range(n), 2), strict=True))
    return np.unique(np.sign(ranks[:, j] - ranks[:, i]), axis=0)


def _by_item(items: Sequence[Item], values: np.ndarray) -> list[np.ndarray]:
    """Each item's rows of values that are by pair."""
    return np.split(values, np.cumsum([len(pairs(item)) for item in items])[:-1])


def _triples(items: Sequence[Item], odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, 3) log-odds (0 over 1, 0 over 2, 1 over 2) of items with three responses, and their groups."""
    own = [(x, item.group) for x, item in zip(_by_item(items, odds), items, strict=True) if len(x) == 3]
    return np.array([x for x, _ in own]).reshape(len(own), 3), np.array([group for _, group in own])


def _transitive(triples: np.ndarray) -> np.ndarray:
    """A cycle is 0 > 1 > 2 > 0 or its reverse; log-odds of 0 are a tie and make no cycle."""
    s = np.sign(triples)
    return ~((s[:, 0] == s[:, 2]) & (s[:, 1] == -s[:, 0]) & (s[:, 0] != 0))
