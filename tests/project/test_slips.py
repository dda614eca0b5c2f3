"""Small slips in statistics that leave every figure plausible: each test here fails for one of them."""

from __future__ import annotations

import numpy as np
import pytest
from contracts import UNREADABLE, FakeJudge
from scipy import stats

from latent_rewards import EnsembleReward, HFJudge, JudgePrompt, ProbabilityWeightedReward, VerifierReward
from latent_rewards.best_of_n import selection
from latent_rewards.best_of_n.choice_of_n import choose_n
from latent_rewards.best_of_n.config import BestOfNConfig
from latent_rewards.best_of_n.finish import Finisher
from latent_rewards.best_of_n.plan import Plan
from latent_rewards.best_of_n.shards import ShardStore
from latent_rewards.probes import cross_validation as probe_selection
from latent_rewards.probes import train as probe_run
from latent_rewards.probes.examples import pair_examples
from latent_rewards.probes.fit import Data, FitOptions, fit_head
from latent_rewards.probes.guards import pair_weights, row_weights
from latent_rewards.rewards.group_statistics import group_statistics
from latent_rewards.routing.policies import mean_out_of_fold, predict_out_of_fold
from latent_rewards.stats.bootstrap import mean_estimate, mean_of, statistic_estimate
from latent_rewards.stats.pairs import pair_report

NAN = float("nan")


def test_the_clip_comes_after_scale_and_shift():
    plain = ProbabilityWeightedReward(FakeJudge())
    prompts, completions = ["p"] * 8, [f"c{i}" for i in range(8)]
    raw = plain.score(prompts, completions)
    middle = float(np.median(raw))
    reward = ProbabilityWeightedReward(FakeJudge(), scale=10, shift=-10 * middle, clip=(-1, 1))
    expected = np.clip(10 * (raw - middle), -1, 1)
    assert (np.abs(expected) == 1).any() and (np.abs(expected) < 1).any() and raw.min() > 1
    np.testing.assert_allclose(reward.score(prompts, completions), expected, atol=1e-9)
    assert reward(prompts, completions) == reward.score(prompts, completions).tolist()


def test_balance_weighs_longer_and_shorter_winners_alike_within_each_source():
    # Source 0: three longer winners, one shorter. Source 1: one and three. Together they are balanced already.
    gap = np.array([1.0, 2.0, 0.5, -1.0, 1.0, -2.0, -1.0, -0.5])
    source = np.repeat([0, 1], 4)
    weight = pair_weights(gap, source, FitOptions(guards=("balance",)))
    np.testing.assert_allclose(weight, [2 / 3] * 3 + [2, 2] + [2 / 3] * 3)
    assert pair_weights(gap, source, FitOptions()).tolist() == [1] * 8
    several = FitOptions(balance_sources=True)
    weight = pair_weights(gap[:6], source[:6], several)  # four rows and two weigh the same
    assert weight[:4].sum() == pytest.approx(weight[4:].sum()) and weight.sum() == pytest.approx(6)


def test_balance_of_single_rows_evens_the_classes_within_source_and_length():
    length = np.repeat([10, 1000], 10)
    label = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 3 + [0.0] * 7)
    # A second source, in which most of the short ones are bad: together the two have as many good ones as bad.
    label, length, n = np.concatenate([label, 1 - label]), np.tile(length, 2), np.arange(40)
    data = Data(np.zeros((40, 1), np.float32), label, n, n, length, np.repeat([0, 1], 20))
    weight = row_weights(data, FitOptions(guards=("balance",)))
    for start in range(0, 40, 10):
        rows = slice(start, start + 10)
        good = label[rows] == 1
        assert weight[rows][good].sum() == pytest.approx(weight[rows][~good].sum()) == pytest.approx(5)


