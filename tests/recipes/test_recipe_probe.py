"""The probe recipes and commands on their smallest configs, with a tiny judge."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from latent_rewards import HFJudge, ProbeReward
from latent_rewards.cli.main import app
from latent_rewards.probes.examples import Example, gather, read_examples
from latent_rewards.rewards.layer_weights import LayerWeights

ROOT = Path(__file__).parents[2]


def pairs_file(tmp_path):
    rows = [{"prompt": f"Say {i}", "chosen": f"It is {i}.", "rejected": f"no {i} " * (i % 3 + 1)} for i in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    def go(recipe, *args):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"recipes/{recipe}.py", *map(str, args)])
        runpy.run_path(f"recipes/{recipe}.py", run_name="__main__")
        return capsys.readouterr().out

    return go


def test_train_probe(run, folder, tmp_path):
    out, data = tmp_path / "probe", pairs_file(tmp_path)
    args = ("--config", "configs/train_probe/tiny_cpu.yaml", "--judge", folder, "--dtype", "float32")
    printed = run("train_probe", *args, "--data", data, "--output_dir", out, "--layers", 1, 2, 3)
    assert "length_correlation" in printed and "prompted" in printed
    assert (out / "layers.png").stat().st_size > 10_000
    sweep = json.loads((out / "sweep.json").read_text())
    assert sorted({r["layer"] for r in sweep}) == [1, 2, 3]
    assert json.loads((out / "run.json").read_text())["arguments"]["limit"] == 40
    assert "| pairs | probe | 8 |" in (out / "README.md").read_text()
    score = ProbeReward(HFJudge(folder, dtype="float32", device="cpu"), out).score(["Say 1"] * 2, ["It is 1.", "no 1 "])
    assert np.isfinite(score).all()


def test_tune_layers(run, folder, tmp_path):
    data, out = tmp_path / "ratings.jsonl", tmp_path / "weights"
    rows = [{"prompt": f"Say {i}", "response": "yes " * (i % 5 + 1), "score": i % 5 + 1} for i in range(40)]
    data.write_text("\n".join(json.dumps(r) for r in rows))
    args = ("--config", "configs/tune_layers/tiny_cpu.yaml", "--judge", folder, "--dtype", "float32")
    printed = run("tune_layers", *args, "--data", data, "--output_dir", out)
    assert printed.count("uniform, ") == 2 and "last layer" in printed
    assert (out / "weights.png").stat().st_size > 5_000
    judge = HFJudge(folder, dtype="float32", device="cpu")
    assert np.isfinite(LayerWeights.load(out).reward(judge).score(["Say 1"], ["yes"])).all()


def command(*args):
    return CliRunner().invoke(app, list(map(str, args)))


def test_commands(folder, tmp_path):
    out = tmp_path / "probe"
    trained = command("probe", "train", pairs_file(tmp_path), "--output", out, "--judge", folder, "--layers", "1,2")
    assert trained.exit_code == 0, trained.output
    assert "ProbeReward(HFJudge(" in trained.output and "| pairs | length |" in trained.output
    shown = command("probe", "show", out)
    assert "## Limits" in shown.output and "tiny-judge" in shown.output
    exported = command("export", "probe", out, "--output", tmp_path / "rm", "--judge", folder)
    assert exported.exit_code == 0, exported.output
    assert "vllm serve" in exported.output and (tmp_path / "rm" / "config.json").is_file()
    again = command("export", "probe", out, tmp_path / "rm", "--judge", folder)
    assert again.exit_code == 2 and "is not empty" in again.output and "--output FOLDER" in again.output
    assert command("export", "probe", out, "--output", tmp_path / "rm", "--judge", folder, "--overwrite").exit_code == 0


def ratings_file(tmp_path):
    rows = [
        {"prompt": f"Say {i // 2}", "response": f"It is {i}" + " so" * (i % 4), "accuracy": i % 5, "clarity": i % 4}
        for i in range(40)
    ]
    path = tmp_path / "ratings.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def test_a_probe_of_several_aspects(folder, tmp_path):
    out = tmp_path / "probe"
    options = ("--aspects", "accuracy,clarity", "--layers", "1,2", "--judge-option", "dtype=float32", "--device", "cpu")
    trained = command("probe", "train", ratings_file(tmp_path), "--output", out, "--judge", folder, *options)
    assert trained.exit_code == 0, trained.output
    assert "| accuracy | ratings | probe | 8 |" in trained.output and "| clarity | ratings | probe" in trained.output
    judge = HFJudge(folder, dtype="float32", device="cpu")
    mean, *each = (
        ProbeReward(judge, out, aspect=a).score(["Say 1"] * 2, ["It is 1", "no"]) for a in (None, "accuracy", "clarity")
    )
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-5)
    assert not np.allclose(*each)
    other = command(
        "probe", "train", ratings_file(tmp_path), "--output", out, "--judge", folder, *options, "--limit", 19
    )
    assert other.exit_code == 2 and "fingerprint" in other.output and "rows 40, but 19" in other.output, other.output


def test_ratings_are_no_pairs(folder, tmp_path):
    data = tmp_path / "rated.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"{i}", "response": "x", "score": i % 3}) for i in range(9)))
    for given, message in (
        ((data,), "needs pairs"), ((data, "--objective", "best"), "'bradley_terry'"),
        ((data, "--select", "wurst"), "'balanced'"), ((data, "--guards", "wall"), "unknown guards ['wall']"),
        ((data, "--aspects", "wit"), "missing field wit"), ((tmp_path / "none.jsonl",), "none.jsonl"),
        ((data, "--objective", "regression", "--judge-option", "colour=red"), "quantization"),
    ):  # fmt: skip
        done = command("probe", "train", *given, "--output", tmp_path / "p", "--judge", folder)
        assert done.exit_code == 2 and message in done.output, (given, done.output)
        assert "error: " in done.output and "Traceback" not in done.output
    assert not (tmp_path / "p").exists(), "told before anything is read"


def test_reading_files(tmp_path):
    lists = tmp_path / "lists.jsonl"
    lists.write_text(json.dumps({"prompt": "p", "responses": ["a", "b"], "gold": [1, 0]}))
    both = gather([lists, lists])
    assert [e.pair for e in both] == [0, 0, 1, 1] and both[0] == Example("p", "a", 1.0, 0, "lists")
    assert len(read_examples(pairs_file(tmp_path), limit=3)) == 6
    lists.write_text(json.dumps({"text": "x"}))
    with pytest.raises(ValueError, match=r"columns \['text'\] are no layout"):
        read_examples(lists)
