"""Training on states that stay on disk: the same probe as scikit-learn's on all rows at once, in flat memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge

from latent_rewards.files.seal import sealed
from latent_rewards.judge.hf import Reading
from latent_rewards.probes import states as probe_states
from latent_rewards.probes.collect import write_shard
from latent_rewards.probes.cross_validation import sweep_layers
from latent_rewards.probes.examples import Example
from latent_rewards.probes.features import FeatureInfo, Features
from latent_rewards.probes.fit import Data, FitOptions, fit_head
from latent_rewards.probes.guards import log_length, pair_weights, row_weights
from latent_rewards.probes.networks import _Head, _Loss, _mean_loss, _Split, state_scores
from latent_rewards.probes.states import StoredStates, moments, not_finite
from latent_rewards.stats.pairs import pair_indices

WIDTH, PROMPTS = 24, 150


def write_features(folder, *, rows_of_prompt=lambda i: 2, shard_rows=64, aspects=0, seed=0):
    """A folder of features of two layers, with large means, in which quality and length both show."""
    rng = np.random.default_rng(seed)
    direction, examples, states = rng.normal(size=WIDTH), [], []
    for i in range(PROMPTS):
        base = rng.normal(size=WIDTH)
        for j in range(rows_of_prompt(i)):
            quality = 0.8 if j % 2 else -0.8
            length = int(np.exp(rng.normal(4, 0.5) + 0.3 * quality)) + 1
            state = base + rng.normal(size=WIDTH) * 0.7 + 0.4 * quality * direction + 50 * np.arange(WIDTH)
            state[0] += 2 * np.log(length)
            label = float(quality > 0) if not aspects else [float(quality > 0), float(rng.random() > 0.5)]
            examples.append(Example(f"prompt {i}", "x" * length, label, pair=i, source=f"set {i % 2}"))
            states.append(state)
    info = FeatureInfo(
        "toy", "r", "weighted", "h", (1, 2), "normed", (), "float32", "f", len(states), shard_rows, ("set 0", "set 1")
    )
    folder.mkdir(exist_ok=True)
    (folder / "features.json").write_text(json.dumps(sealed(dataclasses.asdict(info))))
    first = torch.tensor(np.array(states), dtype=torch.float32)
    for k in range(0, -(-len(states) // shard_rows)):
        part = slice(k * shard_rows, (k + 1) * shard_rows)
        hidden = {1: first[part], 2: first[part] * 2 + 1}
        reading = Reading(reasons=[None] * len(first[part]), hidden=hidden)
        write_shard(folder / f"shard-{k:05d}.safetensors", reading, examples[part], info)
    return Features(folder)


@pytest.fixture
def on_disk(monkeypatch):
    """Nothing fits in memory, and a block holds seven rows of one layer."""
    monkeypatch.setattr(probe_states, "WHOLE_BYTES", 0)
    monkeypatch.setattr(probe_states, "BLOCK_BYTES", 7 * 4 * WIDTH)


def plain_fit(data, options):
    """The same probe by scikit-learn, all rows in memory, standardised one by one; one label."""
    x = np.asarray(data.x, dtype=np.float64)
    mean, scale = x.mean(0), x.std(0)
    z, log = (x - mean) / scale, log_length(data.length)
    u, c = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    if "erase" in options.guards:
        centred, log_c = np.zeros_like(z), np.zeros(len(z))
        several = np.zeros(len(z), dtype=bool)
        for g in np.unique(data.group):
            rows = data.group == g
            centred[rows], log_c[rows] = z[rows] - z[rows].mean(0), log[rows] - log[rows].mean()
            several |= rows & (rows.sum() > 1)
        centred, log_c = centred[several], log_c[several]
        c, covariance = centred.T @ log_c / len(centred), centred.T @ centred / len(centred)
        covariance += 1e-2 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        u = np.linalg.solve(covariance, c)
        u /= c @ u
    extra, weight, target = log, row_weights(data, options), data.label
    if options.objective == "bradley_terry":
        better, worse = pair_indices(data.label, data.pair, seed=options.seed)
        z, extra = z[better] - z[worse], log[better] - log[worse]
        weight, flip = pair_weights(extra, data.source[better], options), np.where(np.arange(len(z)) % 2 == 0, 1, -1)
    z = z - np.outer(z @ u, c)
    if "nuisance" in options.guards:
        z = np.hstack([z, 10 * extra[:, None]])
    if options.objective == "bradley_terry":
        z, target = z * flip[:, None], flip
    if options.objective == "regression":
        model = Ridge(alpha=1 / options.strength)
    else:
        balanced = "balanced" if options.class_weight and options.objective == "bce" else None
        model = LogisticRegression(
            C=options.strength, class_weight=balanced, fit_intercept=options.objective == "bce", tol=1e-9, max_iter=5000
        )
    model.fit(z, target, sample_weight=weight)
    coef = np.ravel(model.coef_)[: x.shape[1]]
    coef = (coef - u * (c @ coef)) / scale
    return coef, float(np.ravel(model.intercept_)[0] if options.objective != "bradley_terry" else 0.0) - coef @ mean


@pytest.mark.parametrize("guards", [(), ("erase",), ("nuisance",), ("erase", "nuisance", "balance")], ids="-".join)
@pytest.mark.parametrize("objective", ["bce", "bradley_terry", "regression"])
def test_equals_scikit_learn_in_memory_and_on_disk(objective, guards, tmp_path, monkeypatch):
    features = write_features(tmp_path, rows_of_prompt=lambda i: 1 + i % 4)
    weighed = guards != ()
    options = FitOptions(
        objective=objective, guards=guards, strength=0.1, class_weight=weighed, balance_sources=weighed
    )
    held = Data.of(features, [1, 2])
    assert isinstance(held.x, np.ndarray)
    coef, bias = plain_fit(held, options)
    expected = held.x.astype(np.float64) @ coef + bias
    monkeypatch.setattr(probe_states, "WHOLE_BYTES", 0)
    monkeypatch.setattr(probe_states, "BLOCK_BYTES", 7 * 8 * WIDTH)
    stored = Data.of(features, [1, 2])
    assert isinstance(stored.x, StoredStates)
    for data in (held, stored):
        tensors = fit_head(data, options)
        weight, own = tensors["weight"].numpy().astype(np.float64), float(tensors["bias"])
        scores = held.x.astype(np.float64) @ weight[0] + own
        if objective == "bradley_terry":
            scores, expected = scores - scores.mean(), expected - expected.mean()
        np.testing.assert_allclose(scores, expected, atol=2e-4)


def test_several_labels_are_several_fits(tmp_path, on_disk):
    features = write_features(tmp_path, aspects=2)
    data = Data.of(features, [1])
    scores = state_scores(data.x, fit_head(data, FitOptions(strength=0.1)), "linear")
    assert scores.shape == (len(data), 2)
    for k in (0, 1):
        one = dataclasses.replace(data, label=data.label[:, k])
        np.testing.assert_allclose(
            scores[:, k], state_scores(one.x, fit_head(one, FitOptions(strength=0.1)), "linear")[:, 0], atol=1e-3
        )


def test_each_of_several_labels_needs_both_classes(tmp_path):
    data = Data.of(write_features(tmp_path, aspects=2), [1])
    data.label[:, 1] = 1.0
    with pytest.raises(ValueError, match=r"needs labels 0 and 1, both present; found \[1\.0\]"):
        fit_head(data, FitOptions())


@pytest.mark.parametrize(
    "options",
    [
        FitOptions(architecture="mlp", objective="bce", epochs=20),
        FitOptions(architecture="orthogonal", objective="bradley_terry", epochs=20, lr=1e-2),
        FitOptions(objective="kto", epochs=20, lr=1e-2),
    ],
    ids=lambda o: f"{o.architecture}-{o.objective}",
)
def test_networks_learn_the_same_from_disk(options, tmp_path, monkeypatch):
    features = write_features(tmp_path)
    held = Data.of(features, [1])
    before = state_scores(held.x, fit_head(held, options), options.architecture)[:, 0]
    monkeypatch.setattr(probe_states, "WHOLE_BYTES", 0)
    monkeypatch.setattr(probe_states, "BLOCK_BYTES", 100 * 4 * WIDTH)
    stored = Data.of(features, [1])
    after = state_scores(stored.x, fit_head(stored, options), options.architecture)[:, 0]
    again = state_scores(stored.x, fit_head(stored, options), options.architecture)[:, 0]
    np.testing.assert_array_equal(after, again)  # the seed decides the order in which runs are read
    assert spearmanr(before, after).statistic > 0.9
    assert np.mean(after[1::2] > after[::2]) > 0.75


def test_the_held_out_loss_is_the_same_in_windows(tmp_path, monkeypatch):
    features = write_features(tmp_path)
    options = FitOptions(architecture="mlp")
    head = _Head(WIDTH, 1, options, 1)
    loss = _Loss(options, np.array([0.0, 1.0]), torch.zeros(1))

    def mean_loss():
        return float(_mean_loss(loss, head, _Split(Data.of(features, [1]), np.zeros(WIDTH), np.ones(WIDTH), options)))

    with torch.no_grad():
        before = mean_loss()
        monkeypatch.setattr(probe_states, "WHOLE_BYTES", 0)
        monkeypatch.setattr(probe_states, "BLOCK_BYTES", 70 * 4 * WIDTH)
        assert mean_loss() == pytest.approx(before, rel=1e-5)


def test_layer_sweep_from_disk(tmp_path, monkeypatch):
    features = write_features(tmp_path)
    before = sweep_layers(features, [1, 2], FitOptions(), strengths=[1e-2], folds=3)
    monkeypatch.setattr(probe_states, "WHOLE_BYTES", 0)
    monkeypatch.setattr(probe_states, "BLOCK_BYTES", 100 * 4 * WIDTH)
    after = sweep_layers(features, [1, 2], FitOptions(), strengths=[1e-2], folds=3)
    assert [r["accuracy"][0] for r in before] == pytest.approx([r["accuracy"][0] for r in after], abs=0.01)


def test_stored_states_read_what_was_asked(tmp_path, on_disk):
    features = write_features(tmp_path)
    whole = features.states([1, 2])
    stored = StoredStates(features, [1, 2])
    rows = np.random.default_rng(1).permutation(len(whole))[:90]
    np.testing.assert_array_equal(stored.read(rows), whole[rows])
    np.testing.assert_array_equal(np.asarray(stored[rows][10:20]), whole[rows[10:20]])
    np.testing.assert_array_equal(np.asarray(stored[np.arange(len(whole)) % 3 == 0]), whole[::3])
    mean, scale = moments(stored)
    np.testing.assert_allclose(mean, whole.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(scale, whole.std(0, dtype=np.float64), rtol=1e-9)


def test_rows_that_are_not_finite_are_named(tmp_path, on_disk):
    data = Data.of(write_features(tmp_path), [1])
    x = np.asarray(data.x)
    x[[11, 77], 3] = np.nan, np.inf
    assert not_finite(x).tolist() == [11, 77]
    with pytest.raises(ValueError, match=r"2 of 300 rows \(first row 11\)"):
        fit_head(dataclasses.replace(data, x=x), FitOptions())


def test_a_broken_shard_stops_a_pass_over_the_disk(tmp_path, on_disk):
    features = write_features(tmp_path)
    data = Data.of(features, [1])
    shard = tmp_path / "shard-00002.safetensors"
    whole = bytearray(shard.read_bytes())
    whole[whole.index(features.shard_states(2, [1])[5].tobytes()) + 3] ^= 1
    shard.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors is corrupt"):
        fit_head(data, FitOptions(objective="bradley_terry"))


def test_peak_memory_does_not_grow_with_the_rows():
    command = [sys.executable, "-m", "benchmarks.probe_memory", "--rows", "20000", "100000", "--width", "512"]
    command += ["--most", "8", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    small, large = (line["peak_mb"] for line in found["sizes"])
    assert all(line["on_disk"] for line in found["sizes"])
    assert large - small < 31  # 156 MB of states more; to hold them in float64 twice that
