import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, ndcg_score

from latent_rewards.evaluation import metrics
from latent_rewards.evaluation.metrics import METRICS
from latent_rewards.evaluation.table import Table
from latent_rewards.stats import bootstrap, distributions
from latent_rewards.stats.correlation import kendall_tau_b, partial_spearman, pearson, spearman
from latent_rewards.stats.ranking import expected_gold_of_best

NAN = math.nan


def pairs(chosen, rejected, lengths=None):
    scores = np.array([chosen, rejected], dtype=float).T
    gold = np.tile([1.0, 0.0], (len(scores), 1))
    lengths = np.ones_like(scores) if lengths is None else np.array(lengths, dtype=float)
    return Table(scores, gold, lengths)


def test_pair_accuracies_by_hand():
    # win, tie, loss, win, unscored
    t = pairs([2, 1, 0, 5, NAN], [1, 1, 3, 4, 2])
    np.testing.assert_array_equal(metrics.accuracy(t), [1, 0.5, 0, 1, NAN])
    np.testing.assert_array_equal(metrics.accuracy_strict(t), [1, 0, 0, 1, NAN])
    np.testing.assert_array_equal(metrics.accuracy_lenient(t), [1, 1, 0, 1, NAN])
    np.testing.assert_array_equal(metrics.ties(t), [0, 1, 0, 0, NAN])
    # scores known: 2 1 1 1 0 3 5 4 2
    np.testing.assert_allclose(metrics.margin(t)[:4], np.array([1, 0, -3, 1]) / np.std([2, 1, 1, 1, 0, 3, 5, 4, 2]))


def test_random_ties_are_a_coin_and_leave_the_rest_alone():
    t = pairs(np.zeros(4000), np.zeros(4000))
    assert metrics.accuracy_random_ties(t).mean() == pytest.approx(0.5, abs=0.03)
    t = pairs([2, 0], [1, 3])
    np.testing.assert_array_equal(metrics.accuracy_random_ties(t), [1, 0])


def test_length_controls_take_away_what_length_gives():
    lengths = np.array([[9, 1], [8, 2], [7, 3], [1, 5], [100, 95]], dtype=float)
    by_length = pairs(lengths[:, 0], lengths[:, 1], lengths)
    assert metrics.accuracy(by_length).mean() == 0.8
    assert metrics.accuracy_length_balanced(by_length) == 0.5
    np.testing.assert_array_equal(metrics.accuracy_length_matched(by_length), [NAN, NAN, NAN, NAN, 1])
    # right on 3 of 4 longer ones, right on the shorter one: (0.75 + 1) / 2
    t = pairs([1, 1, 1, 1, 0], [0, 0, 0, 0, 1], lengths)
    assert metrics.accuracy_length_balanced(t) == pytest.approx((0.75 + 1) / 2)
    assert math.isnan(metrics.accuracy_length_balanced(pairs([1], [0], [[2, 1]])))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_correlations_equal_scipy(seed, levels):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 400))
    x = rng.integers(0, levels, n).astype(float)
    y = np.round(x + levels * rng.normal(size=n)) if seed % 2 else rng.integers(0, levels, n).astype(float)
    if len(set(x)) == 1 or len(set(y)) == 1:
        x[0], y[0] = x[0] + 1, y[0] + 1
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    concordance = np.triu(np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y)))
    untied = [np.count_nonzero(np.triu(np.subtract.outer(v, v))) for v in (x, y)]
    assert kendall_tau_b(x, y) == pytest.approx(concordance.sum() / math.sqrt(math.prod(untied)), abs=1e-12)
    t = Table(x[:, None], y[:, None], np.ones((n, 1)))
    assert metrics.rating_kendall(t) == kendall_tau_b(x, y)
    assert metrics.rating_spearman(t) == spearman(x, y)
    assert metrics.rating_pearson(t) == pearson(x, y)


def test_kendall_of_two():
    x = np.array([1.0, 2.0])
    assert [kendall_tau_b(x, x), kendall_tau_b(x, -x)] == [1.0, -1.0]
    assert math.isnan(kendall_tau_b(x, np.ones(2)))


@pytest.mark.parametrize("f", [pearson, spearman, kendall_tau_b])
def test_correlation_with_a_constant_is_nan(f):
    assert math.isnan(f(np.ones(4), np.arange(4.0)))
    assert math.isnan(f(np.arange(4.0), np.ones(4)))
    assert math.isnan(f(np.array([]), np.array([])))


