"""Every shipped configuration parses, and its first line is the command that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from latent_rewards.files.runs import as_options
from latent_rewards.rewards.build import REWARDS
from recipes.grpo import make_parser

CONFIGS = Path(__file__).parents[2] / "configs"
GRPO = sorted((CONFIGS / "grpo").rglob("*.yaml"))
ACCELERATE = sorted((CONFIGS / "accelerate").rglob("*.yaml"))
DEEPSPEED = sorted((CONFIGS / "deepspeed").rglob("*.json"))


def test_all_are_found() -> None:
    assert {p.stem for p in GRPO} >= {"quickstart", "single_gpu", "two_gpus_vllm"}
    assert {p.stem for p in ACCELERATE} >= {"single", "ddp_2", "zero2", "zero3"}
    assert {p.stem for p in DEEPSPEED} >= {"zero2", "zero3"}


@pytest.mark.parametrize("path", GRPO, ids=lambda p: p.stem)
def test_grpo_config_parses(path: Path) -> None:
    # use_cpu: the bf16 check of TrainingArguments wants an accelerator otherwise.
    options, training, model = make_parser().parse_args_and_config(["--config", str(path), "--use_cpu", "true"])
    assert model.use_peft and training.output_dir.startswith("runs/")
    assert as_options(options.judge, "model")["model"]
    assert {as_options(entry, "reward")["reward"] for entry in options.rewards} <= set(REWARDS)
    assert as_options(options.baseline, "reward")["reward"] in REWARDS
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and f"-m recipes.grpo --config configs/grpo/{path.name}" in first


def test_unknown_key_fails(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(GRPO[0].read_text(encoding="utf-8") + "\nlearning_rat: 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="learning_rat"):
        make_parser().parse_args_and_config(["--config", str(path), "--use_cpu", "true"])


def test_flags_override_and_take_yaml() -> None:
    flags = [
        "--rewards",
        "weighted",
        "{reward: verifier, output: log_odds}",
        "--judge",
        "{model: embedded, dtype: float32}",
    ]
    quickstart = str(CONFIGS / "grpo" / "quickstart.yaml")
    options, training, _ = make_parser().parse_args_and_config(["--config", quickstart, *flags, "--max_steps", "3"])
    assert training.max_steps == 3
    assert [as_options(r, "reward") for r in options.rewards] == [
        {"reward": "weighted"},
        {"reward": "verifier", "output": "log_odds"},
    ]
    assert as_options(options.judge, "model") == {"model": "embedded", "dtype": "float32"}
    with pytest.raises(ValueError, match="key 'model'"):
        as_options("{dtype: float32}", "model")


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda p: p.stem)
def test_accelerate_config_loads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert f"--config_file configs/accelerate/{path.name}" in path.read_text(encoding="utf-8").splitlines()[0]
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    assert kind == {"single": "NO", "ddp_2": "MULTI_GPU"}.get(path.stem, "DEEPSPEED")
    assert (config.num_processes > 1) == (kind != "NO")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if kind == "DEEPSPEED":
        assert (CONFIGS.parent / raw["deepspeed_config"]["deepspeed_config_file"]).is_file()


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda p: p.stem)
def test_deepspeed_config_follows_the_trainer(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    assert config["zero_optimization"]["stage"] == int(path.stem[-1])
    # "auto" is what the Trainer fills in from its own arguments; a fixed number would contradict the GRPO config.
    for key in (
        "gradient_accumulation_steps",
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    ):
        assert config[key] == "auto"
    assert config["bf16"]["enabled"] == "auto"
