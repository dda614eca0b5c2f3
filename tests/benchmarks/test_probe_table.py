"""The benchmark tables of probes and layer weights, from data files to result files, with a tiny judge."""

from __future__ import annotations

import gzip
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import layer_weights_table, probe_fits, probe_sample, probe_table
from benchmarks.probe_table import mean_of_files
from latent_rewards import HFJudge, ProbeReward
from latent_rewards.probes.cross_validation import out_of_fold
from latent_rewards.probes.examples import prompt_group
from latent_rewards.probes.fit import Data, FitOptions, fit_head
from latent_rewards.probes.networks import state_scores
from latent_rewards.stats.bootstrap import mean_estimate

PAIRS = ("pairwise/alpacaeval_lenmatched", "pairwise/hhh_alignment", "pairwise/llmbar")
RATED = ("single/autoj_single",)
LENGTH_RHO = -(0.75**0.5)  # of lengths 1, 3, 3 with golds 3, 1, 2; see `data`


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(r) for r in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for k, name in enumerate(PAIRS):
        rows = [
            {
                "id": f"{k}-{i}", "prompt": f"Say {k} {i}", "chosen": f"It is {i}{'!' * (i % 3)}",
                "rejected": f"no {i}{' no' * (i % 4)}", "subset": "Adversarial/x" if i % 2 else "Natural",
            }
            for i in range(40)
        ]  # fmt: skip
        write(folder / f"{name}.jsonl.gz", rows)
    rated = [{"id": i, "prompt": f"Rate {i}", "response": "yes " * (i % 5 + 1), "score": i % 5 + 1} for i in range(40)]
    write(folder / "single/autoj_single.jsonl.gz", rated)
    lists = [{"id": i, "prompt": f"List {i}", "responses": ["a", f"b {i}", "c c"], "gold": [3, 1, 2]} for i in range(9)]
    write(folder / "listwise/topical_chat.jsonl.gz", lists)
    return folder


def run(module, monkeypatch, data, *args):
    monkeypatch.setenv("LATENT_REWARDS_DATA", str(data))
    monkeypatch.setattr(sys, "argv", ["x", *map(str, args)])
    module.main()


def test_probe_table(monkeypatch, data, folder, tmp_path):
    out, shipped = tmp_path / "results", tmp_path / "shipped"
    out.mkdir()
    fit = FitOptions(objective="bradley_terry", strength=1e-4, guards=("erase", "balance"))
    monkeypatch.setattr(probe_table, "DEFAULT", probe_table.Recipe((2,), PAIRS[:2], fit, fit))
    common = ("--judge", folder, "--root", tmp_path / "features", "--layers", 1, 2, 3)
    files = (*PAIRS, "listwise/topical_chat")
    args = (*common, "--files", *files, "--out", out, "--sweep", "--ship", shipped)
    run(probe_table, monkeypatch, data, *args)
    found = json.loads((out / "probes-tiny-judge.json").read_text())
    lines = {(r["file"], r["scorer"]): r for r in found["rows"]}
    probe = lines["pairwise/alpacaeval_lenmatched", probe_table.INSIDE]
    assert probe["n"] == 40 and 0 < probe["unseen n"] < 40 and probe["accuracy"][0] > 0.8
    assert lines["pairwise/llmbar, adversarial", probe_table.LENGTH]["n"] == 20
    listed = lines["listwise/topical_chat", probe_table.PROBE]
    assert listed["lists"] == 9 and 0 < listed["unseen lists"] < 9 and -1 <= listed["rho"][1] <= listed["rho"][0] <= 1
    assert lines["listwise/topical_chat", probe_table.LENGTH]["rho"][0] == pytest.approx(LENGTH_RHO)
    assert [r["training prompts"] for r in found["curve"]] == [25, 32] and found["curve"][1]["unseen matched"][0] > 0.8
    assert [r["scorer"] for r in found["summary"]][:3] == [probe_table.LENGTH, probe_table.PROMPTED, probe_table.PROBE]
    assert "| pairwise/llmbar |" in (out / "probes-tiny-judge.md").read_text()
    assert (out / "probes-tiny-judge-layers.png").stat().st_size > 10_000
    score = ProbeReward(HFJudge(folder, device="cpu"), shipped).score(["Say 1"] * 2, ["It is 1.", "no 1 "])
    assert np.isfinite(score).all()
    training = json.loads((shipped / "probe.json").read_text())["training"]
    trained_on, metrics = training["data"], training["metrics"]
    assert [r["file"] for r in metrics if r["trained on"] == "other prompts"] == list(PAIRS[:2])
    inside = next(r for r in metrics if r["trained on"] == "other prompts")
    assert inside["n"] == 40 and inside["accuracy"][0] > 0.7  # chance is 0.5
    table = (out / "probes-tiny-judge.md").read_text()
    assert "| pairwise/hhh_alignment | accuracy |" in table and "| listwise/topical_chat | Spearman |" in table
    assert len(trained_on) == 2 and all("MIT" in line or "Apache-2.0" in line for line in trained_on)


