"""Panels: features worked by hand, fits against scikit-learn, figures that keep prompts and sources apart, files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from latent_rewards import JudgePrompt, Reading
from latent_rewards.files.outputs import to_json
from latent_rewards.judge.reading import Request
from latent_rewards.probes.examples import Example, pair_examples, rating_examples
from latent_rewards.probes.panel import Panel
from latent_rewards.probes.panel_card import panel_card, weights
from latent_rewards.probes.panel_collect import collect_readings
from latent_rewards.probes.panel_fit import PanelOptions, Table, fit_line, table_of
from latent_rewards.probes.panel_train import ALL, BEST, LEFT_OUT, PANEL, figures, source_folds, train_panel, unseen
from latent_rewards.probes.questions import (
    LENGTH,
    Feature,
    Question,
    default_questions,
    features_of,
    lenses_of,
    values_of,
)
from tests.contracts import UNREADABLE, FakeJudge, a_panel

WEIGHTED = Question("weighted", JudgePrompt.load("weighted"))
VERIFIER = Question("verifier", JudgePrompt.load("verifier"))


def pairs(n: int, source: str = "a", start: int = 0) -> list[Example]:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(start, start + n)]
    return pair_examples(rows, source)


def table(x: Any, label: Any, pair: Any, group: Any = None, length: Any = None, source: Any = None) -> Table:
    x, label, pair = np.array(x, float), np.array(label, float), np.array(pair)
    n = len(label)
    return Table(
        x.reshape(n, -1), label, pair, np.array(pair if group is None else group),
        np.full(n, 10) if length is None else np.array(length), np.array(["a"] * n if source is None else source),
    )  # fmt: skip


def made_pairs(n: int = 200, seed: int = 0, noise: float = 0.5, source: str = "a") -> Table:
    """Pairs of which the first is better where 2 x_0 - x_1 plus noise says so; x_2 is noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * n, 3))
    worth = 2 * x[:, 0] - x[:, 1] + noise * rng.logistic(size=2 * n)
    label = np.zeros(2 * n)
    for i in range(n):
        label[2 * i + int(worth[2 * i + 1] > worth[2 * i])] = 1
    return table(x, label, np.repeat(np.arange(n), 2), source=[source] * (2 * n), length=rng.integers(5, 500, 2 * n))


# --- features


def test_features_by_hand() -> None:
    """Five ratings with p = 1/2, 1/4, 1/4, 0, 0 of a mass of 0.8; yes 3/4 and no 1/4."""
    five = JudgePrompt.load("four_rubric")
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0, 0.0]])
    layers = torch.tensor([[[0.0, 0, 0, 0, 0], [2.0, 2, 2, 2, 2 + 2 * math.log(2)]]])  # mean: p of the last is 1/3
    rated = Reading((0.8 * p).log(), torch.tensor([0.8]), {}, {"raw": layers}, (None,))
    yes = Reading(torch.tensor([[0.75, 0.25]]).log(), torch.ones(1), {}, {}, (None,))
    questions = [Question("five", five), VERIFIER]
    features = [Feature("five", s) for s in ("mean", "sd", "entropy", "mass", "raw")]
    features += [Feature("verifier", s) for s in ("mean", "sd")] + [Feature("", LENGTH)]
    got = values_of(features, questions, [rated, yes], np.array([19]))
    want = [
        1.75, math.sqrt(0.5 * 0.75**2 + 0.25 * 0.25**2 + 0.25 * 1.25**2), 1.5 * math.log(2), math.log(0.8),
        (1 + 2 + 3 + 4) / 6 + 5 / 3, math.log(3), math.sqrt(0.75 * 0.25), math.log(20),
    ]  # fmt: skip
    np.testing.assert_allclose(got, [want], rtol=1e-5)


