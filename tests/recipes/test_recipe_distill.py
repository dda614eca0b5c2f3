"""The distillation recipe end to end on tiny random models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from latent_rewards.distillation.options import ER_KD, LossOptions
from latent_rewards.distillation.teacher_choice import choose_teachers
from recipes import distill, distill_data
from recipes.distill_models import keep_layers, load_teacher
from recipes.distill_report import seed_interval, table


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    words = ("a", "b", "c", "d", "e", "f", "g")
    path.write_text("".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in words), encoding="utf-8")
    return path


def arguments(policy: str, judge: str, data: Path, out: Path, **changes: Any) -> list[str]:
    flags: dict[str, Any] = {
        "student": f"{{model: {policy}, dtype: float32, layers: 2}}", "judge": f"{{model: {judge}, dtype: float32}}",
        "reward": "weighted", "likert": "verifier", "single": "b",
        "dataset_name": data, "held_out": 3, "max_new_tokens": 5, "max_length": 128, "use_cpu": "true", "bf16": "false",
        "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01, "logging_steps": 1, "lmbda": 0.0,
        "report_to": "none", "save_strategy": "no", "output_dir": out, "gradient_checkpointing": "false", **changes,
    }  # fmt: skip
    teachers = [f"{{name: a, model: {policy}, noise: 0.1}}", f"{{name: b, model: {policy}}}"]
    lists = ["--teachers", *teachers, "--choices", "latent", "likert", "random", "single", "--seeds", "0", "1"]
    return [*lists, *(text for key, value in flags.items() for text in (f"--{key}", str(value)))]


@pytest.fixture(scope="module")
def finished(
    policy: str, folder: str, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("runs") / "distill"
    given = arguments(policy, folder, data_file, out)
    assert distill.main(given) == 0
    return out, given


def test_run_leaves_everything(finished: tuple[Path, list[str]]) -> None:
    out, _ = finished
    assert (out / "distill.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "student" / "model.safetensors").is_file()
    results = json.loads((out / "results.json").read_text())
    names = [row["metric"] for row in results["metrics"]]
    assert names == ["KL from a", "KL from b", "KL, mean of teachers", "score weighted"]
    row = results["metrics"][1]
    assert all(len(row["after"][c]) == 2 for c in ("latent", "likert", "random", "single"))
    assert set(row["versus"]) == {"likert", "random", "single"}
    runs = json.loads((out / "runs" / "latent-0.json").read_text())
    before = json.loads((out / "runs" / "before-0.json").read_text())
    assert row["before"][0] == pytest.approx(np.nanmean(before["divergence"]["b"]))
    assert np.nanmean(runs["divergence"]["b"]) != pytest.approx(np.nanmean(before["divergence"]["b"]), rel=1e-3)
    chosen = [json.loads(line) for line in (out / "chosen-latent.jsonl").read_text().splitlines()]
    assert len(chosen) == 4 - results["choices"]["none"]["latent"] >= 2
    for line in chosen:
        best = max((s, n) for s, n in zip(line["scores"], ["a", "b"], strict=True) if s is not None)
        assert line["teacher_id"] == best[1] and line["messages"][-1]["role"] == "assistant"
    single = [json.loads(line) for line in (out / "chosen-single.jsonl").read_text().splitlines()]
    assert {line["teacher_id"] for line in single} == {"b"}
    assert "latent minus" in (out / "report.md").read_text()


@pytest.mark.parametrize(("name", "value"), [("seed", 7), ("max_new_tokens", 4), ("held_out", 2)])
def test_a_folder_is_of_one_configuration(finished: tuple[Path, list[str]], name: str, value: int) -> None:
    """Another seed splits the prompts otherwise, so kept responses would be other prompts' own."""
    _, given = finished
    with pytest.raises(ValueError, match=f"holds a run of another configuration.* Changed: .*{name}"):
        distill.main([*given, f"--{name}", str(value)])


def test_a_second_start_trains_nothing_again(finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    out, given = finished
    before = (out / "report.md").read_text()
    monkeypatch.setattr(distill, "build_trainer", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr(distill, "respond", lambda *a: pytest.fail("sampled again"))
    assert distill.main(given) == 0
    assert (out / "report.md").read_text() == before


def test_given_responses_and_sft(policy: str, folder: str, data_file: Path, tmp_path: Path) -> None:
    """One teacher is known by its responses only, and failed on some prompts."""
    prompts = [json.loads(line)["prompt"] for line in data_file.read_text().splitlines()]
    lines = [
        {"prompt": p, "responses": {"a": "Yes, 10.", "b": None if i % 2 else "the lazy dog"}, "gold": {"a": 0.25}}
        for i, p in enumerate(prompts)
    ]
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    given = arguments(policy, folder, data_file, tmp_path / "out", responses=path, trainer="sft", single="a")
    start, end = given.index("--teachers"), given.index("--choices")
    given[start:end] = ["--teachers", "{name: a}", "{name: b}"]
    choices, seeds = given.index("--choices"), given.index("--seeds")
    given[choices:seeds] = ["--choices", "random", "single"]
    assert distill.main(given) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "chosen-random.jsonl").read_text().splitlines()]
    absent = {line["prompt"] for line in lines if line["responses"]["b"] is None}
    assert len(rows) == 4
    assert all(row["teacher_id"] == "a" for row in rows if row["prompt"][0]["content"] in absent)
    assert json.loads((tmp_path / "out" / "choices.json").read_text())["unscored"]["weighted"] > 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| single | 0.250 | 100% |" in report and "  - a (weighted " in report and ": Yes, 10.\n" in report
    given[given.index("--trainer") + 1] = "gkd"
    given[given.index("--output_dir") + 1] = str(tmp_path / "other")
    with pytest.raises(ValueError, match="have responses but no model: use trainer: sft"):
        distill.main(given)


def test_an_empty_response_is_none_and_its_teacher_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"a": ["", "7"], "b": ["8", ""]}
    monkeypatch.setattr(distill_data, "sample_responses", lambda model, *_, **__: said[model])
    args = SimpleNamespace(responses_temperature=0.0)
    texts = distill_data.respond(args, {"a": "a", "b": "b"}, None, ["p", "q"], 5, 0, "train")
    assert texts == {"a": [None, "7"], "b": ["8", None]}
    present = np.array([[text is not None for text in row] for row in zip(*texts.values(), strict=True)])
    for method in ("argmax", "random"):
        choice = choose_teachers(np.array([[9.0, 1.0], [1.0, 9.0]]), method, present=present)
        assert choice.index.tolist() == [1, 0]


