"""Does a judge agree with itself when it compares: order swap, transitivity, and its scores against its comparisons.

Sources: TrustJudge (likelihood-aware comparison, score-comparison inconsistency), Sage (local self-consistency under a
swap, global consistency as the share of transitive triples).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from latent_rewards.evaluation.benchmarks.rows import Benchmark, Item
from latent_rewards.evaluation.results import Consistency
from latent_rewards.files.types import Row
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.readouts import label_probs
from latent_rewards.stats import bootstrap
from latent_rewards.stats.bootstrap import Figure


def pairs(item: Item, width: int = 3) -> list[tuple[int, int]]:
    """Pairs of an item that are compared: those among its first responses."""
    return list(itertools.combinations(range(min(len(item.responses), width)), 2))


def rows(benchmark: Benchmark, count: int) -> list[Row]:
    """Texts for the pairwise prompt: every pair in both orders, one after the other."""
    return [
        {"prompt": item.prompt, "completion": item.responses[a], "other": item.responses[b]}
        for item in benchmark.sample(count).items
        for i, j in pairs(item)
        for a, b in ((i, j), (j, i))
    ]


def preference(label_logprobs: torch.Tensor, prompt: JudgePrompt) -> tuple[np.ndarray, np.ndarray]:
    """P(first shown is better) of every pair, shown in its order and swapped.

    Args:
        label_logprobs: (2P, K) for `rows`, nats.
        prompt: its labels have value 1 for the first shown and 0 for the second.

    Returns:
        Two (P,) arrays; a judge that is consistent has the second equal to 1 minus the first.
    """
    assert prompt.labels is not None
    values = torch.tensor(prompt.labels.values)
    p = (label_probs(label_logprobs) * values).sum(-1).double().numpy()
    return p[0::2], p[1::2]


def aware(first: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """Likelihood-aware preference for the first response: the mean of what both orders say."""
    return (first + 1 - swapped) / 2


def measure(
    benchmark: Benchmark,
    count: int,
    first: np.ndarray,
    swapped: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    resamples: int = 1000,
) -> Consistency:
    """All measures of one benchmark.

    Args:
        benchmark: pairs or lists.
        count: items used, as in `rows`.
        first: (P,) from `preference`.
        swapped: (P,).
        scores: scorer -> (P, 2) scores of the two responses of every pair.
        resamples: bootstrap draws.

    Returns:
        `local`: share of pairs whose choice survives the swap; `first_place`: mean P(first shown); `accuracy_one_order`
        and `accuracy_aware` against gold; `global_one_order` and `global_aware`: share of triples without a cycle;
        `conflict`: by scorer the share of pairs that are scored one way and compared the other way.
    """
    items = benchmark.sample(count).items
    owner = [(item, i, j) for item in items for i, j in pairs(item)]
    groups = np.array([item.group for item, *_ in owner])
    gold = np.sign([item.gold[i] - item.gold[j] for item, i, j in owner])
    mean = aware(first, swapped)

    def estimate(values: np.ndarray, known: np.ndarray, by: np.ndarray = groups) -> Figure:
        usable = np.where(known, values.astype(float), np.nan)
        return bootstrap.mean_estimate(usable, by, resamples=resamples).to_dict()

    read = ~np.isnan(mean)
    out: Consistency = {
        "local": estimate((first > 0.5) != (swapped > 0.5), read),
        "first_place": estimate((first + swapped) / 2, read),
        "accuracy_one_order": estimate((np.sign(first - 0.5) * gold + 1) / 2, read & (gold != 0)),
        "accuracy_aware": estimate((np.sign(mean - 0.5) * gold + 1) / 2, read & (gold != 0)),
        "conflict": {
            name: estimate(np.sign(s[:, 0] - s[:, 1]) * np.sign(mean - 0.5) < 0, read & (s[:, 0] != s[:, 1]))
            for name, s in scores.items()
        },
    }
    one_order, by = _triples(items, first)
    both_orders, _ = _triples(items, mean)
    if len(by):
        out["global_one_order"] = estimate(_transitive(one_order), ~np.isnan(one_order).any(1), by)
        out["global_aware"] = estimate(_transitive(both_orders), ~np.isnan(both_orders).any(1), by)
    return out


def _triples(items: Sequence[Item], p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, 3) preferences (0 over 1, 0 over 2, 1 over 2) of items with three responses, and their groups."""
    found, by, at = [], [], 0
    for item in items:
        n = len(pairs(item))
        if n == 3:
            found.append(p[at : at + 3])
            by.append(item.group)
        at += n
    return np.array(found).reshape(len(found), 3), np.array(by)


def _transitive(triples: np.ndarray) -> np.ndarray:
    """A cycle is 0 > 1 > 2 > 0 or its reverse; one half is a tie and makes no cycle."""
    s = np.sign(triples - 0.5)
    return ~((s[:, 0] == s[:, 2]) & (s[:, 1] == -s[:, 0]) & (s[:, 0] != 0))
