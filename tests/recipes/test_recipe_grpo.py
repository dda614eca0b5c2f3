"""The GRPO recipe end to end on a tiny random model, and its statistics by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latent_rewards.data.prompts import load_prompts
from latent_rewards.engine.arithmetic import Choice
from recipes import grpo
from recipes import grpo_report as report

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama with a byte-level tokenizer, saved as a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*specials, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def arguments(model: Path, output: Path, data: Path) -> list[str]:
    flags = {
        "model_name_or_path": model, "judge": f"{{model: {model}, dtype: float32}}", "output_dir": output,
        "dataset_name": data, "held_out": 2, "held_out_completions": 3, "max_steps": 2, "use_cpu": "true",
        "bf16": "false", "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6,
        "use_peft": "true", "lora_r": 4, "lora_target_modules": "all-linear", "learning_rate": 0.01, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "seed": 3,
    }  # fmt: skip
    rewards = ["--rewards", "weighted", "{reward: verifier, output: log_odds}"]
    return [*rewards, *(text for key, value in flags.items() for text in (f"--{key}", str(value)))]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"Say {word}."}]} for word in ("a", "b", "c", "d", "e", "f")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with one seed."""
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("first", "second")]
    for folder in folders:
        assert grpo.main(arguments(tiny_folder, folder, data_file)) == 0
    return folders


def test_run_leaves_everything(finished: list[Path], tiny_folder: Path) -> None:
    folder = finished[0]
    for name in ("adapter_model.safetensors", "trainer_state.json", "table.txt"):
        assert (folder / name).stat().st_size > 0
    for name in ("reward_curves.png", "score_histograms.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((folder / "results.json").read_text())
    assert [row["score"] for row in results["scores"]] == ["weighted", "verifier", "likert10_bare"]
    assert results["steps"] == results["max_steps"] == 2 and not results["interrupted"]
    for row in results["scores"][:2]:
        low, high = row["interval"]
        assert row["difference"] == pytest.approx(row["after"] - row["before"]) and low <= row["difference"] <= high
        assert row["groups"] == 4 and row["scored"] == 1.0
    assert results["timing"]["judge_pairs_per_s"] > 0
    answers = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * 2 * 3
    before = [a["scores"]["weighted"] for a in answers if a["stage"] == "before"]
    assert np.mean(before) == pytest.approx(results["scores"][0]["before"])


def test_record_says_how_to_run_it_again(finished: list[Path], tiny_folder: Path) -> None:
    record = json.loads((finished[0] / "run.json").read_text())
    assert record["config"]["training"]["max_steps"] == 2 and record["config"]["model"]["lora_r"] == 4
    assert record["judge"]["model"] == str(tiny_folder) and len(record["judge"]["revision"]) == 16
    assert set(record["prompts"]) == {"weighted", "verifier", "likert10_bare"}
    assert record["seeds"]["train"] == 3 and record["versions"]["trl"].startswith("1.16")


def test_same_seed_same_table(finished: list[Path]) -> None:
    first, second = ((folder / "table.txt").read_text() for folder in finished)
    assert first == second
    answers, again = ((folder / "held_out.jsonl").read_text() for folder in finished)
    assert answers == again


def test_the_policys_head_gets_whole_states(
    tiny_folder: Path, data_file: Path, tmp_path: Path, head_states: list[tuple[tuple[int, ...], bool]]
) -> None:
    """Of a slice of the states PyTorch copies the head's weight for each text, on CPU in bfloat16."""
    assert grpo.main([*arguments(tiny_folder, tmp_path / "run", data_file), "--max_steps", "1"]) == 0
    assert any(shape[0] > 1 for shape, _ in head_states), "texts of a batch"
    assert all(whole for _, whole in head_states)


def test_interrupt_keeps_what_there_is(
    tiny_folder: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: grpo.PrintSteps, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grpo.PrintSteps, "on_log", stop)
    assert grpo.main(arguments(tiny_folder, tmp_path, data_file)) == 130
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["interrupted"] and results["steps"] == 1
    assert results["scores"][0]["before"] is not None and results["scores"][0]["after"] is None
    assert "interrupted" in (tmp_path / "table.txt").read_text()
    for name in ("adapter_model.safetensors", "run.json", "reward_curves.png", "score_histograms.png"):
        assert (tmp_path / name).is_file()


def test_interrupt_before_anything_was_measured(
    tiny_folder: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grpo, "sample_answers", stop)
    assert grpo.main(arguments(tiny_folder, tmp_path, data_file)) == 130
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 0 and all(row["before"] is None for row in results["scores"])
    assert (tmp_path / "held_out.jsonl").read_text() == ""
    assert (tmp_path / "score_histograms.png").is_file() and (tmp_path / "adapter_model.safetensors").is_file()


def test_has_no_gradient_by_hand() -> None:
    nan = np.nan
    groups = np.array([[1, 2, 3], [2, 2, 2], [2, nan, 2], [nan, 5, nan], [nan, nan, nan], [1, nan, 2]])
    assert report.has_no_gradient(groups).tolist() == [False, True, True, True, True, False]


def test_summary_by_hand() -> None:
    before = report.HeldOut([], {"x": np.array([[1.0, 3.0], [4.0, np.nan]])})
    after = report.HeldOut([], {"x": np.array([[4.0, 4.0], [6.0, 8.0]])})
    row = report.summarise("x", before, after)
    assert (row["before"], row["after"], row["difference"]) == (3.0, 5.5, 2.5)
    assert row["interval"] == (2.0, 3.0)  # two prompts, differences 2 and 3: the extremes are resampled 1 in 4
    assert row["groups"] == 4 and row["no_gradient"] == 0.5 and row["under_two_scores"] == 0.25
    assert row["scored"] == 7 / 8
    assert report.summarise("x", None, None)["before"] is None


def test_bad_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "?"}\n' * 4, encoding="utf-8")
    with pytest.raises(ValueError, match="expected a column 'prompt'"):
        load_prompts(str(path), held_out=16, seed=0)
    with pytest.raises(ValueError, match="held_out"):
        load_prompts("open_ended", held_out=96, seed=0)
    train, held = load_prompts("open_ended", held_out=16, seed=0)
    assert len(train) == 80 and not {str(p) for p in train["prompt"]} & {str(p) for p in held["prompt"]}


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_auto_is_what_the_cpu_is_faster_at(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grpo.arithmetic, "choose", lambda config, **_: Choice(name, f"{config.model_type} timed"))
    flags = ["--model_name_or_path", str(tiny_folder), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    _, training, model = grpo.make_parser().parse_args_and_config([*flags, "--dtype", "auto"])
    grpo.settle_arithmetic(training, model)
    half = name == "bfloat16"
    assert (model.dtype, training.bf16, training.mixed_precision) == (name, half, "bf16" if half else "no")
    assert capsys.readouterr().out == f"policy in {name}: llama timed\n"
    _, training, model = grpo.make_parser().parse_args_and_config([*flags, "--dtype", "float32", "--bf16", "true"])
    grpo.settle_arithmetic(training, model)
    assert (model.dtype, training.bf16) == ("float32", True), "what is asked for is done"