def test_a_rating_that_never_parses_is_an_error_before_training(
    policy: str, folder: str, data_file: Path, tmp_path: Path
) -> None:
    given = arguments(
        policy,
        folder,
        data_file,
        tmp_path,
        likert="{reward: likert10, feedback: false, max_new_tokens: 1, temperature: 0}",
    )
    with pytest.raises(ValueError, match="choice 'likert' finds no teacher for any prompt"):
        distill.main(given)


def test_zero_3_is_refused_before_any_work(
    policy: str, folder: str, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3 splits: use ZeRO-2"):
        distill.main(arguments(policy, folder, data_file, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_write_one_report(policy: str, folder: str, data_file: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    # One step: of an epoch's last batch, two processes fill up what is missing with rows from its start.
    given = arguments(policy, folder, data_file, tmp_path / "out", per_device_train_batch_size=1, max_steps=1)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "recipes.distill"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}
    for _ in range(2):  # the second goes on from what the first has kept
        done = subprocess.run([sys.executable, *launcher, *given], capture_output=True, text=True, cwd=root, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("files: ") == 1
    alone = arguments(policy, folder, data_file, tmp_path / "alone", max_steps=1)
    assert distill.main(alone) == 0
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "alone"))
    assert two["choices"] == one["choices"]
    for a, b in zip(two["metrics"], one["metrics"], strict=True):
        if a["metric"].startswith("KL"):  # scores are of sampled text, where rounding may change a token
            assert a["before"] == pytest.approx(b["before"], rel=1e-5)
            for way, values in a["after"].items():
                assert values == pytest.approx(b["after"][way], rel=1e-3), (a["metric"], way)
                assert values != pytest.approx(a["before"], rel=1e-2), (a["metric"], way)


def test_keep_layers(make_model: Any, tokenizers: Any) -> None:
    model = make_model("qwen3", tokenizers["digits"])
    blocks = list(model.model.layers)
    kept = keep_layers(model, 2)
    assert list(kept.model.layers) == [blocks[0], blocks[3]] and kept.config.num_hidden_layers == 2
    assert len(kept.config.layer_types) == 2
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = kept(ids, use_cache=False).logits[0, -1]
        first = kept(ids[:, :2], use_cache=True)
        assert torch.allclose(kept(ids[:, 2:], past_key_values=first.past_key_values).logits[0, -1], whole, atol=1e-5)
    with pytest.raises(ValueError, match="between 2 and 2"):
        keep_layers(kept, 3)


def test_noise_is_reproducible_and_leaves_embeddings(policy: str) -> None:
    plain, one, again = (load_teacher({"model": policy, "noise": n}) for n in (0.0, 0.2, 0.2))
    same = {n: torch.equal(p, dict(plain.named_parameters())[n]) for n, p in one.named_parameters()}
    assert same["model.embed_tokens.weight"] and not same["model.layers.0.self_attn.q_proj.weight"]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not any(p.requires_grad for p in one.parameters())


def test_statistics_by_hand() -> None:
    mean, low, high = seed_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0 and high - mean == pytest.approx(4.302653 / 3**0.5, rel=1e-5) and low == pytest.approx(4 - high)
    assert np.isnan(seed_interval(np.array([1.0]))[1])
    before = {0: {"divergence": {"t": [2.0, 4.0]}, "scores": {}}}
    after = {
        ("x", 0): {"divergence": {"t": [1.0, 2.0]}, "scores": {}},
        ("y", 0): {"divergence": {"t": [2.0, 3.0]}, "scores": {}},
    }
    (row,) = table(["t"], ["x", "y"], before, after)
    assert row["before"] == [3.0] and row["after"] == {"x": [1.5], "y": [2.5]}
    assert row["gain"]["x"]["prompts"][0] == -1.5 and row["versus"]["y"]["prompts"][0] == -1.0


CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "distill").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_parse(path: Path) -> None:
    # use_cpu: the bf16 check of TrainingArguments wants an accelerator otherwise.
    args, training, _ = distill.make_parser().parse_args_and_config(["--config", str(path), "--use_cpu", "true"])
    names = [distill.mapping(entry)["name"] for entry in args.teachers]
    assert len(CONFIGS) == 4 and len(set(names)) == len(names) >= 1
    assert args.single is None or args.single in names
    assert LossOptions(**{"beta": training.beta, **distill.mapping(args.loss)}).chunk > 0
    assert training.output_dir.startswith("runs/")
    assert f"recipes.distill --config configs/distill/{path.name}" in path.read_text(encoding="utf-8").splitlines()[0]
    if path.stem == "er_kd":
        assert LossOptions(**distill.mapping(args.loss)) == ER_KD