def test_every_statistic_of_every_question_by_name() -> None:
    found = features_of([WEIGHTED, VERIFIER], ["mean", "sd"])
    assert [f.name for f in found] == ["weighted/mean", "weighted/sd", "verifier/mean", "verifier/sd"]
    assert lenses_of(found) == frozenset() and lenses_of(features_of([WEIGHTED], ["raw", "normed"])) == {
        "raw",
        "normed",
    }
    with pytest.raises(ValueError, match=r"unknown statistics \['kurtosis'\]; known are \['mean'"):
        features_of([WEIGHTED], ["kurtosis"])
    with pytest.raises(ValueError, match="different names"):
        features_of([WEIGHTED, WEIGHTED], ["mean"])


def test_questions_that_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match=r"prompt 'pairwise' compares replies; a panel reads one"):
        Question("two", JudgePrompt.load("pairwise"))
    with pytest.raises(ValueError, match="prompt 'likert10' has no labels to read"):
        Question("drawn", JudgePrompt.load("likert10"))
    with pytest.raises(ValueError, match="prompt 'criterion' needs a criterion"):
        Question("empty", JudgePrompt.load("criterion"))
    with pytest.raises(ValueError, match=r"prompt 'weighted' has no slot for criterion 'It is short.'"):
        Question("full", JudgePrompt.load("weighted"), "It is short.")


def test_the_default_questions() -> None:
    asked = default_questions()
    assert len(asked) == 7 and len({q.name for q in asked}) == 7 and sum(q.sign < 0 for q in asked) == 2
    assert all(q.prompt.system == asked[0].prompt.system for q in asked), "one head, so that it is read once"


# --- fits


def test_pairs_are_scikit_learns_logistic_regression_on_differences() -> None:
    t = made_pairs()
    line = fit_line(t, PanelOptions(strengths=(0.1,)))
    better, worse = np.flatnonzero(t.label == 1), np.flatnonzero(t.label == 0)
    gap = (t.x[better] - t.x[worse]) / t.x.std(0)
    own = LogisticRegression(C=0.1, fit_intercept=False).fit(np.r_[gap, -gap], np.r_[np.ones(200), np.zeros(200)])
    np.testing.assert_allclose(line.weights, own.coef_[0] / t.x.std(0), rtol=1e-4)
    assert line.weights[0] > 0 > line.weights[1] and abs(line.weights[2]) < 0.2 * line.weights[0]


def test_ratings_that_are_linear_are_found() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    t = table(x, 3 + 2 * x[:, 0] - x[:, 1], [-1] * 60, group=np.arange(60))
    line = fit_line(t, PanelOptions(strengths=(1e6,)))
    np.testing.assert_allclose(line.weights, [2, -1], rtol=1e-5)
    np.testing.assert_allclose(line(t), t.label, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.floats(-50, 50), st.floats(0.1, 10), st.randoms(use_true_random=False))
def test_shift_unit_and_order_change_no_score(shift: float, unit: float, random: Any) -> None:
    t = made_pairs(40)
    order = list(range(40))
    random.shuffle(order)
    rows = np.array([r for i in order for r in ((2 * i + 1, 2 * i) if i % 2 else (2 * i, 2 * i + 1))])
    moved = Table(shift + unit * t.x, t.label, t.pair, t.group, t.length, t.source).take(rows)
    first, second = (fit_line(one, PanelOptions(strengths=(0.1,)))(one) for one in (t, moved))
    gap = first[rows][0::2] - first[rows][1::2]
    np.testing.assert_allclose(second[0::2] - second[1::2], gap, rtol=1e-4, atol=1e-6)


def test_the_strength_is_that_of_the_lowest_held_out_loss() -> None:
    noise = made_pairs(60, noise=500.0)
    assert fit_line(noise, PanelOptions()).strength == min(PanelOptions().strengths), "noise is not believed"
    assert fit_line(made_pairs(200, noise=0.05), PanelOptions()).strength == max(PanelOptions().strengths)