def test_partial_spearman_equals_the_recursive_formula():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 200))
    y, x = y + 0.5 * z, x + z
    xy, xz, yz = (stats.spearmanr(a, b)[0] for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_spearman(x, y, z) == pytest.approx(expected, abs=1e-12)
    assert partial_spearman(z, y, z) == 0.0
    assert partial_spearman(np.exp(z), y, z) == 0.0


def test_rating_distribution_distances_by_hand():
    t = Table(np.array([[0.0], [10.0], [5.0]]), np.array([[1.0], [5.0], [5.0]]), np.ones((3, 1)), (0, 10), (1, 5))
    np.testing.assert_allclose(metrics.rating_mse(t), [0, 0, 0.25])
    gold, score = np.array([1.5, 2.5]) / 4, np.array([1.5, 2.5]) / 4  # two bins: 0 | 0.5 and 1, the same for both
    assert metrics.rating_kl(t, bins=2) == pytest.approx((gold * np.log(gold / score)).sum()) == 0.0
    up = Table(np.array([[10.0], [10.0], [10.0]]), t.gold, t.lengths, (0, 10), (1, 5))
    p, q = np.array([1.5, 2.5]) / 4, np.array([0.5, 3.5]) / 4
    assert metrics.rating_kl(up, bins=2) == pytest.approx(stats.entropy(p, q))


def lists(scores, gold, lengths=None):
    scores = np.array(scores, dtype=float)
    return Table(scores, np.array(gold, dtype=float), np.ones_like(scores) if lengths is None else np.array(lengths))


def test_listwise_by_hand():
    t = lists(
        [[3, 1, 2, NAN], [1, 1, 1, 1], [1, 2, 3, 4], [1, NAN, 2, 3], [2, 2, 1, 0]],
        [[4, 2, 1, NAN], [1, 2, 3, 4], [5, 5, 5, 5], [1, 2, 3, 4], [0, 4, 1, 3]],
        [[7, 9, 1, NAN], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 5]],
    )
    # rows: 3 of 4 there; all tied; gold flat; a score missing; tie at the top
    np.testing.assert_allclose(metrics.list_spearman(t)[[0, 1]], [0.5, 0])
    assert np.isnan(metrics.list_spearman(t)[[2, 3]]).all()
    np.testing.assert_allclose(metrics.top1_gold(t)[[0, 1, 4]], [4, 2.5, 2])
    np.testing.assert_allclose(metrics.top1_hit(t)[[0, 1, 4]], [1, 0.25, 0.5])
    np.testing.assert_allclose(metrics.regret_oracle(t)[[0, 1, 4]], [0, 1.5, 2])
    np.testing.assert_allclose(metrics.gain_random(t)[[0, 1, 4]], [4 - 7 / 3, 0, 0])
    np.testing.assert_allclose(metrics.gain_longest(t)[[0, 1, 4]], [2, -1.5, -1])
    np.testing.assert_allclose(metrics.ties(t)[[0, 1, 4]], [0, 1, 1 / 6])


@pytest.mark.parametrize("seed", range(5))
def test_listwise_equals_scipy_and_sklearn(seed):
    rng = np.random.default_rng(seed)
    scores, gold = rng.integers(0, 5, (8, 7)).astype(float), rng.integers(0, 4, (8, 7)).astype(float)
    gold[:, 0] = 5
    t = lists(scores, gold)
    spearmans = [stats.spearmanr(s, g)[0] for s, g in zip(scores, gold, strict=True)]
    np.testing.assert_allclose(metrics.list_spearman(t), np.nan_to_num(spearmans))
    gains = gold - gold.min(1, keepdims=True)
    np.testing.assert_allclose(metrics.ndcg(t).mean(), ndcg_score(gains, scores))


def test_pairs_within_lists_equal_the_pair_metrics():
    rng = np.random.default_rng(0)
    t = lists(rng.integers(0, 4, (30, 4)), rng.integers(0, 3, (30, 4)), rng.integers(1, 9, (30, 4)).astype(float))
    flat, per_list = [], []
    for s, g, n in zip(t.scores, t.gold, t.lengths, strict=True):
        rows = [((s[i], s[j]), (n[i], n[j])) for i in range(4) for j in range(4) if g[i] > g[j]]
        flat += rows
        per_list.append(np.mean([metrics.accuracy(pairs([a], [b]))[0] for (a, b), _ in rows]) if rows else NAN)
    np.testing.assert_allclose(metrics.list_accuracy(t), per_list)
    as_pairs = pairs(*np.array([f[0] for f in flat]).T, np.array([f[1] for f in flat]))
    assert metrics.list_accuracy_length_balanced(t) == metrics.accuracy_length_balanced(as_pairs)
    assert metrics.list_accuracy_length_balanced(lists(t.lengths, t.gold, t.lengths)) == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_best_of_n_equals_all_subsets(seed):
    import itertools

    rng = np.random.default_rng(seed)
    scores, gold = rng.integers(0, 4, 6).astype(float), rng.normal(size=6)
    curve = expected_gold_of_best(scores, gold)
    shared = [gold[scores == s].mean() for s in scores]
    for n in range(1, 7):
        brute = np.mean([shared[max(c, key=lambda i: scores[i])] for c in itertools.combinations(range(6), n)])
        assert curve[n - 1] == pytest.approx(brute)


