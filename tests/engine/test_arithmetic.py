from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from latent_rewards import HFJudge
from latent_rewards.engine import arithmetic
from latent_rewards.engine.arithmetic import Shapes, Timing, choose, layer_shapes, probe

CONFIG = transformers.LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=30
)


class Clock:
    """A probe that gives fixed seconds, and counts how often it was asked."""

    def __init__(self, float32: float, bfloat16: float) -> None:
        self.seconds: Timing = {"float32": float32, "bfloat16": bfloat16}
        self.asked: list[Shapes] = []

    def __call__(self, shapes: Shapes) -> Timing:
        self.asked.append(shapes)
        return self.seconds


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, a processor with bfloat16, and nothing known."""
    monkeypatch.setenv("LATENT_REWARDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(arithmetic, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(arithmetic, "_known", {})
    return tmp_path / "cache" / "arithmetic"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that starts."""
    monkeypatch.setattr(arithmetic, "_known", {})


@pytest.mark.parametrize(
    ("float32", "bfloat16", "name"),
    [(10.0, 2.0, "bfloat16"), (10.0, 14.0, "float32"), (10.0, 9.5, "float32"), (10.0, 9.0, "bfloat16")],
)
def test_the_faster_one_is_taken_and_near_a_tie_the_exact_one(float32: float, bfloat16: float, name: str) -> None:
    choice = choose(CONFIG, measure=Clock(float32 / 1e3, bfloat16 / 1e3))
    assert choice.name == name and choice.dtype == getattr(torch, name)
    assert f"{bfloat16:.2f}" in choice.why and f"{float32:.2f}" in choice.why and torch.__version__ in choice.why


def test_without_instructions_or_memory_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.0, 9.0)
    monkeypatch.setattr(arithmetic, "_memory", lambda: 4 * 134e6)
    assert choose(CONFIG, measure=clock).name == "bfloat16"
    monkeypatch.setattr(arithmetic, "cpu_has_bf16", lambda: False)
    assert choose(CONFIG, measure=clock).name == "float32" and not clock.asked


def test_what_was_measured_is_kept_for_other_processes(monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    first, second = Clock(2.0, 1.0), Clock(1.0, 2.0)
    assert choose(CONFIG, measure=first).name == "bfloat16" and first.asked == [layer_shapes(CONFIG)]
    forget(monkeypatch)
    assert choose(CONFIG, measure=second).name == "bfloat16" and not second.asked
    (file,) = fresh.glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["seconds"] == first.seconds and kept["of"]["torch"] == torch.__version__
    assert not [p for p in fresh.iterdir() if p.suffix not in (".json", ".lock")]


@pytest.mark.parametrize("change", ["threads", "processor", "shapes", "torch"])
def test_another_machine_or_model_is_measured_anew(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    choose(CONFIG, measure=Clock(2.0, 1.0))
    config, before = CONFIG, arithmetic.machine()
    if change == "shapes":
        config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4)
    else:
        monkeypatch.setattr(arithmetic, "machine", lambda: before | {change: "another"})
    assert choose(config, measure=Clock(1.0, 2.0)).name == "float32"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"seconds": {"float32": 1}}', '{"seconds": {"float32": 0, "bfloat16": NaN}}', "\xff"],
)
def test_a_bad_file_is_ignored_and_replaced(monkeypatch: pytest.MonkeyPatch, fresh: Path, text: str) -> None:
    choose(CONFIG, measure=Clock(2.0, 1.0))
    (file,) = fresh.glob("*.json")
    file.write_bytes(text.encode("latin1"))
    forget(monkeypatch)
    clock = Clock(1.0, 2.0)
    assert choose(CONFIG, measure=clock).name == "float32" and len(clock.asked) == 1
    assert json.loads(file.read_text())["seconds"] == clock.seconds


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LATENT_REWARDS_CACHE", str(tmp_path / "file"))
    clock = Clock(2.0, 1.0)
    assert [choose(CONFIG, measure=clock).name for _ in range(2)] == ["bfloat16"] * 2
    assert len(clock.asked) == 1, "once a process"


_ONE = """
import sys, time
from latent_rewards.engine import arithmetic
from transformers import LlamaConfig
arithmetic.cpu_has_bf16 = lambda: True
def measure(shapes):
    print("measured", flush=True)
    time.sleep(0.5)
    return {"float32": float(sys.argv[1]), "bfloat16": 1.0}
print(arithmetic.choose(LlamaConfig(hidden_size=64, num_hidden_layers=2), measure=measure).name)
"""


def test_processes_that_start_together_agree_and_one_measures() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = [
        subprocess.Popen([sys.executable, "-c", _ONE, seconds], env=env, stdout=subprocess.PIPE, text=True)
        for seconds in ("9.0", "0.1")
    ]
    said = [process.communicate(timeout=120)[0].split() for process in started]
    assert sum("measured" in words for words in said) == 1
    assert said[0][-1] == said[1][-1]


def test_the_probe_is_short_and_measures_both() -> None:
    seconds = probe(layer_shapes(CONFIG))
    assert set(seconds) == {"float32", "bfloat16"} and all(0 < s < 5 for s in seconds.values())


def test_shapes_follow_the_config_and_stay_small() -> None:
    assert layer_shapes(CONFIG) == ((576, 576), (576, 384), (576, 576), (576, 1024), (576, 1024), (1024, 576))
    moe = transformers.Qwen2MoeConfig(hidden_size=128, moe_intermediate_size=96, num_attention_heads=4)
    assert layer_shapes(moe)[-1] == (96, 128)
    assert layer_shapes(transformers.GPT2Config(n_embd=64, n_head=4))[-1] == (256, 64)
    assert max(max(s) for s in layer_shapes(transformers.LlamaConfig(hidden_size=8192))) == 1024


def test_a_judge_takes_it_says_so_and_can_be_told_otherwise(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    for name, clock in (("bfloat16", Clock(2.0, 1.0)), ("float32", Clock(1.0, 2.0))):
        forget(monkeypatch)
        monkeypatch.setenv("LATENT_REWARDS_CACHE", f"{os.environ['LATENT_REWARDS_CACHE']}-{name}")
        monkeypatch.setattr(arithmetic, "probe", clock)
        judge = HFJudge(folder, device="cpu")
        assert judge.blocks.model.dtype == getattr(torch, name) and len(clock.asked) == 1
        assert judge.arithmetic.startswith(f"{name}: a block took") and judge.arithmetic in _flat(judge.describe())
        assert judge.facts["model"]["dtype"] == [f"torch.{name}"]
        told = HFJudge(folder, device="cpu", dtype="bfloat16")
        assert told.blocks.model.dtype == torch.bfloat16 and len(clock.asked) == 1
        assert told.arithmetic == "bfloat16: as asked for"


def test_a_given_model_keeps_its_type(make_judge: Any) -> None:
    assert make_judge("llama").arithmetic == "float32: as it was given"


def _flat(text: str) -> str:
    return " ".join(text.split())
