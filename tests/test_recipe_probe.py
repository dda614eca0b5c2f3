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
from latent_rewards.cli.probe import app, export_app
from latent_rewards.probes.examples import Example, gather, read_examples
from latent_rewards.rewards.layer_weights import LayerWeights

ROOT = Path(__file__).parent.parent


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


def test_commands(folder, tmp_path):
    runner, out = CliRunner(), tmp_path / "probe"
    args = ["train", str(pairs_file(tmp_path)), "--out", str(out), "--judge", folder, "--layers", "1,2"]
    trained = runner.invoke(app, args)
    assert trained.exit_code == 0, trained.output
    assert "ProbeReward(HFJudge(" in trained.output and "| pairs | length |" in trained.output
    shown = runner.invoke(app, ["show", str(out)])
    assert "## Limits" in shown.output and "tiny-judge" in shown.output
    exported = runner.invoke(export_app, ["probe", str(out), str(tmp_path / "rm"), "--judge", folder])
    assert exported.exit_code == 0, exported.output
    assert "vllm serve" in exported.output and (tmp_path / "rm" / "config.json").is_file()


def test_reading_files(tmp_path):
    lists = tmp_path / "lists.jsonl"
    lists.write_text(json.dumps({"prompt": "p", "responses": ["a", "b"], "gold": [1, 0]}))
    both = gather([lists, lists])
    assert [e.pair for e in both] == [0, 0, 1, 1] and both[0] == Example("p", "a", 1.0, 0, "lists")
    assert len(read_examples(pairs_file(tmp_path), limit=3)) == 6
    lists.write_text(json.dumps({"text": "x"}))
    with pytest.raises(ValueError, match=r"rows need prompt with .*found \['text'\]"):
        read_examples(lists)
