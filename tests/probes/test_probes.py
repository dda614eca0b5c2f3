"""Probes against scikit-learn and hand-worked numbers; files that do not fit are refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from latent_rewards import HFJudge, JudgePrompt, ProbeReward
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.cross_validation import best, cross_validate, sweep_layers
from latent_rewards.probes.examples import pair_examples
from latent_rewards.probes.fit import Data, FitOptions, check_disjoint, fit_head
from latent_rewards.probes.networks import kto_loss, ordinal_loss, state_scores
from latent_rewards.probes.probe import Probe, ProbeConfig
from latent_rewards.probes.train import RunOptions, check_prompts, train_probe
from latent_rewards.stats.bootstrap import mean_estimate
from latent_rewards.stats.pairs import length_correlation, length_matched, pair_indices, pair_report, wins

PROMPT = JudgePrompt.load("weighted")


def toy(n=400, p=8, *, seed=0, length_leak=0.0, aspects=0):
    """Pairs whose quality lies along one direction and whose length, if it leaks, along another."""
    rng = np.random.default_rng(seed)
    quality, w = np.tile([0.8, -0.8], n // 2), rng.normal(size=p)
    group = np.repeat(np.arange(n // 2), 2)
    base = rng.normal(size=(n // 2, p)).repeat(2, 0)
    length = np.exp(rng.normal(5, 0.5, n) + length_leak * quality).astype(int) + 1
    x = base + 0.5 * rng.normal(size=(n, p)) + np.outer(quality, w) * 0.3
    x[:, 0] += 2 * np.log(length)
    label = (quality > 0).astype(float)
    if aspects:
        label = np.stack([label * 3 + 1, 5 - label], 1)
    return Data(x.astype(np.float32), label, group, group, length, np.zeros(n, int))


def probe_of(tensors, judge="tiny", width=8, prompt=PROMPT, revision="r", **changes):
    config = ProbeConfig(judge=judge, revision=revision, prompt_hash=prompt.hash, layers=(1,), width=width)
    return Probe(dataclasses.replace(config, **changes), tensors, prompt)


def test_linear_probe_is_logistic_regression():
    data = toy()
    x = data.x.astype(np.float64)
    z = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8, max_iter=5000).fit(z, data.label)
    tensors = fit_head(data, FitOptions(strength=0.1))
    ours = state_scores(data.x, tensors, "linear")[:, 0]
    np.testing.assert_allclose(ours, reference.decision_function(z), atol=1e-4)


def test_bradley_terry_is_logistic_regression_on_differences():
    data = toy()
    x = data.x.astype(np.float64)
    z = (x - x.mean(0)) / x.std(0)
    d = z[::2] - z[1::2]
    reference = LogisticRegression(C=0.1, fit_intercept=False, tol=1e-8, max_iter=5000)
    reference.fit(np.vstack([d, -d]), np.repeat([1, 0], len(d)), sample_weight=np.full(2 * len(d), 0.5))
    tensors = fit_head(data, FitOptions(objective="bradley_terry", strength=0.1))
    ours = state_scores(data.x, tensors, "linear")[:, 0]
    np.testing.assert_allclose(ours[::2] - ours[1::2], d @ reference.coef_[0], atol=1e-4)


def test_regression_of_several_aspects():
    data = toy(aspects=2)
    scores = state_scores(data.x, fit_head(data, FitOptions(objective="regression", strength=1.0)), "linear")
    assert scores.shape == (400, 2)
    assert np.corrcoef(scores[:, 0], data.label[:, 0])[0, 1] > 0.35
    assert np.corrcoef(scores[:, 0], scores[:, 1])[0, 1] < -0.9


@pytest.mark.parametrize("guard", ["erase", "nuisance", "balance"])
@pytest.mark.parametrize("objective", ["bce", "bradley_terry"])
def test_guards_keep_length_out(guard, objective):
    data, clean = toy(2000, length_leak=0.8), toy(2000, seed=0)
    plain = state_scores(data.x, fit_head(data, FitOptions(objective=objective, strength=1.0)), "linear")[:, 0]
    options = FitOptions(objective=objective, strength=1.0, guards=(guard,))
    guarded = state_scores(data.x, fit_head(data, options), "linear")[:, 0]
    assert length_correlation(plain, data.length, data.group) > 0.55
    better, worse = pair_indices(data.label, data.pair)
    longer = data.length[better] > data.length[worse]
    gap = [np.mean(wins(s, better, worse)[longer]) - np.mean(wins(s, better, worse)[~longer]) for s in (plain, guarded)]
    assert gap[1] < 0.6 * gap[0]
    assert len(clean) == 2000


def test_erase_leaves_no_covariance_with_length():
    data = toy(2000, length_leak=0.8)
    score = state_scores(data.x, fit_head(data, FitOptions(strength=1.0, guards=("erase",))), "linear")[:, 0]
    log = np.log1p(data.length)
    within = (score[::2] - score[1::2]) @ (log[::2] - log[1::2]) / 1000
    assert abs(within) < 0.02 * score.std() * log.std()


def test_kto_loss_by_hand():
    # g = 0: m = 0.5 * 0 = 0, value 0.5. g = 2: p = 0.880797, m = 0.119203 * 2 = 0.238406, sigmoid(-m) = 0.440679.
    loss = kto_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]), desirable=2.0)
    assert float(loss) == pytest.approx((2 * 0.5 + (1 - 0.440679)) / 2, abs=1e-5)


def test_ordinal_loss_by_hand():
    # cuts 0, 1; score 0: P(0) = 0.5, P(2) = 1 - sigmoid(1) = 0.268941
    loss = ordinal_loss(torch.zeros(2), torch.tensor([0, 2]), torch.tensor([0.0, 1.0]))
    assert float(loss) == pytest.approx(-(math.log(0.5) + math.log(0.2689414)) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [("mlp", "bce"), ("orthogonal", "bce"), ("linear", "kto"), ("mlp", "bradley_terry"), ("orthogonal", "kto")],
)
def test_networks_learn(architecture, objective):
    data, unseen = toy(1200), toy(400, seed=0)
    options = FitOptions(architecture=architecture, objective=objective, strength=10.0, lr=1e-2, epochs=30)
    tensors = fit_head(data, options)
    again = fit_head(data, options)
    score = state_scores(unseen.x, tensors, architecture)[:, 0]
    assert pair_report(score, unseen.label, unseen.pair, unseen.group, unseen.length)["accuracy"][0] > 0.7
    assert all(torch.equal(tensors[k], again[k]) for k in tensors)


def test_ordinal_and_mixture_learn():
    data = toy(1200)
    ratings = dataclasses.replace(data, label=data.label * 3 + 1)
    score = state_scores(data.x, fit_head(ratings, FitOptions(objective="ordinal", lr=1e-2, strength=10)), "linear")
    assert np.corrcoef(score[:, 0], data.label)[0, 1] > 0.3
    rng = np.random.default_rng(1)
    two = dataclasses.replace(data, x=np.hstack([rng.normal(size=data.x.shape).astype(np.float32), data.x]))
    mixed = fit_head(two, FitOptions(mix_layers=True, lr=3e-2, strength=10), n_layers=2)["weight"][0]
    assert mixed.shape == (16,)
    a, b = mixed[:8].norm(), mixed[8:].norm()
    torch.testing.assert_close(mixed[:8] / a, mixed[8:] / b, atol=1e-4, rtol=1e-4)
    assert b > a


def test_orthogonal_heads_are_orthogonal():
    weight = fit_head(toy(), FitOptions(architecture="orthogonal", heads=3, epochs=5))["weight"].double()
    unit = weight / weight.norm(dim=1, keepdim=True)
    assert (unit @ unit.T - torch.eye(3)).abs().max() < 1e-5


def test_probe_by_hand():
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.0, 1.0])
    x = torch.tensor([[3.0, 1.0]])  # g = (3, 3): gate 1/2 each, score 3
    probe = probe_of({"weight": weight, "bias": bias}, width=2, architecture="orthogonal")
    assert probe(x).tolist() == [[3.0]]
    mlp = {"weight": weight, "bias": torch.tensor([-4.0, 0.0]), "out_weight": torch.tensor([[5.0, 7.0]]),
           "out_bias": torch.tensor([1.0])}  # fmt: skip
    assert probe_of(mlp, width=2, architecture="mlp")(x).tolist() == [[15.0]]  # relu(-1), relu(2) -> 7 * 2 + 1


def test_pair_metrics_by_hand():
    label, pair = np.array([2.0, 1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 0, 1, 1])
    better, worse = pair_indices(label, pair)
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
    score = np.array([1.0, 1.0, 3.0, 0.0, 0.0])
    assert wins(score, np.array([0, 0, 1]), np.array([1, 2, 2])).tolist() == [0.5, 0.0, 0.0]
    assert length_matched(np.array([80, 79]), np.array([100, 100]), tolerance=0.2).tolist() == [True, False]
    assert mean_estimate(np.array([1.0, 1.0, np.nan]), np.array([0, 1, 2]))[:3] == (1.0, 1.0, 1.0)
    assert math.isnan(mean_estimate(np.zeros(0), np.zeros(0))[0])
    assert length_correlation(np.array([1.0, 2.0, 3.0]), np.array([10, 20, 30])) == pytest.approx(1.0)


def test_folds_never_share_a_prompt():
    data = toy()
    rows = cross_validate(data, FitOptions(), strengths=[1e-3, 1e-1])
    assert best(rows, "accuracy")[0]["accuracy"][0] > 0.7 and len(rows) == 2
    never = [
        {**r, "balanced": (math.nan, 0, 1), "layer": i} for i, r in enumerate(sorted(rows, key=lambda r: r["accuracy"]))
    ]
    assert best(never, "balanced") == (never[-1], "accuracy")
    assert best([{"r": math.nan}, {"r": 0.1}], "r") == ({"r": 0.1}, "r")
    noise = dataclasses.replace(data, x=np.eye(200, dtype=np.float32).repeat(2, 0))  # the state names the prompt only
    assert abs(cross_validate(noise, FitOptions(), strengths=[1.0])[0]["accuracy"][0] - 0.5) < 0.05
    with pytest.raises(ValueError, match="1 prompts stand both"):
        check_disjoint(np.array([1, 2]), np.array([2, 3]))
    with pytest.raises(ValueError, match="cannot make 5 folds"):
        cross_validate(data.take(np.arange(4)), FitOptions(), strengths=[1.0])


def test_too_few_prompts_are_told_before_anything_is_read(make_judge: Any, tmp_path: Any) -> None:
    rows = [{"prompt": f"question {i % 6}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    judge = make_judge()
    for few, run, enough in (
        (rows, RunOptions(), 0), (rows[:5], RunOptions(), 6), (rows, RunOptions(test_share=0.5), 9),
        (rows[:4], RunOptions(test_share=0.0), 5), (rows[:1], RunOptions(concatenate=True), 0),
    ):  # fmt: skip
        examples = pair_examples(few, "made")
        if not enough:
            check_prompts(examples, run)
            continue
        with pytest.raises(ValueError, match=rf"cannot make 5 folds: rows of {enough} prompts would do"):
            train_probe(
                judge, JudgePrompt.load("weighted"), examples, features_folder=tmp_path, fit=FitOptions(), run=run
            )
    assert judge.forwards == 0 and not list(tmp_path.iterdir())


def test_bad_data_is_refused():
    data = toy()
    broken = data.x.copy()
    broken[3, 2] = np.nan
    cases = [
        (dataclasses.replace(data, x=broken), FitOptions(), "NaN or infinite values in 1 of 400 rows"),
        (dataclasses.replace(data, label=np.ones(400)), FitOptions(), r"needs labels 0 and 1, both present; found \[1"),
        (dataclasses.replace(data, label=np.full(400, np.nan)), FitOptions(), "labels hold NaN"),
        (dataclasses.replace(data, pair=np.full(400, -1)), FitOptions(objective="bradley_terry"), "needs pairs"),
        (dataclasses.replace(data, label=np.ones(400)), FitOptions(objective="regression"), "two different ratings"),
    ]
    for rows, options, message in cases:
        with pytest.raises(ValueError, match=message):
            fit_head(rows, options)


def test_ten_thousand_rows_train_quickly():
    data = toy(10_000, p=576)
    started = time.perf_counter()
    fit_head(data, FitOptions(objective="bradley_terry", strength=1e-3, guards=("balance", "erase")))
    assert time.perf_counter() - started < 60


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A probe on the tiny judge, trained on features of it, and the features."""
    judge = HFJudge(folder, dtype="float32", device="cpu")
    pairs = [{"prompt": f"Say {i}", "chosen": f"It is {i}", "rejected": f"No {i} {i}"} for i in range(30)]
    path = tmp_path_factory.mktemp("features")
    features = collect_features(judge, PROMPT, pair_examples(pairs), [1, 2, 3], folder=path, dtype="float32")
    rows = sweep_layers(features, [1, 2, 3], FitOptions(), strengths=[1e-2], folds=3)
    assert [r["layer"] for r in rows] == [1, 2, 3]
    tensors = fit_head(Data.of(features, [2]), FitOptions(strength=1e-1))
    config = ProbeConfig(judge.name, judge.revision, PROMPT.hash, (2,), 32, training={"data": ["made up"]})
    return Probe(config, tensors, PROMPT), features


