"""What the benchmarks of panels, contrasts, steps and comparisons compute, on numbers small enough to check by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from benchmarks import anchors, contrasts, panel_rows, panel_sample, panel_table, readings_file, step_choice
from benchmarks.panel_rows import LEFT_OUT, OWN, SEEN, Rows
from latent_rewards import Need, PairwiseReward, ProbabilityWeightedReward, StepReward
from latent_rewards.judge.fingerprint import digest
from latent_rewards.probes.examples import Example, pair_examples
from latent_rewards.probes.panel_collect import collect_readings
from latent_rewards.probes.questions import default_questions, features_of, values_of
from tests.contracts import UNREADABLE, FakeJudge


def some_pairs(n: int = 6, source: str = "pairwise/a") -> list[Example]:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)]
    return pair_examples(rows, source)


def keep(folder: Path, examples: list[Example], part: tuple[int, int] = (0, 1), judge: Any = None) -> None:
    """What a run of `panel_sample` writes for one part."""
    questions, (number, count) = default_questions(), part
    index = np.array([i for i, e in enumerate(examples) if e.pair % count == number])
    some = [examples[i] for i in index]
    also = Need(hidden=frozenset({2}))
    readings = collect_readings(judge or FakeJudge(), questions, some, lenses=("normed", "raw"), also=also)
    about = {
        "part": f"{number}/{count}", "seconds": 1.0, "rows": len(index), "judge": "fake", "layers": [2],
        "questions": [[q.name, q.prompt.hash, q.criterion] for q in questions],
    }  # fmt: skip
    arrays = panel_sample.packed(questions, some, readings, index)
    readings_file.save(folder / f"panel-fake-{number}of{count}.npz", about, arrays)


def test_parts_of_readings_are_one_again(tmp_path: Path) -> None:
    for number in (1, 0):
        keep(tmp_path / "parts", some_pairs(), (number, 2))
    keep(tmp_path / "whole", some_pairs())
    about, arrays = readings_file.load_all(list((tmp_path / "parts").glob("*.npz")))
    _, whole = readings_file.load_all(list((tmp_path / "whole").glob("*.npz")))
    assert about["seconds"] == 2.0 and about["rows"] == 12 and about["parts"] == 2 and "part" not in about
    assert arrays.keys() == whole.keys()
    for name, x in whole.items():
        np.testing.assert_array_equal(arrays[name], x)
    same = [tmp_path / "parts/panel-fake-0of2.npz"] * 2
    with pytest.raises(ValueError, match="twice"):
        readings_file.load_all(same)
    with pytest.raises(ValueError, match="no file"):
        readings_file.load_all([])
    assert readings_file.part_of("1/4") == (1, 4)
    for wrong in ("4/4", "1", "a/b"):
        with pytest.raises(ValueError, match="part"):
            readings_file.part_of(wrong)


def test_what_is_kept_gives_the_features_that_the_judge_gives(tmp_path: Path) -> None:
    examples = some_pairs()
    examples[3] = examples[3]._replace(completion=f"{UNREADABLE} 1")
    keep(tmp_path, examples)
    rows, questions = panel_rows.load_rows(tmp_path, ("mean", "sd", "normed")), default_questions()
    assert rows.about["unread"] == 2 and len(rows.group) == 5, "of a pair both or none"
    read = [e for e in examples if e.pair != 1]
    readings = collect_readings(FakeJudge(), questions, read, lenses=("normed",))
    want = values_of(features_of(questions, ("mean", "sd", "normed")), questions, readings, rows.table.length)
    np.testing.assert_allclose(rows.table.x, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rows.members["error"], -want[:, 3 * 5], rtol=1e-5, atol=1e-5)
    layers = rows.arrays["weighted/layers"].astype(float)
    logits = readings[0].layer_label_logits["normed"].double().numpy()
    np.testing.assert_allclose(layers, logits - logits.mean(-1, keepdims=True), atol=2e-3)
    other = [["weighted", digest("other"), ""]]
    about, arrays = readings_file.load(tmp_path / "panel-fake-0of1.npz")
    readings_file.save(tmp_path / "panel-fake-0of1.npz", about | {"questions": other}, arrays)
    with pytest.raises(ValueError, match="other questions"):
        panel_rows.load_rows(tmp_path)


def made(n: int = 60, seed: int = 0) -> Rows:
    """Pairs of three sets; the first member knows which is better in three of four."""
    rng = np.random.default_rng(seed)
    knows, label = rng.random(n) < 0.75, np.tile([1.0, 0.0], n)
    good = np.stack([knows, ~knows], axis=1).ravel() + 0.1 * rng.normal(size=2 * n)
    noise = rng.normal(size=2 * n)
    table = panel_rows.Table(
        np.stack([good, noise], axis=1), label, np.repeat(np.arange(n), 2), np.repeat(np.arange(n) // 2, 2),
        np.where(label > 0, 100, 99), np.repeat([f"s{i % 3}" for i in range(n)], 2),
    )  # fmt: skip
    return Rows({}, {"index": np.arange(2 * n)}, table, {"good": good, "noise": noise})


def test_no_prompt_is_fitted_on_and_measured_on() -> None:
    rows = made()
    for setting in (LEFT_OUT, SEEN, OWN):
        measured = []
        for train, test in panel_rows.splits(rows, setting):
            assert not np.isin(rows.group[test], rows.group[train]).any()
            if setting == LEFT_OUT:
                assert not set(rows.source[test]) & set(rows.source[train]) and len(set(rows.source[test])) == 1
            if setting == OWN:
                assert set(rows.source[train]) == set(rows.source[test])
            measured += test.tolist()
        assert sorted(measured) == list(range(60)), "every pair once"


def test_fits_get_as_many_rows_as_asked_and_both_of_a_pair() -> None:
    rows, seen = made(), []

    def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        seen.append(len(train))
        assert (train[::2] + 1 == train[1::2]).all() and not (train[::2] % 2).any()
        return rows.members["good"][test]

    won = panel_rows.wins_of(rows, SEEN, 10, {"x": fit}, draws=3)["x"]
    np.testing.assert_array_equal(won, rows.won(rows.members["good"]))
    assert seen == [10] * 15
    assert np.isnan(panel_rows.wins_of(rows, SEEN, 1000, {"x": fit}, draws=3)["x"]).all(), "never fewer than asked"
    assert panel_rows.lead(rows, won, won) == (0.0, 0.0, 0.0)


def test_rivals_of_the_panel() -> None:
    rows, train, test = made(), np.arange(40), np.arange(40, 120)
    np.testing.assert_array_equal(panel_table.best_member(rows)(train, test), rows.members["good"][test])
    good, noise = rows.members["good"], rows.members["noise"]
    want = (good[test] / good[train].std() + noise[test] / noise[train].std()) / 2
    np.testing.assert_allclose(panel_table.mean_member(rows)(train, test), want)
    fits = panel_table.fits_of(rows, "fake")
    assert panel_table.PROBE not in fits, "no states, no probe"
    score = np.full(120, np.nan)
    score[test] = fits[panel_table.PANEL](train, test)
    won, best = rows.won(score)[20:], rows.won(good)[20:]
    assert abs(won.mean() - best.mean()) < 0.1 and won.mean() > 0.6


def test_contrast_by_hand() -> None:
    last, early = np.log([[0.2, 0.8], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.0, -1.0]])
    tried = contrasts.candidates(last, {3: early}, (0.0, 1.0), (0.0, 0.5, 1.0))
    assert list(tried) == [(None, 0.0), (3, 0.5), (3, 1.0)]
    np.testing.assert_allclose(tried[(None, 0.0)], [np.log(4), 0], atol=1e-6)
    np.testing.assert_allclose(tried[(3, 0.5)], [np.log(4) - 0.5, 0.5], atol=1e-6)
    shifted = contrasts.candidates(last + 3, {3: early - 5}, (0.0, 1.0), (1.0,))
    np.testing.assert_allclose(shifted[(3, 1.0)], tried[(3, 1.0)], atol=1e-6)
    three = contrasts.score(np.log([[0.25, 0.25, 0.5]]), (0.0, 1.0, 2.0))
    np.testing.assert_allclose(three, [1.25], atol=1e-6)
    assert contrasts.chosen(np.array([[1, 0], [1, 1], [1, 1]])) == 1, "of equals the first"


def test_a_contrast_is_chosen_on_other_sets() -> None:
    rows = made()
    tried = {(None, 0.0): rows.members["noise"], (4, 0.5): rows.members["good"]}
    found = contrasts.measured(rows, tried, None, 3)
    assert found["chosen"] == {"layer 4, 0.5": 3} and found["n"] == 60
    right = rows.won(rows.members["good"]).mean()
    assert found["accuracy"][0] == pytest.approx(right)
    assert found["lead"][0] == pytest.approx(right - rows.won(rows.members["noise"]).mean())
    assert contrasts.ceiling(rows, tried)["accuracy"][0] == pytest.approx(right)


def test_both_judges_must_have_read_the_same(tmp_path: Path) -> None:
    keep(tmp_path / "one", some_pairs())
    keep(tmp_path / "two", some_pairs(4))
    keep(tmp_path / "other", [e._replace(prompt="else") for e in some_pairs()])
    one, two, other = (panel_rows.load_rows(tmp_path / name) for name in ("one", "two", "other"))
    a, b = contrasts.same_rows(one, two)
    assert len(a.group) == len(b.group) == 4 and (a.table.pair == b.table.pair).all()
    with pytest.raises(ValueError, match="different samples"):
        contrasts.same_rows(one, other)


QUESTIONS = [
    {"id": f"q{i}", "prompt": f"sum {i}", "gold": [1.0, 0.0, 0.0],
     "responses": [f"one {i}\ntwo\nthree", f"all at once {i}", f"a {i}\nb"]} for i in range(3)
]  # fmt: skip


def test_steps_that_are_kept_give_the_scores_of_the_reward() -> None:
    judge = FakeJudge()
    arrays = step_choice.read(judge, QUESTIONS, np.array([0, 2, 4]))
    assert arrays["steps"].tolist() == [3, 1, 2] * 3 and arrays["list"].tolist() == [0] * 3 + [2] * 3 + [4] * 3
    found = step_choice.scores(arrays)
    prompts = [q["prompt"] for q in QUESTIONS for _ in range(3)]
    replies = [r for q in QUESTIONS for r in q["responses"]]
    for name in step_choice.STEPS:
        for how in ("last", "min", "mean", "product", "rise"):
            reward = StepReward(judge, prompt=name, split="lines", aggregate=how)
            np.testing.assert_allclose(found[f"{name}, {how}"], reward.score(prompts, replies), rtol=1e-5, atol=1e-6)
    whole = ProbabilityWeightedReward(judge).score(prompts, replies)
    np.testing.assert_allclose(found["weighted"], whole, rtol=1e-5)


def test_picks_and_auc_by_hand() -> None:
    arrays = {"list": np.array([0, 0, 0, 1, 1]), "gold": np.array([0.0, 1.0, 1.0, 0.0, 1.0])}
    score = np.array([3.0, 3.0, 1.0, 2.0, 5.0])
    np.testing.assert_allclose(step_choice.picks(score, arrays), [0.5, 1.0])
    assert step_choice.auc(score, arrays["gold"]) == pytest.approx(3.5 / 6)  # of six, three won and one tied
    assert np.isnan(step_choice.picks(np.where(score == 1, np.nan, score), arrays)[0])


def test_who_is_met() -> None:
    rated = np.array([4.0, 9.0, 5.0, 1.0])
    found = anchors.chosen(rated, 2)
    assert sorted(found["the middle"][0]) == [0, 2] and sorted(found["the best"][0]) == [1, 2]
    assert sorted(found["the worst"][0]) == [0, 3] and len(found["any"]) == 6


def test_lists_give_what_the_pairwise_reward_gives() -> None:
    judge = FakeJudge()
    lists = [
        {"id": "l", "prompt": "p", "source": "s", "responses": [f"reply {i}" for i in range(5)], "gold": [*range(5)]},
        {"id": "m", "prompt": "q", "source": "s", "responses": [f"other {i}" for i in range(3)], "gold": [1, 0, 0]},
    ]  # fmt: skip
    arrays = anchors.read(judge, lists, np.array([0, 1]))
    first, rated = arrays["first"][0, :5, :5].astype(float), arrays["weighted"][0, :5].astype(float)
    d, replies = (first - first.T) / 2, lists[0]["responses"]
    everybody = PairwiseReward(judge).score(["p"] * 5, replies)
    np.testing.assert_allclose(anchors.met(d, tuple(range(5))), everybody, rtol=1e-5, atol=1e-6)
    middle = anchors.chosen(rated, 2)["the middle"][0]
    anchored = PairwiseReward(judge, opponents="anchors", count=2).score(["p"] * 5, replies)
    np.testing.assert_allclose(anchors.met(d, middle), anchored, rtol=1e-5, atol=1e-6)
    assert np.isfinite(arrays["gold"]).sum(1).tolist() == [5, 3]
    figures = anchors.consistency(arrays)
    assert figures["ipi"]["n"] == 2 and figures["local"]["n"] == 6 and figures["global_aware"]["n"] == 2
    assert figures["conflict"]["weighted"]["n"] == 6


def test_picks_count_the_same_whatever_scale_a_file_has() -> None:
    width, n = anchors.WIDTH, anchors.LONG
    arrays = {k: np.full((2, width), np.nan) for k in ("gold", "length", "weighted")}
    arrays |= {"first": np.full((2, width, width), np.nan), "index": np.arange(2), "source": np.array(["s", "t"])}
    for m, scale in enumerate((1.0, 100.0)):
        arrays["gold"][m, :n] = scale * np.arange(n)
        arrays["weighted"][m, :n] = arrays["length"][m, :n] = [5, 0, 1, 2, 3, 4][:n]
        arrays["first"][m, :n, :n] = np.subtract.outer(np.arange(n), np.arange(n))
    found = {row["opponents"]: row for row in anchors.figures(arrays)["opponents"]["all"]}
    assert found[anchors.EVERYBODY]["pick"][0] == found["the middle, 1"]["pick"][0] == 1.0
    assert found[anchors.POINTWISE]["pick"][0] == 0.0, "the worst reply is rated best"
    assert found[anchors.EVERYBODY]["spearman"][0] == pytest.approx(1.0)
