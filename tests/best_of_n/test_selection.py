"""Selection by hand, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, zscore

from latent_rewards.best_of_n import selection

NAN = float("nan")
SCORES = np.array([2.0, NAN, 5.0, 5.0, 1.0, 3.0])
LENGTHS = [9, 1, 8, 4, 7, 6]
lists = st.lists(st.one_of(st.just(NAN), st.integers(-4, 4).map(float)), min_size=1, max_size=9).map(np.array)


def test_order_and_its_rules() -> None:
    assert selection.order(SCORES).tolist() == [2, 3, 5, 0, 4]
    assert selection.order(SCORES, ties="shortest", lengths=LENGTHS).tolist() == [3, 2, 5, 0, 4]
    drawn = {tuple(selection.order(SCORES, ties="random", key=str(i)).tolist()) for i in range(40)}
    assert drawn == {(2, 3, 5, 0, 4), (3, 2, 5, 0, 4)}
    same = [selection.order(SCORES, ties="random", key="a").tolist() for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(ValueError, match="ties must be"):
        selection.order(SCORES, ties="shortest")
    with pytest.raises(ValueError, match="ties must be"):
        selection.order(SCORES, ties="longest")  # type: ignore[arg-type]


def test_top_k_threshold_and_fraction() -> None:
    assert selection.top_k(SCORES).tolist() == [2]
    assert selection.top_k(SCORES, 9).tolist() == [2, 3, 5, 0, 4]
    assert selection.top_k(np.array([NAN, NAN]), 1).tolist() == []
    assert selection.above(SCORES, 3.0).tolist() == [2, 3, 5], "at the threshold counts"
    assert selection.top_fraction(SCORES, 0.4).tolist() == [2, 3]
    assert selection.top_fraction(SCORES, 0.41).tolist() == [2, 3, 5], "rounded up"
    assert selection.fraction_count(10, 0.1) == 1 and selection.fraction_count(30, 0.1) == 3
    for wrong in (0.0, 1.1, -1):
        with pytest.raises(ValueError, match="fraction"):
            selection.top_fraction(SCORES, wrong)
    with pytest.raises(ValueError, match="k must be"):
        selection.top_k(SCORES, 0)


def test_softmax_selection_by_hand() -> None:
    p = selection.softmax_probabilities(np.array([0.0, NAN, np.log(3.0)]), 1.0)
    np.testing.assert_allclose(p, [0.25, 0.0, 0.75])
    np.testing.assert_allclose(selection.softmax_probabilities(np.array([0.0, 2 * np.log(3.0)]), 2.0), [0.25, 0.75])
    draws = np.bincount(
        [selection.softmax_choice(np.array([0.0, NAN, np.log(3.0)]), 1.0, key=f"{i}") for i in range(4000)]
    )
    assert draws[1] == 0 and abs(draws[2] / 4000 - 0.75) < 0.03
    assert selection.softmax_choice(np.array([NAN]), 1.0, key="") is None
    assert selection.softmax_choice(np.array([1.0, 2.0]), 1e-9, key="x") == 1, "cold: the best one, without overflow"
    with pytest.raises(ValueError, match="positive"):
        selection.softmax_probabilities(SCORES, 0.0)


def test_pairs() -> None:
    assert selection.preference_pair(SCORES) == (2, 4, 4.0)
    assert selection.preference_pair(SCORES, against="middling") == (2, 5, 2.0)
    assert selection.preference_pair(SCORES, margin=4.0) == (2, 4, 4.0)
    assert selection.preference_pair(SCORES, margin=4.1) is None
    assert selection.preference_pair(np.array([1.0, 1.0])) is None, "equal scores are no preference"
    assert selection.preference_pair(np.array([1.0, NAN])) is None
    with pytest.raises(ValueError, match="against"):
        selection.preference_pair(SCORES, against="best")  # type: ignore[arg-type]


def test_ensembles_by_hand_and_against_scipy() -> None:
    two = np.array([[1.0, 2.0, 3.0, 6.0], [0.9, 0.1, 0.5, 0.5]])
    np.testing.assert_allclose(selection.combine(two), two.mean(0))
    np.testing.assert_allclose(selection.combine(two, weights=[3, 1]), (3 * two[0] + two[1]) / 4)
    np.testing.assert_allclose(selection.combine(two, "z"), zscore(two, axis=1).mean(0))
    np.testing.assert_allclose(selection.combine(two, "worst"), zscore(two, axis=1).min(0))
    expected = np.stack([(rankdata(row) - 1) / 3 for row in two]).mean(0)
    np.testing.assert_allclose(selection.combine(two, "rank"), expected)
    given_ = selection.combine(two, "z", mean=np.array([1.0, 0.5]), std=np.array([2.0, 0.0]))
    np.testing.assert_allclose(given_, (two[0] - 1) / 4, err_msg="a reward without spread has no say")
    missing = np.array([[1.0, NAN, 3.0], [1.0, 2.0, NAN]])
    for how in ("mean", "z", "rank", "worst"):
        assert np.isnan(selection.combine(missing, how)).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="how must be"):
        selection.combine(two, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot take the weights"):
        selection.combine(two, "worst", weights=[1, 1])


@given(lists, st.floats(0.01, 50), st.floats(-9, 9))
def test_scale_and_shift_change_no_selection(scores: np.ndarray, scale: float, shift: float) -> None:
    moved = scores * scale + shift
    assert selection.order(scores).tolist() == selection.order(moved).tolist() or scale * 1e-9 > 1
    np.testing.assert_allclose(selection.ranks(scores), selection.ranks(np.round(moved, 9)), equal_nan=True)
    p, q = (selection.softmax_probabilities(x, t) for x, t in ((scores, 1.0), (moved, scale)))
    np.testing.assert_allclose(p, q, atol=1e-9)


@given(lists)
def test_missing_scores_are_never_selected(scores: np.ndarray) -> None:
    for picked in (selection.order(scores), selection.top_fraction(scores, 0.5), selection.above(scores, 0.0)):
        assert not np.isnan(scores[picked]).any()
    pair = selection.preference_pair(scores)
    assert pair is None or scores[pair.chosen] - scores[pair.rejected] == pair.margin > 0