def test_the_sweep_logs_one_rounded_line_a_layer(trained, caplog):
    caplog.set_level(logging.INFO)
    sweep_layers(trained[1], [1, 2], FitOptions(), strengths=[1e-3, 1e-2], folds=3, by="accuracy")
    lines = [m for m in caplog.messages if m.startswith("layer")]
    assert len(lines) == 2
    assert re.fullmatch(r"layer 2: accuracy by strength \d\.\d{3} \(0\.001\), \d\.\d{3} \(0\.01\)", lines[1])


def test_reward_scores_as_the_training_did(trained, folder, tmp_path):
    probe, features = trained
    reward = ProbeReward(HFJudge(folder, dtype="float32", device="cpu"), probe.save(tmp_path / "p"))
    pairs = [(f"Say {i}", c) for i in range(30) for c in (f"It is {i}", f"No {i} {i}")]
    scores = reward.score(*zip(*pairs, strict=True))
    expected = state_scores(features.states([2]), probe.tensors, "linear")[:, 0]
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert reward.__name__.startswith("probe")
    assert reward(prompts=["a"], completions=["b"]) == reward(prompts=["a"], completions=["b"])
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(reward)).score(["Say 1"], ["It"]), reward.score(["Say 1"], ["It"])
    )


def test_save_and_load(trained, tmp_path):
    probe, _ = trained
    probe.save_pretrained(tmp_path / "p")
    again = Probe.from_pretrained(str(tmp_path / "p"))
    assert again.config == probe.config and again.prompt.hash == probe.prompt.hash
    assert all(torch.equal(again.tensors[k], probe.tensors[k]) for k in probe.tensors)
    card = (tmp_path / "p" / "README.md").read_text()
    assert "made up" in card and probe.config.revision in card
    assert not list((tmp_path / "p").glob("*.pkl")) and not list((tmp_path / "p").glob("*.pt"))