def test_compression_by_hand():
    assert distributions.modal_share(np.array([1, 1, 1, 2, NAN])) == 0.75
    assert distributions.tie_rate(np.array([1, 1, 1, 2, NAN])) == pytest.approx(3 / 6)
    np.testing.assert_array_equal(distributions.histogram(np.array([0, 1, 5, 10, 12.0]), (0, 10), 5), [2, 0, 1, 0, 2])
    assert math.isnan(distributions.modal_share(np.array([NAN])))


def test_calibration_figures():
    p, y = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 1, 1, 1])
    assert distributions.expected_calibration_error(p, y) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert distributions.brier(p, y).mean() == pytest.approx(brier_score_loss(y, p))
    assert distributions.reliability(p, y) == [(pytest.approx(0.05), 0.5, 2), (pytest.approx(0.95), 1.0, 2)]
    rng = np.random.default_rng(0)
    p = rng.random(50_000)
    assert distributions.expected_calibration_error(p, rng.random(50_000) < p) < 0.02


@pytest.mark.parametrize("kind", METRICS)
def test_no_metric_depends_on_row_order_or_on_an_affine_map(kind):
    rng = np.random.default_rng(1)
    width = {"pair": 2, "rating": 1, "list": 5}[kind]
    gold = np.tile([1.0, 0.0], (40, 1)) if kind == "pair" else rng.normal(size=(40, width))
    t = Table(rng.normal(size=(40, width)), gold, rng.integers(1, 99, (40, width)).astype(float))
    moved = Table(3 * t.scores + 7, t.gold, t.lengths)
    order = rng.permutation(40)
    for name, metric in METRICS[kind].items():
        value = np.nanmean(metric(t))
        assert np.isfinite(value), name
        assert np.nanmean(metric(t.take(order))) == pytest.approx(value), name
        assert np.nanmean(metric(moved)) == pytest.approx(value), name


def test_a_wholly_missing_scorer_gives_nan_everywhere():
    for kind, table in METRICS.items():
        width = {"pair": 2, "rating": 1, "list": 3}[kind]
        t = Table(np.full((4, width), NAN), np.arange(4.0 * width).reshape(4, width), np.ones((4, width)))
        for name, metric in table.items():
            assert np.isnan(metric(t)).all(), name


def clustered(rng, n_groups):
    """Proportions with strong within-group dependence: groups of 1-5 rows share their probability."""
    sizes, p = rng.integers(1, 6, n_groups), rng.beta(2, 1, n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    return (rng.random(len(groups)) < p[groups]).astype(float), groups


def test_bootstrap_covers_as_it_says():
    rng = np.random.default_rng(0)
    hits = []
    for i in range(600):
        values, groups = clustered(rng, 120)
        e = bootstrap.mean_estimate(values, groups, resamples=400, seed=i)
        hits.append(e.low <= 2 / 3 <= e.high)
    assert 0.92 <= np.mean(hits) <= 0.98
    naive = []
    for i in range(300):
        values, groups = clustered(rng, 120)
        e = bootstrap.mean_estimate(values, np.arange(len(values)), resamples=400, seed=i)
        naive.append(e.low <= 2 / 3 <= e.high)
    assert np.mean(naive) < np.mean(hits)


def test_bootstrap_of_a_statistic_covers_as_it_says():
    rng = np.random.default_rng(0)
    hits, rho = [], 0.5
    for i in range(300):
        x, noise = rng.normal(size=(2, 80))
        y = rho * x + math.sqrt(1 - rho**2) * noise
        e = bootstrap.statistic_estimate(lambda k, x=x, y=y: pearson(x[k], y[k]), np.arange(80), resamples=200, seed=i)
        hits.append(e.low <= rho <= e.high)
    assert 0.91 <= np.mean(hits) <= 0.98


def test_paired_difference_is_tighter_than_two_intervals_and_covers():
    rng = np.random.default_rng(1)
    hits = []
    for i in range(800):
        base = rng.normal(size=100)
        a, b = base + 0.1 * rng.normal(size=100) + 0.02, base
        one, two = (bootstrap.mean_estimate(v, np.arange(100), resamples=400, seed=i) for v in (a, b))
        d = bootstrap.difference(one, two)
        assert d.high - d.low < 0.5 * (one.high - one.low)
        hits.append(d.low <= 0.02 <= d.high)
    assert 0.92 <= np.mean(hits) <= 0.98


def test_both_bootstraps_agree_and_one_group_has_no_interval():
    rng = np.random.default_rng(0)
    values, groups = clustered(rng, 60)
    a = bootstrap.mean_estimate(values, groups, resamples=2000)
    b = bootstrap.statistic_estimate(lambda k: values[k].mean(), groups, resamples=2000)
    assert a.value == pytest.approx(b.value)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=0.02)
    alone = bootstrap.mean_estimate(values, np.zeros(len(values)))
    assert math.isnan(alone.low) and alone.to_dict()["low"] is None
    with pytest.raises(ValueError, match="same draws"):
        bootstrap.difference(a, alone)