def test_the_residual_takes_length_out_of_every_feature() -> None:
    """x_0 is quality plus length, x_1 length alone: what the residual panel prefers does not go with length."""
    rng = np.random.default_rng(1)
    n = 300
    quality, length = rng.normal(size=2 * n), rng.integers(10, 2000, 2 * n)
    log = np.log1p(length.astype(float))
    pair = np.repeat(np.arange(n), 2)
    worth = quality + 2 * log
    label = np.array([float(worth[i] > worth[i ^ 1]) for i in range(2 * n)])
    t = table(np.stack([quality + log, 3 * log], 1), label, pair, length=length)
    plain, flat = fit_line(t, PanelOptions()), fit_line(t, PanelOptions(length="residual"))

    def with_length(score: np.ndarray) -> float:
        gaps = score[0::2] - score[1::2], log[0::2] - log[1::2]
        return float(gaps[0] @ gaps[1] / np.linalg.norm(gaps[0]) / np.linalg.norm(gaps[1]))

    assert with_length(plain(t)) > 0.8 and abs(with_length(flat(t))) < 1e-6
    assert flat.by_length < 0 == plain.by_length == flat.weights[1]
    assert np.corrcoef(flat(t)[0::2] - flat(t)[1::2], quality[0::2] - quality[1::2])[0, 1] > 0.95


def test_labels_that_nothing_can_be_learnt_from() -> None:
    with pytest.raises(ValueError, match=r"all 4 labels are 1: nothing to learn from"):
        fit_line(table([1, 2, 3, 4], [1, 1, 1, 1], [-1] * 4), PanelOptions())
    with pytest.raises(ValueError, match="'logistic' without pairs needs labels 0 and 1; use 'ridge' for ratings"):
        fit_line(table([1, 2, 3], [1, 2, 3], [-1] * 3), PanelOptions(objective="logistic"))
    with pytest.raises(ValueError, match="2 different prompts cannot make 5 folds"):
        fit_line(table([1, 2, 3, 4], [1, 0, 1, 0], [0, 0, 1, 1]), PanelOptions())
    for wrong in ({"objective": "hinge"}, {"length": "erase"}, {"strengths": (0.0,)}, {"folds": 1}):
        with pytest.raises(ValueError, match=r"must be one of|need strengths above 0"):
            PanelOptions(**wrong)


def test_pairs_and_ratings_do_not_mix_and_a_pair_stays_whole() -> None:
    judge, features = FakeJudge(), features_of([WEIGHTED], ["mean"])
    examples = pairs(3)
    examples[2] = examples[2]._replace(completion=UNREADABLE)
    readings = collect_readings(judge, [WEIGHTED], examples)
    assert table_of(features, [WEIGHTED], examples, readings).pair.tolist() == [0, 0, 2, 2]
    mixed = [*pairs(1), *rating_examples([{"prompt": "q", "response": "r", "score": 3}])]
    with pytest.raises(ValueError, match="pairs or lists and ratings do not fit one panel"):
        table_of(features, [WEIGHTED], mixed, collect_readings(judge, [WEIGHTED], mixed))
    lost = [e._replace(completion=UNREADABLE) for e in pairs(2)]
    with pytest.raises(ValueError, match=f"none of 4 examples could be read: {UNREADABLE}"):
        table_of(features, [WEIGHTED], lost, collect_readings(judge, [WEIGHTED], lost))


# --- figures


def two_sources() -> tuple[Table, dict[str, np.ndarray]]:
    """In source a the first feature is right, in b it is wrong and the second is right."""
    a, b = made_pairs(80, 1, 0.01, "a"), made_pairs(80, 2, 0.01, "b")
    x = np.concatenate([a.x, b.x[:, [1, 0, 2]] * [1, 1, 1]])
    label = np.concatenate([a.label, b.label])
    pair = np.concatenate([a.pair, b.pair + 80])
    t = table(x, label, pair, length=np.r_[a.length, b.length], source=[*a.source, *b.source])
    return t, {"first": t.x[:, 0], "second": t.x[:, 1]}


def accuracy(rows: Sequence[Any], source: str, scorer: str) -> float:
    (row,) = [r for r in rows if r["source"] == source and r["scorer"] == scorer]
    return float(row["accuracy"][0])