def test_layer_weights_table(monkeypatch, data, folder, tmp_path):
    args = ("--judge", folder, "--root", tmp_path / "features", "--layers", 1, "--out", tmp_path)
    run(layer_weights_table, monkeypatch, data, *args, "--files", *PAIRS[:1], *RATED, "listwise/topical_chat")
    found = json.loads((tmp_path / "layer-weights-tiny-judge.json").read_text())
    assert [r["file"] for r in found["ratings"]] == [*RATED, "listwise/topical_chat", "mean"]
    assert {"last layer", "uniform, raw", "tuned, normed"} <= found["pairs"][0].keys()
    gap = found["differences"][0]
    assert gap["difference"] == "uniform, raw - uniform, normed" and gap["rho"][1] <= gap["rho"][0] <= gap["rho"][2]


def test_no_prompt_is_dev_and_unseen(data):
    samples = [probe_sample.load(name, data) for name in PAIRS]
    dev = {prompt_group(e.prompt) for s in samples for e, d in zip(s.examples, s.dev, strict=True) if d}
    unseen = {prompt_group(e.prompt) for s in samples for e, d in zip(s.examples, s.dev, strict=True) if not d}
    assert dev and unseen and not dev & unseen
    assert 0.2 < len(dev) / len(dev | unseen) < 0.6


def test_matched_pairs_of_a_list():
    row = {"id": 0, "prompt": "p", "responses": ["a" * 10, "b" * 100, "c" * 95, "d" * 90, "e" * 300, "f" * 97]}
    row["gold"] = [5, 1, 2, 9, 0, 1.5]
    found = probe_sample._matched_pairs(row, 1000, gap=1.0)
    assert [r["id"] for r in found] == ["0-3v1", "0-3v5", "0-3v2", "0-2v1"]  # widest first; "a" and "e" match nothing
    assert found[0]["chosen"] == "d" * 90 and found[0]["rejected"] == "b" * 100
    assert [r["id"] for r in probe_sample._matched_pairs(row, 1000, gap=1.0, uses=1)] == ["0-3v1"]
    assert [r["id"] for r in probe_sample._matched_pairs(row, 97, gap=1.0)] == ["0-3v2"]  # with the prompt
    assert len(probe_sample._matched_pairs(row, 1000, most=2, gap=1.0)) == 2


def test_mean_of_files():
    value, group = np.array([1.0, 0.0, 1.0, np.nan]), np.array([0, 0, 1, 1])
    mean, low, high = mean_of_files([(value, group), (np.zeros(3), np.arange(3)), (np.zeros(0), np.zeros(0))])
    assert mean == pytest.approx((2 / 3 + 0) / 2) and low <= mean <= high
    assert mean_of_files([(value, group)]) == mean_estimate(value, group)[:3]
    assert np.isnan(mean_of_files([])).all()


def test_out_of_fold_scores_learn_nothing_from_noise():
    rng = np.random.default_rng(0)
    n = 200
    label, group = np.tile([1.0, 0.0], n), np.repeat(np.arange(n), 2)
    x = rng.normal(size=(2 * n, 300)).astype(np.float32)
    data = Data(x, label, group, group, np.full(2 * n, 10), np.zeros(2 * n, int))
    fit = FitOptions(objective="bradley_terry", strength=1.0)
    score = out_of_fold(data, fit)
    assert 0.35 < np.mean(score[::2] > score[1::2]) < 0.65
    seen = state_scores(x, fit_head(data, fit), "linear")[:, 0]
    assert np.mean(seen[::2] > seen[1::2]) > 0.95  # what a leak would show
    assert not np.allclose(out_of_fold(data, fit, prompts=50), score)


def test_a_benchmark_is_never_trained_on_its_own_family():
    data = Data(np.zeros((4, 2), np.float32), *(np.zeros(4) for _ in range(5)))
    own = SimpleNamespace(family="a", features=None)
    fit = FitOptions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_fits.Data, "of", lambda *_: data)
        with pytest.raises(ValueError, match="at least one array"):
            probe_fits.left_out({"x": own, "y": own}, "x", probe_table.Recipe((1,), ("x", "y"), fit, fit))


def test_means_leave_out_tiny_files():
    many, few = (np.ones(10), np.arange(10)), (np.zeros(9), np.arange(9))
    assert [len(v) for v, _ in probe_fits.enough([few, many, few])] == [10]


def test_one_line_a_file_is_of_unseen_prompts():
    pairs = {"file": "pairwise/a", "unseen n": 7, "n": 20, "unseen accuracy": (0.7, 0.6, 0.8), "accuracy": (0.1, 0, 0)}
    lists = {"file": "listwise/b", "unseen lists": 3, "lists": 9, "unseen rho": (0.4, 0.3, 0.5), "rho": (0.2, 0, 0)}
    text = probe_table.by_file([r | {"scorer": probe_table.PROBE} for r in (pairs, lists)])
    assert "| pairwise/a | accuracy | 7 pairs | - | 0.700 [0.60, 0.80] |" in text
    assert "| listwise/b | Spearman | 3 lists | - | 0.400 [0.30, 0.50] |" in text
