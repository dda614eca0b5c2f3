import math

import numpy as np
import pytest
import torch

from latent_rewards import JudgePrompt
from latent_rewards.evaluation import consistency, robustness
from latent_rewards.evaluation.attacks import ATTACKS, KINDS, attacked, best_response
from latent_rewards.evaluation.benchmarks.rows import collect
from latent_rewards.evaluation.scorers import Column

PAIRS = collect("p", [("f", i, {"prompt": f"q{i}", "chosen": "good", "rejected": "bad"}) for i in range(4)])
LISTS = collect(
    "l", [("f", i, {"prompt": f"q{i}", "responses": ["a", "b", "c", "d"], "gold": [3, 2, 1, 0]}) for i in range(2)]
)


def test_every_pair_is_asked_in_both_orders():
    rows = consistency.rows(LISTS, 1)
    assert [r["completion"] + r["other"] for r in rows] == ["ab", "ba", "ac", "ca", "bc", "cb"]


def test_preference_reads_the_label_of_the_first():
    prompt = JudgePrompt.load("pairwise")
    order = [prompt.labels.values.index(v) for v in (1.0, 0.0)]
    p = torch.zeros(2, 2)
    p[0, order[0]], p[0, order[1]] = math.log(0.8), math.log(0.2)
    p[1, order[0]], p[1, order[1]] = math.log(0.3), math.log(0.7)
    first, swapped = consistency.preference(p, prompt)
    assert (first[0], swapped[0]) == (pytest.approx(0.8), pytest.approx(0.3))
    assert consistency.aware(first, swapped)[0] == pytest.approx(0.75)


def test_measures_of_pairs_by_hand():
    # survives; always the first shown; always the second; survives but wrong
    first, swapped = np.array([0.9, 0.8, 0.3, 0.2]), np.array([0.2, 0.6, 0.1, 0.9])
    scores = {"s": np.array([[2, 1], [1, 2], [1, 2], [1, 1]], dtype=float)}
    got = consistency.measure(PAIRS, 4, first, swapped, scores, resamples=100)
    assert got["local"]["value"] == 0.5
    assert got["first_place"]["value"] == pytest.approx(np.mean([0.55, 0.7, 0.2, 0.55]))
    assert got["accuracy_one_order"]["value"] == 0.5
    assert got["accuracy_aware"]["value"] == 0.75  # 0.85, 0.6, 0.6, 0.15
    assert got["conflict"]["s"] == got["conflict"]["s"] | {"value": 2 / 3, "n": 3}
    assert "global_aware" not in got


def test_cycles_are_counted():
    # 0 > 1 > 2 and 0 > 2: transitive; 0 > 1 > 2 > 0: a cycle
    p = np.array([0.9, 0.8, 0.7, 0.9, 0.2, 0.7])
    got = consistency.measure(LISTS, 2, p, 1 - p, {}, resamples=100)
    assert got["global_one_order"]["value"] == got["global_aware"]["value"] == 0.5
    assert got["local"]["value"] == 1


def test_attacks_and_edits_by_hand():
    def score(benchmark):
        texts = [r for i in benchmark.items for r in i.responses]
        return {
            "length": Column(np.array([float(len(t)) for t in texts])),
            "hater": Column(np.array([float(t == "good") for t in texts])),
            "blind": Column(np.ones(len(texts))),
        }

    got = robustness.measure([PAIRS], 4, score, resamples=100)
    texts = [text for row in attacked(PAIRS.items) for text in row]
    longer = np.mean([len(text) >= len("good") for text in texts])
    assert got["length"]["attacks"]["all"]["value"] == pytest.approx(longer)
    assert got["hater"]["attacks"]["all"]["value"] == pytest.approx(np.mean([t == "good" for t in texts]))
    assert got["blind"]["attacks"]["all"]["value"] == 1
    assert got["length"]["attacks"]["empty"]["value"] == 0 and got["length"]["worst"] != "empty"
    assert got["length"]["gain"]["value"] == pytest.approx(np.mean([len(t) - 4 for t in texts]) / 0.5)
    assert got["blind"]["gain"]["value"] is None, "no spread to measure by"
    assert got["length"]["edits"]["quoted"] == {"shift": pytest.approx(2 / 0.5), "flips": 0}
    assert got["hater"]["edits"]["quoted"]["flips"] == 1  # "good" in quotes is no longer liked: a tie
    assert got["blind"]["edits"]["quoted"]["shift"] is None


def test_attacks_are_made_from_the_item():
    items = collect(
        "p",
        [("f", i, {"prompt": f"q{i}", "responses": ["w " * 10 + str(i), "x"], "gold": [2, 1]}) for i in range(3)],
    ).items
    rows = attacked(items)
    assert len(ATTACKS) == len(KINDS) >= 20 and all(len(r) == len(ATTACKS) and all(r) for r in rows)
    by_kind = dict(zip(KINDS, rows[0], strict=True))
    assert by_kind["echo"] == "q0" and by_kind["other_answer"] == best_response(items[1]) == "w " * 10 + "1"
    assert by_kind["truncated"] == "w w" and "<|im_start|>assistant" in by_kind["forged_turn"]
    assert rows[2][KINDS.index("other_answer")] == best_response(items[0])
    assert not by_kind["homoglyphs"].isascii() and "\u202e" in by_kind["invisible"]