def test_a_source_left_out_is_not_learnt_from() -> None:
    t, members = two_sources()
    rows = figures(t, members, PanelOptions())
    for source in ("a", "b"):
        assert accuracy(rows, source, LEFT_OUT) < 0.35, "the other source teaches the opposite"
    assert accuracy(rows, ALL, LEFT_OUT) < accuracy(rows, ALL, PANEL)
    assert accuracy(rows, "a", "first") > 0.7 and accuracy(rows, "b", "first") < 0.5
    assert accuracy(rows, "a", BEST) == accuracy(rows, "a", "second"), "chosen on the other source"
    (lead,) = [r for r in rows if r["source"] == ALL and r["scorer"] == f"{LEFT_OUT} - {BEST}"]
    gap = accuracy(rows, ALL, LEFT_OUT) - accuracy(rows, ALL, BEST)
    assert lead["accuracy"][0] == pytest.approx(gap) and lead["accuracy"][1] <= gap <= lead["accuracy"][2]
    assert {r["scorer"] for r in rows if r["source"] == "a"} >= {PANEL, LEFT_OUT, BEST, "first", "second", LENGTH}


def test_no_prompt_on_both_sides() -> None:
    t, _ = two_sources()
    group = t.group.copy()
    group[160:162] = group[0]  # a prompt of b that stands in a, too
    shared = Table(t.x, t.label, t.pair, group, t.length, t.source)
    for train, test in source_folds(shared):
        assert not set(shared.group[train]) & set(shared.group[test])
        assert len(train) == 158
    same = Table(t.x, t.label, t.pair, np.r_[t.group[:160], t.group[:160]], t.length, t.source)
    rows = figures(same, {"first": t.x[:, 0]}, PanelOptions())
    assert np.isnan(accuracy(rows, "a", LEFT_OUT)) and accuracy(rows, "a", PANEL) > 0.4, "nothing is left to learn from"
    with pytest.raises(ValueError, match="1 prompts stand both in the training and in the test split"):
        unseen(shared, [(np.arange(160, 320), np.arange(160))], PanelOptions())


def test_ratings_have_a_correlation_for_each_source() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2))
    t = table(x, x[:, 0] + 0.1 * rng.normal(size=120), [-1] * 120, group=np.arange(120), source=["a", "b"] * 60)
    rows = figures(t, {"first": x[:, 0], "second": x[:, 1]}, PanelOptions())
    found = {(r["source"], r["scorer"]): r["spearman"] for r in rows}
    assert found["a", LEFT_OUT][0] > 0.9 and abs(found["a", "second"][0]) < 0.4
    assert found["a", LEFT_OUT][1] < found["a", LEFT_OUT][0] < found["a", LEFT_OUT][2]
    assert not any(" - " in scorer or source == ALL for source, scorer in found)


# --- from a judge to a file


def test_a_panel_is_trained_saved_and_read_again(tmp_path: Path) -> None:
    judge = FakeJudge()
    examples = [*pairs(30, "a"), *(e._replace(pair=e.pair + 30) for e in pairs(30, "b", 30))]
    options = PanelOptions(length="residual")
    panel = train_panel(
        judge, default_questions(), examples, statistics=("mean", "sd", "raw"), folder=tmp_path / "readings",
        options=options, training={"data": ["a.jsonl"], "command": "latent-rewards panel train a.jsonl"},
    )  # fmt: skip
    assert len(panel.features) == 7 * 3 + 1 and panel.features[-1].name == LENGTH
    panel.save(tmp_path)
    again = Panel.load(tmp_path)
    assert again.facts == panel.facts and again.scales.tolist() == panel.scales.tolist()
    assert (again.judge, again.revision, again.training) == ("fake", "fake", json.loads(to_json(panel.training)))
    raw = json.loads((tmp_path / "panel.json").read_text())
    by_name = {f"{f['question']}/{f['statistic']}": f["weight"] for f in raw["features"]}
    assert by_name["verifier/mean"] == panel.weights[[f.name for f in panel.features].index("verifier/mean")]
    assert {q["prompt_hash"] for q in raw["questions"]} == {q.prompt.hash for q in default_questions()}
    card = (tmp_path / "README.md").read_text()
    assert card == panel_card(again) and "| verifier/mean |" in card and "The reply contains a mistake." in card
    assert "| all sources | panel, source left out |" in card and "latent-rewards panel train a.jsonl" in card
    heaviest = [line.split("|")[1].strip() for line in weights(panel).splitlines()][2]
    assert abs(panel.weights * panel.scales).argmax() == [f.name for f in panel.features].index(heaviest)


