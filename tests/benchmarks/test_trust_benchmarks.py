"""What the benchmarks of attacks and of determinism compute, on numbers small enough to check by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from latent_rewards.probes.negatives import attack_examples

pytest.importorskip("sklearn")

from benchmarks import attack_gate, determinism


def test_batchings_read_every_row_once() -> None:
    groups = [[{"prompt": str(g), "completion": str(k)} for k in range(g + 2)] for g in range(20)]
    count = sum(map(len, groups))
    one, two = determinism.mixed(groups, 1), determinism.mixed(groups, 2)
    assert one != two and one == determinism.mixed(groups, 1)
    for batches in (one, two, determinism.cut(list(range(count)), 7), determinism.ragged([0, 1, 2], random.Random(0))):
        flat = sorted(i for batch in batches for i in batch)
        assert flat == list(range(len(flat))) and all(batches)
    pairs = determinism.pairs_of(groups[:2])
    assert pairs.tolist() == [[0, 1], [2, 3], [2, 4], [3, 4]]


def test_change_by_hand() -> None:
    a = np.log(np.full((4, 11), 1 / 11))
    a[0, 10] += 1
    b = a.copy()
    b[1, 10] += 2
    same, other = determinism.change(a, a, np.array([[0, 1], [2, 3]])), determinism.change(a, b, np.array([[0, 1]]))
    assert same["identical"] and same["flips"] == same["nats"]["largest"] == 0
    assert not other["identical"] and other["flips"] == 1 and other["flipped"] == 1
    assert other["nats"]["largest"] == pytest.approx(2) and other["points"]["median"] == 0
    x = np.exp([0.0] * 10 + [1.0])
    gap = (x / x.sum()) @ np.arange(11) - 5
    assert other["largest_gap_flipped"] == pytest.approx(gap)


def test_gate_success_by_hand() -> None:
    prompts = [f"question {i}" for i in range(6)]
    examples = attack_examples(prompts, [" ".join([f"word{i}"] * 20) for i in range(6)])
    kind, pair = attack_gate.kinds_of(examples), np.array([e.pair for e in examples])
    assert kind.tolist() == ["honest", "other", "other", "start", "phrase", "phrase"] * 6
    score = np.where(kind == "honest", 1.0, np.where(kind == "start", 1.0, 0.0))
    assert attack_gate.outscored(score, pair, kind) == {"other": 0, "start": 1, "phrase": 0, "mean": 1 / 3}


def test_words_fitted_by_the_benchmark_are_what_the_package_reads() -> None:
    from latent_rewards.rewards import relevance

    prompts = [f"What colour is thing{i}?" for i in range(30)]
    examples = attack_examples(prompts, [f"The colour of thing{i} is blue, always." for i in range(30)])
    x = np.array([relevance.features(e.prompt, e.completion) for e in examples])
    fit = attack_gate.fit_words(x, np.array([e.label for e in examples]))
    assert tuple(fit["features"]) == relevance.FEATURES and len(fit["weights"]) == x.shape[1]
