"""An export scores as the judge does when loaded by each stack's own code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import one_spelling
from typer.testing import CliRunner

from benchmarks.stacks import note_difference
from latent_rewards import HFJudge, JudgePrompt, ProbeReward, VerifierReward
from latent_rewards.cli.main import app
from latent_rewards.export import loaders
from latent_rewards.export.check import TALKS, check, expected
from latent_rewards.export.heads import export_labels, export_probe, export_verifier
from latent_rewards.probes.probe import Probe


def differences(python: str, stack: str, tmp_path: Path) -> float:
    judge, probe = HFJudge("embedded", dtype="float32", device="cpu"), Probe.load("embedded")
    folder, output = export_probe(judge, probe, tmp_path / "out"), tmp_path / "scores.json"
    command = [python, loaders.__file__, stack, str(folder), "float32", "cpu", str(output)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, input=json.dumps(TALKS), text=True, check=True, timeout=300, env=environment)
    found = json.loads(output.read_text())
    rows = [probe.prompt.render({"prompt": t[:-1], "completion": t[-1]["content"]}) for t in TALKS]
    assert found["ids"] == [list(e.ids) for e in judge.encoder.encode(rows)]
    ours = ProbeReward(judge, probe).score([t[:-1] for t in TALKS], [t[-1]["content"] for t in TALKS])
    return float(np.abs(np.array(found["scores"])[:, 0] + probe.tensors["bias"].item() - ours).max())


@pytest.mark.parametrize("stack", ["transformers", "TRL"])
def test_here(stack: str, tmp_path: Path) -> None:
    assert differences(sys.executable, stack, tmp_path) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "variable"), [("verl", "VERL_PYTHON"), ("ms-swift", "MS_SWIFT_PYTHON")])
def test_elsewhere(stack: str, variable: str, tmp_path: Path) -> None:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no python with {stack}")
    found = differences(os.environ[variable], stack, tmp_path)
    assert found < 1e-5
    note_difference(stack.replace("-", "_"), "export, loaded as its reward model", found)


def test_check_compares_what_each_stack_that_is_there_makes_of_a_folder(make_judge: Any, tmp_path: Path) -> None:
    judge = make_judge("llama", "digits")
    for name, folder, prompt in (
        ("verifier", export_verifier(judge, tmp_path / "verifier"), "verifier"),
        ("labels", export_labels(judge, tmp_path / "labels", prompt="four_rubric"), "four_rubric"),
    ):
        found = {c.stack: c for c in check(folder, judge, JudgePrompt.load(prompt))}
        assert found["transformers"].difference is not None and found["transformers"].good
        assert found["verl"].said == "not installed" and found["verl"].good if name == "verifier" else True
        assert ("TRL" in found) == (name == "verifier"), "which reads one output"
    (file,) = (tmp_path / "verifier").glob("*.safetensors")
    tensors = load_file(file)
    torch.manual_seed(0)
    body = next(k for k in tensors if k.endswith("q_proj.weight"))
    save_file({**tensors, body: torch.randn_like(tensors[body])}, file, metadata={"format": "pt"})
    changed = {c.stack: c for c in check(tmp_path / "verifier", judge, JudgePrompt.load("verifier"))}
    assert not changed["transformers"].good and changed["TRL"].difference is not None


def test_what_the_check_expects_is_what_the_reward_gives(make_judge: Any, tmp_path: Path) -> None:
    judge = make_judge("llama", "digits")
    prompt = one_spelling(tmp_path)  # the head reads one spelling of each label
    want = expected(export_verifier(judge, tmp_path / "out", prompt=prompt), judge, JudgePrompt.load(prompt))[:, 0]
    reward = VerifierReward(judge, prompt=prompt, output="log_odds")
    got = reward.score([t[:-1] for t in TALKS], [t[-1]["content"] for t in TALKS])
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_check_on_the_command_line(folder: str, tmp_path: Path) -> None:
    command = [
        "export",
        "verifier",
        "--judge",
        folder,
        "--dtype",
        "float32",
        "--output",
        str(tmp_path / "out"),
        "--check",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "ten scores differ by at most" in done.output and "WRONG" not in done.output


@pytest.mark.parametrize("in_memory", [False, True])
def test_check_reads_in_the_precision_of_the_loaders(in_memory: bool, folder: str, tmp_path: Path) -> None:
    judge = HFJudge(folder, dtype="bfloat16", device="cpu")
    if in_memory:
        judge = HFJudge(judge.blocks.model, tokenizer=judge.encoder.tokenizer)
    out = export_verifier(judge, tmp_path / "out")
    found = {c.stack: c for c in check(out, judge, JudgePrompt.load("verifier"))}["transformers"]
    assert found.good and found.difference is not None and found.difference < 1e-5
    assert next(judge.blocks.model.parameters()).dtype == torch.bfloat16, "the judge itself is as it was"
    cut = next(iter(check(out, HFJudge(folder, dtype="float32"), JudgePrompt.load("four_rubric"))))
    assert not cut.good, "another prompt than that of the folder"


def test_check_asks_the_interpreters_that_it_is_given(folder: str, tmp_path: Path) -> None:
    command = ["export", "verifier", "--judge", folder, "--dtype", "float32", "--output", str(tmp_path / "out")]
    pythons = ["--check-python", str(tmp_path / "none"), "--check-python", sys.executable]
    done = CliRunner().invoke(app, [*command, *pythons])
    assert done.exit_code == 2 and "no python interpreter at" in done.output
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    pythons[1] = str(empty / "bin" / "python")
    done = CliRunner().invoke(app, [*command, "--overwrite", *pythons])
    assert done.exit_code == 0 and "transformers checked: ten scores" in done.output, done.output


def test_overwrite_replaces_earlier_exports_alone(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another model nor the judge; and a failed export leaves the earlier one as it was."""

    def export(kind: str, judge: str, output: Path) -> Any:
        command = ["export", kind, "--judge", judge, "--dtype", "float32", "--output", str(output), "--overwrite"]
        return CliRunner().invoke(app, command)

    def files(of: Path) -> dict[str, bytes]:
        return {str(p.relative_to(of)): p.read_bytes() for p in sorted(of.rglob("*")) if p.is_file()}

    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(folder, model)
    before = files(model)
    for judge in (folder, str(model)):
        done = export("verifier", judge, model)
        assert done.exit_code == 2 and f"{model} is not an earlier export" in done.output and files(model) == before
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "latent_rewards": {}}))
    (tmp_path / "link").symlink_to(model)
    for own in (model, tmp_path / "link"):
        done = export("verifier", str(model), own)
        assert done.exit_code == 2 and "holds the judge" in done.output and files(model).keys() == before.keys()

    assert export("verifier", folder, out).exit_code == 0
    earlier = files(out)
    with monkeypatch.context() as broken:
        broken.setattr("latent_rewards.export.heads.save_tokenizer", lambda *_: (_ for _ in ()).throw(OSError("full")))
        assert export("labels", folder, out).exit_code == 2
    assert files(out) == earlier
    done = export("labels", folder, out)
    assert done.exit_code == 0 and f"vllm serve {out} " in done.output
    assert json.loads((out / "config.json").read_text())["latent_rewards"]["kind"] == "labels"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "model", "out"]