@pytest.mark.parametrize(("groups", "level"), [(10, 0.95), (30, 0.9), (400, 0.95)])
def test_the_interval_of_an_estimate_has_both_tails_of_its_level(groups, level):
    values = np.random.default_rng(0).normal(size=groups)
    # Student's quantile, with the bias of the plug-in variance taken out, as a normal tail on each side.
    tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, groups - 1) * np.sqrt(groups / (groups - 1)))
    for e in (
        mean_estimate(values, np.arange(groups), resamples=4000, level=level),
        statistic_estimate(lambda k: float(values[k].mean()), np.arange(groups), resamples=1000, level=level),
    ):
        low, high = np.quantile(e.draws, [tail, 1 - tail])
        assert (e.low, e.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_the_interval_of_a_mean_of_estimates_has_two_and_a_half_percent_on_each_side():
    values, group = np.random.default_rng(1).normal(3, 1, 900), np.arange(900)
    half = stats.norm.ppf(0.975) * values.std() / 30
    one = mean_estimate(values, group, resamples=8000)
    two = mean_of([mean_estimate(values[s::2], group[s::2], resamples=8000) for s in (0, 1)], resamples=8000)
    assert mean_of([one]) == one
    for mean, low, high in (one[:3], two[:3]):
        assert mean == pytest.approx(values.mean())
        assert (mean - low, high - mean) == (pytest.approx(half, rel=0.06), pytest.approx(half, rel=0.06))


def test_the_held_out_gold_of_n_is_chosen_on_the_other_prompts():
    # Prompt A wants the best of 2 (gold 1, then 2), prompt B one draw (1, then 0): each is judged by the other's n.
    scores, gold = [np.array([0.0, 1.0])] * 2, [np.array([0.0, 2.0]), np.array([2.0, 0.0])]
    found = choose_n(scores, gold, temperatures=[0.0], folds=2)
    assert found.held_out_gold == pytest.approx(0.5)  # A at n = 1, B at n = 2; in sample it is 1.5, on all 1
    assert found.regret == pytest.approx(2 - 0.5) and found.gold == pytest.approx(1)
    assert found.drop.value == pytest.approx(0.5 - 1)


def test_out_of_fold_predictions_leave_their_fold_out():
    scores, fold = np.array([[1.0, NAN], [3.0, 5.0], [10.0, 7.0], [20.0, NAN]]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(mean_out_of_fold(scores, fold), [[15, 7], [15, 7], [2, 5], [2, 5]])
    predicted = predict_out_of_fold(np.eye(4), np.array([[1.0], [3.0], [10.0], [20.0]]), fold, k=4)
    assert predicted[:2].min() >= 10 and predicted[2:].max() <= 3


def test_z_scores_are_over_the_scores_that_are_there():
    scores = np.array([[1.0, 3.0, NAN, NAN], [5.0, 5.0, NAN, 5.0]])
    expected = [[-1, 1, NAN, NAN], [0, 0, NAN, 0]]
    np.testing.assert_allclose(selection.standardise(scores), expected)
    np.testing.assert_allclose(selection.combine(scores, "z"), [-0.5, 0.5, NAN, NAN])
    np.testing.assert_allclose(selection.combine(scores, "worst"), [-1, 0, NAN, NAN])


def test_the_moments_of_a_best_of_n_run_are_over_the_scores_that_are_there(tmp_path):
    store = ShardStore(tmp_path)
    for i, group in enumerate(([2.0, None, None], [4.0, 12.0])):
        store.write(i, [{"scores": {"weighted": group}}])
    plan = Plan("lists", "f", 2, 2, [(0, 1, 3), (1, 1, 2)])
    config = BestOfNConfig(input="in.jsonl", output=str(tmp_path))
    mean, std = Finisher(config, plan, store, tmp_path)._moments()
    assert (mean.tolist(), std.tolist()) == ([6.0], [pytest.approx(np.std([2.0, 4.0, 12.0]))])


def test_an_ensemble_is_standardised_by_the_scores_that_are_there():
    judge = FakeJudge()
    ensemble = EnsembleReward([ProbabilityWeightedReward(judge), VerifierReward(judge)], how="mean")
    prompts, completions = ["p"] * 6, ["a", "b", UNREADABLE, "c", "d", UNREADABLE + "!"]
    ensemble.fit(prompts, completions)
    known = [0, 1, 3, 4]
    for reward, location, scale in zip(ensemble.rewards, ensemble.location, ensemble.scales, strict=True):
        scores = reward.score(prompts, completions)[known]
        assert (location, scale) == (pytest.approx(scores.mean()), pytest.approx(scores.std()))
    scores = ensemble.score(prompts, completions)
    assert np.isnan(scores).tolist() == [i not in known for i in range(6)]
    assert scores[known].mean() == pytest.approx(0, abs=1e-9)


def test_group_statistics_are_over_the_rewards_that_are_there():
    found = group_statistics(["a", "b", "a", "b", "a", "c"], np.array([1.0, 5.0, NAN, 5.0, 3.0, 9.0]))
    assert found == {"spread": 0.5, "tie_share": 0.5, "flat_groups": 0.5, "missing": pytest.approx(1 / 6)}


def test_pair_figures_leave_missing_scores_out_and_balance_both_sides():
    # Four pairs: longer winners won, won, lost; the shorter winner won; a fifth has no score.
    score = np.array([2, 1, 2, 1, 1, 2, 2, 1, NAN, 1.0])
    label, pair = np.tile([1.0, 0.0], 5), np.repeat(np.arange(5), 2)
    length = np.array([20, 10, 20, 10, 20, 10, 10, 20, 20, 10])
    report = pair_report(score, label, pair, pair, length)
    assert (report["n"], report["accuracy"][0]) == (4, 0.75)
    assert report["balanced"] == pytest.approx((2 / 3 + 1) / 2)


def test_the_sweep_that_picks_a_layer_never_sees_a_test_prompt(folder, tmp_path, monkeypatch):
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no " * (1 + i % 3)} for i in range(20)]
    swept, fitted, measured = [], [], []

    def spy(seen, function):
        def call(first, second, *args, **kwargs):
            data = first if isinstance(first, Data) else second
            seen.append(set(data.group if not kwargs.pop("unseen", None) else ()))
            return function(first, second, *args, **kwargs)

        return call

    def measure(features, data, unseen, *args):
        measured.append(set(data.group[unseen]))
        return []

    monkeypatch.setattr(probe_selection, "cross_validate", spy(swept, probe_selection.cross_validate))
    monkeypatch.setattr(probe_run, "fit_head", spy(fitted, fit_head))
    monkeypatch.setattr(probe_run, "measure", measure)
    probe_run.train_probe(
        HFJudge(folder, dtype="float32", device="cpu"), JudgePrompt.load("weighted"), pair_examples(rows),
        features_folder=tmp_path, fit=FitOptions(objective="bradley_terry"),
        run=probe_run.RunOptions(layers=(1, 2), strengths=(1e-3,), folds=2),
    )  # fmt: skip
    (test,) = measured
    assert len(test) == 4 and len(swept) == 2 and len(fitted) == 1
    for seen in (*swept, *fitted):
        assert len(seen) == 16 and not seen & test


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"prompts": "p", "completions": "c"}, "prompts"),
        ({"prompts": ["p"], "completions": "c"}, "completions"),
        ({"prompts": {"role": "user", "content": "p"}, "completions": ["a", "b"]}, "prompts"),
        ({"prompts": ["p"], "completions": ["c"], "criteria": "k"}, "criteria"),
    ],
)
def test_one_text_is_no_list_of_letters(given, name):
    reward = ProbabilityWeightedReward(FakeJudge(), prompt="rubric" if "criteria" in given else None)
    for call in (reward, reward.score, reward.score_with_reasons):
        with pytest.raises(TypeError, match=f"{name} must be a list with one entry per row, got one"):
            call(**given)