def test_broken_probe_files(trained, tmp_path):
    probe, _ = trained
    path = probe.save(tmp_path / "p")
    whole, config = (path / "probe.safetensors").read_bytes(), (path / "probe.json").read_text()
    for data, message in ((whole[:-40], "corrupt or cut short"), (b"pickle", "corrupt or cut short")):
        (path / "probe.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            Probe.load(path)
    (path / "probe.safetensors").write_bytes(whole)
    for text, message in (
        ("{", "not a probe"),
        ("[]", "format 1"),
        (json.dumps({"format": 2}), "format 1, got 2"),
        (json.dumps(json.loads(config) | {"colour": 1}), "colour"),
        (json.dumps(json.loads(config) | {"width": 7}), "do not read 7 inputs"),
        (json.dumps(json.loads(config) | {"architecture": "mlp"}), "a mlp probe has tensors"),
        (json.dumps(json.loads(config) | {"architecture": "tree"}), "unknown architecture"),
        (json.dumps(json.loads(config) | {"prompt_hash": "0"}), "has hash"),
        (json.dumps(json.loads(config) | {"outputs": ["a", "b"]}), r"1 outputs in the weights but names \['a', 'b'\]"),
    ):
        (path / "probe.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Probe.load(path)
    (path / "prompt.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"prompt\.yaml missing"):
        Probe.load(path)
    nan = {"weight": torch.full((1, 32), torch.nan), "bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="NaN"):
        Probe(probe.config, nan, PROMPT)


def test_wrong_judge_layer_prompt_and_aspect(trained, make_judge, folder):
    probe, _ = trained
    judge = make_judge("qwen2", "digits")
    with pytest.raises(ValueError, match=probe.config.revision):
        ProbeReward(judge, probe)
    loose = ProbeReward(judge, probe, strict=False)
    assert np.isfinite(loose.score(["a"], ["b"])).all()
    wide = make_judge("llama", "numbers")
    narrow = Probe(
        dataclasses.replace(probe.config, width=16), {"weight": torch.ones(1, 16), "bias": torch.zeros(1)}, PROMPT
    )
    with pytest.raises(ValueError, match="hidden size is 32, but the probe was trained on"):
        ProbeReward(wide, narrow, strict=False).score(["a"], ["b"])
    deep = Probe(dataclasses.replace(probe.config, layers=(9,)), probe.tensors, PROMPT)
    with pytest.raises(ValueError, match=r"layers 1\.\.3; layer 9"):
        ProbeReward(HFJudge(folder, device="cpu"), deep, strict=False).score(["a"], ["b"])
    with pytest.raises(ValueError, match=PROMPT.hash):
        ProbeReward(HFJudge(folder, device="cpu"), probe, prompt="verifier")
    with pytest.raises(ValueError, match=r"no output 'style'; it has \['score'\]"):
        ProbeReward(HFJudge(folder, device="cpu"), probe, aspect="style")
    with pytest.raises(FileNotFoundError, match="shipped probes are"):
        ProbeReward(HFJudge(folder, device="cpu"), "no/such/folder")


def test_aspects_and_mean(folder):
    judge = HFJudge(folder, dtype="float32", device="cpu")
    config = ProbeConfig(judge.name, judge.revision, PROMPT.hash, (1, 3), 32, outputs=("facts", "style"))
    probe = Probe(config, {"weight": torch.randn(2, 64), "bias": torch.zeros(2)}, PROMPT)
    scores = [ProbeReward(judge, probe, aspect=a).score(["a"], ["b"])[0] for a in ("facts", "style", None)]
    assert scores[2] == pytest.approx((scores[0] + scores[1]) / 2, abs=1e-5)


def test_the_shipped_probe(embedded):
    probe = Probe.load("embedded")
    assert "MIT" in " ".join(probe.config.training["data"]) and "none found" not in str(probe.config.training["data"])
    reward = ProbeReward(embedded)
    scores = reward.score(
        ["Name three primary colours."] * 2, ["Red, yellow and blue.", "I like trains. I like trains."]
    )
    assert np.isfinite(scores).all() and scores[0] > scores[1]


def test_push_uploads_the_folder_with_its_card(trained, monkeypatch):
    import huggingface_hub.hub_mixin as hub

    probe, _ = trained
    sent = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})()

        def upload_folder(self, *, repo_id, folder_path, **_):
            sent[repo_id] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}

    monkeypatch.setattr(hub, "HfApi", Api)
    probe.push_to_hub("probe")
    assert set(sent["me/probe"]) >= {"probe.json", "probe.safetensors", "prompt.yaml", "README.md"}
    assert b"made up" in sent["me/probe"]["README.md"]