def test_damaged_panels_say_so(tmp_path: Path) -> None:
    a_panel(FakeJudge()).save(tmp_path)
    whole = (tmp_path / "panel.json").read_text()
    (tmp_path / "panel.json").write_text(whole.replace('"bias": 0.75', '"bias": 0.85'))
    with pytest.raises(ValueError, match="not a panel: the checksum does not fit: it was damaged or edited"):
        Panel.load(tmp_path)
    (tmp_path / "panel.json").write_text(whole[:100])
    with pytest.raises(ValueError, match=f"{tmp_path}: not a panel"):
        Panel.load(tmp_path)
    (tmp_path / "panel.json").write_text(whole)
    (prompt,) = tmp_path.glob("prompt-weighted-*.yaml")
    prompt.write_text(prompt.read_text().replace("How good is the reply", "How bad is the reply"))
    with pytest.raises(ValueError, match=r"prompt-weighted-.*\.yaml has hash .*, but the panel was fitted on"):
        Panel.load(tmp_path)
    prompt.unlink()
    with pytest.raises(ValueError, match="not a panel"):
        Panel.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="latent-rewards panel train"):
        Panel.load(tmp_path / "nowhere")


def test_panels_that_cannot_be() -> None:
    one = np.ones(1)
    with pytest.raises(ValueError, match="'verifier/mean' is of no question of this panel"):
        Panel((WEIGHTED,), (Feature("verifier", "mean"),), one, one, one, 0.0, "j")
    with pytest.raises(ValueError, match="weights must be 1 finite numbers"):
        Panel((WEIGHTED,), (Feature("weighted", "mean"),), np.array([np.nan]), one, one, 0.0, "j")
    with pytest.raises(ValueError, match="two questions of one name"):
        Panel((WEIGHTED, WEIGHTED), (Feature("weighted", "mean"),), one, one, one, 0.0, "j")


class Stops(FakeJudge):
    """Breaks off in its third read."""

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        if self.reads >= 4:
            raise KeyboardInterrupt
        return super().read(requests)


def test_a_stopped_collection_goes_on(tmp_path: Path) -> None:
    questions, examples = [WEIGHTED, VERIFIER], pairs(10)
    with pytest.raises(KeyboardInterrupt):
        collect_readings(Stops(), questions, examples, folder=tmp_path, lenses=("raw",), shard_rows=4)
    judge = FakeJudge()
    got = collect_readings(judge, questions, examples, folder=tmp_path, lenses=("raw",), shard_rows=4)
    assert judge.reads == 2 * 3, "two of five shards were there, two requests each"
    want = collect_readings(FakeJudge(), questions, examples, lenses=("raw",))
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.label_logprobs, w.label_logprobs) and g.reasons == w.reasons
        assert torch.equal(g.layer_label_logits["raw"], w.layer_label_logits["raw"])
    for asked, lenses in ((questions, ()), (questions[::-1], ("raw",))):
        with pytest.raises(ValueError, match="it was read with other key; give another folder"):
            collect_readings(FakeJudge(), asked, examples, folder=tmp_path, lenses=lenses, shard_rows=4)
    with pytest.raises(ValueError, match="it was read with other examples"):
        collect_readings(FakeJudge(), questions, pairs(10, start=5), folder=tmp_path, lenses=("raw",), shard_rows=4)
