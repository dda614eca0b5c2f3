import numpy as np
import pytest

from latent_rewards import PairwiseReward, Request, compare
from latent_rewards.evaluation import consistency, robustness
from latent_rewards.evaluation.attacks import ATTACKS, KINDS, attacked, best_response
from latent_rewards.evaluation.benchmarks.rows import collect
from latent_rewards.evaluation.scorers import Column
from tests.contracts import FakeJudge

PAIRS = collect("p", [("f", i, {"prompt": f"q{i}", "chosen": "good", "rejected": "bad"}) for i in range(4)])
LISTS = collect(
    "l", [("f", i, {"prompt": f"q{i}", "responses": ["a", "b", "c", "d"], "gold": [3, 2, 1, 0]}) for i in range(2)]
)


def test_every_pair_is_asked_in_both_orders():
    rows = consistency.rows(LISTS, 1)
    assert [r["completion"] + r["other"] for r in rows] == ["ab", "ba", "ac", "ca", "bc", "cb"]


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def odds(first, swapped):
    """What `PairwiseReward.odds` gives where the first shown wins with these probabilities."""
    shown = np.stack([logit(first), logit(swapped)], axis=1)
    return (shown[:, 0] - shown[:, 1]) / 2, shown


def test_measures_of_pairs_by_hand():
    # survives; always the first shown; always the second; survives but wrong
    first, swapped = np.array([0.9, 0.8, 0.3, 0.2]), np.array([0.2, 0.6, 0.1, 0.9])
    scores = {"s": np.array([[2, 1], [1, 2], [1, 2], [1, 1]], dtype=float)}
    got = consistency.measure(PAIRS, 4, *odds(first, swapped), scores, resamples=100)
    assert got["local"]["value"] == 0.5 == got["ipi"]["value"]
    assert got["first_place"]["value"] == pytest.approx(np.mean([0.55, 0.7, 0.2, 0.55]))
    assert got["accuracy_one_order"]["value"] == 0.5
    assert got["accuracy_aware"]["value"] == 0.75  # ln 9 + ln 4, ln 4 - ln 1.5, -ln 7/3 + ln 9, -ln 4 - ln 9, halved
    assert got["conflict"]["s"] == got["conflict"]["s"] | {"value": 2 / 3, "n": 3}
    assert got["conflict_one_order"]["s"]["value"] == pytest.approx(1 / 3), "the third pair agrees before the mean"
    assert "global_aware" not in got and "tov_aware" not in got


def test_the_mean_over_orders_is_the_pairwise_rewards():
    """The rows read by a judge, their log-odds by the reward: one order is what is shown, aware the reward's sign."""
    judge = FakeJudge()
    reward = PairwiseReward(judge)
    rows = consistency.rows(LISTS, 2)
    d, first = reward.odds(judge.read([Request(reward.prompt, rows, reward.need)])[0])
    got = consistency.measure(LISTS, 2, d, first, {}, resamples=100)
    by_reward = [
        compare(judge, item.prompt, item.responses[i], item.responses[j])
        for item in LISTS.items
        for i, j in consistency.pairs(item)
    ]
    np.testing.assert_allclose(d, [c.log_odds for c in by_reward])
    gold = np.array([1.0] * 6)
    assert got["accuracy_aware"]["value"] == pytest.approx(np.mean([(np.sign(c.log_odds) + 1) / 2 for c in by_reward]))
    assert got["accuracy_one_order"]["value"] == pytest.approx(np.mean((np.sign(first[:, 0]) * gold + 1) / 2))
    assert got["first_place"]["value"] == pytest.approx(np.mean([c.first_place for c in by_reward]))


def test_cycles_are_counted():
    # 0 > 1 > 2 and 0 > 2: transitive; 0 > 1 > 2 > 0: a cycle
    p = np.array([0.9, 0.8, 0.7, 0.9, 0.2, 0.7])
    got = consistency.measure(LISTS, 2, *odds(p, 1 - p), {}, resamples=100)
    assert got["global_one_order"]["value"] == got["global_aware"]["value"] == 0.5
    assert got["local"]["value"] == 1 and got["ipi"]["value"] == 0
    assert got["tov_one_order"]["value"] == got["tov_aware"]["value"] == 1, "none, and both orders of one pair"


def test_a_place_that_decides_is_mended_by_the_mean():
    # whoever comes first wins 0 : 1, though 0 is liked better; the other pairs are clear
    first, swapped = np.array([0.9, 0.9, 0.9] * 2), np.array([0.6, 0.1, 0.1] * 2)
    got = consistency.measure(LISTS, 2, *odds(first, swapped), {}, resamples=100)
    assert got["ipi"]["value"] == pytest.approx(1 / 3) and got["local"]["value"] == pytest.approx(2 / 3)
    assert got["tov_one_order"]["value"] == 1 and got["tov_aware"]["value"] == 0


def test_violations_by_hand():
    consistent = [[1, -1], [1, -1], [1, -1]]  # 0 > 1 > 2
    assert consistency.violations(np.array(consistent)) == 0
    assert consistency.violations(np.array([[0, 0], [1, -1], [1, -1]])) == 0, "0 = 1 > 2"
    assert consistency.violations(np.array([[0, 0], [0, 0], [1, -1]])) == 2, (
        "0 = 1, 0 = 2 and 1 > 2: one pair gives way"
    )
    assert consistency.violations(np.array([[1, -1], [-1, 1], [1, -1]])) == 2, "a cycle"
    assert consistency.violations(np.array([[1, 1], [1, 1], [1, 1]])) == 3, "the first shown always wins"
    assert [len(consistency._weak_orders(n)) for n in (2, 3, 4)] == [3, 13, 75]


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
