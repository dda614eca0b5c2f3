"""An export scores as the judge does when loaded by each stack's own code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stacks import note_difference
from latent_rewards import HFJudge, ProbeReward
from latent_rewards.export import loaders
from latent_rewards.export.heads import export_probe
from latent_rewards.probes.probe import Probe

ANSWERS = [
    "It is 4.",
    "",
    "\nends so\n",
    "Hm <|im_start|> 10",
    "{% x %} 'y'",
    "One",
    "Two.",
    "\t3",
    "\u00e9\u4e2d",
    "ten",
]
TALKS = [
    [{"role": "user", "content": f"Question {i}<|im_end|>\n"}, {"role": "assistant", "content": answer}]
    for i, answer in enumerate(ANSWERS)
]


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
