"""The distillation trainers: equal to TRL's at weight 1, routed by row, clear about teachers that cannot teach."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("trl")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import trl
from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from latent_rewards.distillation import trainer as distillation_trainer
from latent_rewards.distillation.loss import distillation_loss
from latent_rewards.distillation.mixture import TeacherStates
from latent_rewards.distillation.options import LossOptions
from latent_rewards.distillation.teachers import TeacherError, check_teacher, head_of, teacher_columns
from latent_rewards.distillation.trainer import MultiTeacherDistillationTrainer, MultiTeacherGKDTrainer

SMALL: dict[str, Any] = {
    "per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True,
    "bf16": False, "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": 1e-2,
    "max_length": 128, "seed": 5,
}  # fmt: skip
TALK = [("Name a prime.", "7 7 7 7"), ("Say hello.", "Yes, hello 10"), ("Count.", "1 2 3"), ("A dog?", "the lazy dog")]
EQUAL = [(question, answer) for (question, _), answer in zip(TALK, ("7 7 7", "1 2 3", "4 5 6", "9 8 7"), strict=True)]


def rows(talk: list[tuple[str, str]] = TALK, **columns: list[Any]) -> Dataset:
    found = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        | {name: values[i] for name, values in columns.items()}
        for i, (q, a) in enumerate(talk)
    ]
    return Dataset.from_list(found)


@pytest.fixture
def models(tokenizers: Any, make_model: Any) -> tuple[Any, dict[str, Any], Any]:
    """Student, two teachers of its vocabulary but of another width, tokenizer."""
    tok = tokenizers["digits"]
    ends = {"eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    student = make_model("qwen2", tok, **ends)
    a, b = (make_model("llama", tok, hidden_size=size, **ends) for size in (48, 64))
    return student, {"a": a, "b": b}, tok


def gkd(folder: Path, **changes: Any) -> GKDConfig:
    return GKDConfig(str(folder), **{**SMALL, "lmbda": 0.0, "beta": 0.5, "max_new_tokens": 6, **changes})


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_items", [None, 11])
def test_weight_one_is_the_parents_loss_and_gradient(
    models: Any, tmp_path: Path, beta: float, num_items: int | None
) -> None:
    student, teachers, tok = models
    student, teacher = student.double(), teachers["a"].double()
    args = gkd(tmp_path, beta=beta)
    parent = GKDTrainer(copy.deepcopy(student), teacher, args, train_dataset=rows(), processing_class=tok)
    ours = MultiTeacherGKDTrainer(
        copy.deepcopy(student), {"a": teacher}, gkd(tmp_path, beta=beta), train_dataset=rows(), processing_class=tok
    )
    batch = [rows()[i] for i in (0, 2, 3)]
    found = []
    for trainer in (parent, ours):
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(batch), num_items_in_batch=num_items)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters()}))
    assert_close(found[1][0], found[0][0], rtol=1e-12, atol=0)
    for name, grad in found[0][1].items():
        assert_close(found[1][1][name], grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_training_follows_the_parents_curve(models: Any, tmp_path: Path, lmbda: float) -> None:
    student, teachers, tok = models
    # A sampling temperature far from 1 keeps TRL quiet about its other trainer.
    given = {"train_dataset": rows(), "processing_class": tok}
    theirs = losses(GKDTrainer(copy.deepcopy(student), teachers["a"], gkd(tmp_path, lmbda=lmbda), **given))
    ours = losses(
        MultiTeacherGKDTrainer(copy.deepcopy(student), {"a": teachers["a"]}, gkd(tmp_path, lmbda=lmbda), **given)
    )
    assert len(ours) == 2 and ours == pytest.approx(theirs, rel=1e-5)


def test_rows_go_to_their_teachers(models: Any, tmp_path: Path) -> None:
    student, teachers, tok = models
    student, teachers = student.double(), {k: v.double() for k, v in teachers.items()}
    data = rows(teacher_id=["a", "b", "b", "a"], loss_weight=[1.0, 2.0, 0.5, 1.0])
    options = LossOptions(beta=0.3, entropy_temperature=2.0, chunk=3)
    trainer = MultiTeacherGKDTrainer(
        student, teachers, gkd(tmp_path), loss=options, train_dataset=data, processing_class=tok
    )
    batch = trainer.data_collator([data[i] for i in range(4)])
    found = trainer.compute_loss(trainer.model, batch)
    total, count = 0.0, 0
    for i, (name, weight) in enumerate(zip(data["teacher_id"], data["loss_weight"], strict=True)):
        keep = batch["labels"][i, 1:] != -100
        given = {"input_ids": batch["input_ids"][i : i + 1], "attention_mask": batch["attention_mask"][i : i + 1]}
        z_s, z_t = (m(**given).logits[0, :-1][keep] for m in (student, teachers[name]))
        p = torch.softmax(z_t / 2, -1)
        h = -(p * p.log()).sum(-1)
        s, t = torch.softmax(z_s, -1), torch.softmax(z_t, -1)
        m = 0.7 * s + 0.3 * t
        jsd = 0.3 * (t * (t / m).log()).sum(-1) + 0.7 * (s * (s / m).log()).sum(-1)
        total, count = total + weight * (jsd * h).sum(), count + int(keep.sum())
    assert_close(found, total / count)


def test_only_the_named_teachers_run(models: Any, tmp_path: Path) -> None:
    student, teachers, tok = models
    data = rows(teacher_id=["a", "a", "b", "a"])
    trainer = MultiTeacherGKDTrainer(student, teachers, gkd(tmp_path), train_dataset=data, processing_class=tok)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for name, model in teachers.items():
        model.model.register_forward_pre_hook(
            lambda _m, _a, kw, name=name: seen[name].append(len(kw["input_ids"])), with_kwargs=True
        )
    trainer.compute_loss(trainer.model, trainer.data_collator([data[i] for i in (0, 1, 2)]))
    trainer.compute_loss(trainer.model, trainer.data_collator([data[i] for i in (0, 3)]))
    assert seen == {"a": [2, 2], "b": [1]}


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_trains_on_and_off_policy_with_peft(models: Any, tmp_path: Path, lmbda: float) -> None:
    from peft import LoraConfig

    student, teachers, tok = models
    data = rows(teacher_weights=[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.2, 0.8]])
    trainer = MultiTeacherGKDTrainer(
        student, teachers, gkd(tmp_path, lmbda=lmbda, max_steps=3), train_dataset=data, processing_class=tok,
        loss=LossOptions(beta=1.0, entropy_temperature=1.0, normalize="batch_mean"),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )  # fmt: skip
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    assert all(math.isfinite(x) for x in losses(trainer))
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora" in n for n in moved)
    logged = trainer.state.log_history[0]
    assert logged["distillation/unusable"] == 0 and logged["distillation/divergence"] > 0
    assert 0 < logged["distillation/teacher_entropy"] < math.log(len(tok))


def test_a_teacher_with_nan_logits_is_left_out_and_logged(models: Any, tmp_path: Path) -> None:
    student, teachers, tok = models
    with torch.no_grad():
        teachers["b"].lm_head.weight[3] = math.nan
    data = rows(teacher_id=["a", "b", "a", "b"])
    trainer = MultiTeacherGKDTrainer(
        student, teachers, gkd(tmp_path, per_device_train_batch_size=4, max_steps=1), train_dataset=data,
        processing_class=tok,
    )  # fmt: skip
    assert all(math.isfinite(x) for x in losses(trainer))
    assert 0 < trainer.state.log_history[0]["distillation/unusable"] < 1
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    strict = MultiTeacherGKDTrainer(
        student, teachers, gkd(tmp_path), train_dataset=data, processing_class=tok, loss=LossOptions(on_nan="raise")
    )
    with pytest.raises(ValueError, match="no usable logits"):
        strict.compute_loss(strict.model, strict.data_collator([data[1]]))


def test_empty_completion_gives_no_gradient(models: Any, tmp_path: Path) -> None:
    student, teachers, tok = models
    trainer = MultiTeacherGKDTrainer(
        student, {"a": teachers["a"]}, gkd(tmp_path), train_dataset=rows(), processing_class=tok
    )
    batch = trainer.data_collator([rows()[0]])
    batch["labels"][:] = -100
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters())


def distillation_config(folder: Path, **changes: Any) -> DistillationConfig:
    options = {k: v for k, v in SMALL.items() if k != "max_length"}
    return DistillationConfig(str(folder), **{**options, "max_completion_length": 6, "beta": 1.0, **changes})


def prompts(**columns: list[Any]) -> Dataset:
    found = [
        {"prompt": [{"role": "user", "content": q}]} | {name: values[i] for name, values in columns.items()}
        for i, (q, _) in enumerate(TALK)
    ]
    return Dataset.from_list(found)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_stable_trainer_weight_one_equals_the_parent(models: Any, tmp_path: Path, temperature: float) -> None:
    student, teachers, tok = models
    found = []
    for cls, teacher in ((DistillationTrainer, teachers["a"]), (MultiTeacherDistillationTrainer, {"a": teachers["a"]})):
        trainer = cls(
            copy.deepcopy(student), teacher, distillation_config(tmp_path, temperature=temperature, beta=0.5),
            train_dataset=prompts(), processing_class=tok,
        )  # fmt: skip
        found.append((losses(trainer), [e["entropy"] for e in trainer.state.log_history if "entropy" in e]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4) and len(found[0][0]) == 2
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def test_stable_trainer_routes_and_weighs(models: Any, tmp_path: Path) -> None:
    student, teachers, tok = models
    data = prompts(teacher_id=["a", "b", "b", "a"], loss_weight=[1.0, 0.5, 2.0, 1.0])
    trainer = MultiTeacherDistillationTrainer(
        student, teachers, distillation_config(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2),
        train_dataset=data, processing_class=tok, loss=LossOptions(beta=0.0),
    )  # fmt: skip
    seen: list[Any] = []
    inner = trainer._compute_loss

    def keep(unwrapped: Any, inputs: Any, n: Any) -> Any:
        seen.append(inputs)
        return inner(unwrapped, inputs, n)

    trainer._compute_loss = keep
    assert all(math.isfinite(x) for x in losses(trainer))
    # Generation shuffles the rows of a batch; every row keeps its teacher and its weight.
    teacher_of = {1.0: "a", 0.5: "b", 2.0: "b"}
    for inputs in seen:
        for one_hot, weight in zip(inputs["teacher_weights"].tolist(), inputs["loss_weight"].tolist(), strict=True):
            assert one_hot == ([1.0, 0.0] if teacher_of[weight] == "a" else [0.0, 1.0])
    assert sorted(w for inputs in seen[:2] for w in inputs["loss_weight"].tolist()) == [0.5, 1.0, 1.0, 2.0]
    assert "distillation/divergence" in trainer.state.log_history[0]


def test_teachers_that_cannot_teach(models: Any, tokenizers: Any, make_model: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    student, teachers, tok = models
    other = make_model("llama", tokenizers["metaspace"])
    given = {"train_dataset": rows(), "processing_class": tok}
    with pytest.raises(TeacherError, match=r"'x' has a vocabulary of .* GOLDTrainer"):
        MultiTeacherGKDTrainer(student, {"x": other}, gkd(tmp_path), **given)
    config = copy.deepcopy(teachers["a"].config)
    config.num_labels = 1
    scorer = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(TeacherError, match=r"'rm' .*no LM head.*chosen responses"):
        MultiTeacherGKDTrainer(student, {"rm": scorer}, gkd(tmp_path), **given)
    swapped = copy.deepcopy(tok)
    swapped.get_vocab = lambda: dict(zip(tok.get_vocab(), reversed(list(tok.get_vocab().values())), strict=True))
    with pytest.raises(TeacherError, match="another tokenizer"):
        check_teacher(student, teachers["a"], "a", tokenizers=(tok, swapped))
    check_teacher(student, teachers["a"], "a", tokenizers=(tok, tok))
    with pytest.raises(ValueError, match="at least one teacher"):
        MultiTeacherGKDTrainer(student, {}, gkd(tmp_path), **given)
    with pytest.raises(ValueError, match="seq_kd"):
        MultiTeacherGKDTrainer(student, teachers, gkd(tmp_path, seq_kd=True), **given)
    with pytest.raises(ValueError, match="processing_class"):
        MultiTeacherGKDTrainer(student, teachers, gkd(tmp_path), train_dataset=rows())


def test_columns_name_the_row_at_fault() -> None:
    weights, scale = teacher_columns(
        [
            {"teacher_id": "b"},
            {"teacher_weights": [3, 1], "loss_weight": 0.5},
            {"teacher_weights": {"a": 2, "b": None}},
        ],
        ["a", "b"],
    )
    assert weights.tolist() == [[0, 1], [3, 1], [2, 0]] and scale.tolist() == [1, 0.5, 1]
    assert teacher_columns([{}], ["only"])[0].tolist() == [[1.0]]
    for row, message in (
        ({}, "row 1: with several teachers"),
        ({"teacher_id": "c"}, "row 1: unknown teacher 'c'"),
        ({"teacher_weights": [1.0]}, "row 1: 1 teacher weights for the 2"),
        ({"teacher_weights": [0.0, 0.0]}, "row 1: teacher weights must be"),
        ({"teacher_weights": {"z": 1.0}}, r"row 1: unknown teachers \['z'\]"),
        ({"teacher_id": "a", "loss_weight": -1.0}, "row 1: loss_weight"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher_columns([{"teacher_id": "a"}, row], ["a", "b"])


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2", "qwen3"])
def test_heads_of_families_that_shape_their_logits(family: str, tokenizers: Any, make_model: Any) -> None:
    from latent_rewards.distillation.teachers import backbone_states, check_head

    model = make_model(family, tokenizers["digits"]).eval()
    ids = torch.arange(5, 15).reshape(2, 5)
    with torch.no_grad():
        assert_close(head_of(model)(backbone_states(model, ids, torch.ones_like(ids))), model(input_ids=ids).logits)
    check_head(model, family)
    model.config.logit_scale = 3.0 if family != "cohere" else 1.0  # something we do not know of
    if family == "qwen3":
        with pytest.raises(TeacherError, match="changes its logits"):
            check_head(model, family)


def test_another_trl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    distillation_trainer.check_trl()
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    with pytest.raises(ImportError, match=r"checked against TRL 1.16, found 1.17.0"):
        distillation_trainer.check_trl()


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_count_over_all_processes_is_averaged_once(
    models: Any, tmp_path: Path, everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teachers, tok = models
    args = gkd(tmp_path, average_tokens_across_devices=everywhere)
    trainer = MultiTeacherGKDTrainer(student, {"a": teachers["a"]}, args, train_dataset=rows(), processing_class=tok)
    batch = trainer.data_collator([rows()[i] for i in range(4)])
    count = (batch["labels"] != -100).sum()
    mean, counted = trainer.compute_loss(trainer.model, batch), 4 * count
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda _: 4))
    # DDP takes the mean over four processes like this one: that of the losses must be the mean over all their tokens.
    divisor = counted if everywhere else count  # what Trainer counts
    assert_close(trainer.compute_loss(trainer.model, batch, num_items_in_batch=divisor), mean)
    assert_close(trainer.compute_loss(trainer.model, batch), mean)


DDP = """
import os, sys, torch
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from transformers import AutoModelForCausalLM, AutoTokenizer
from test_distillation_trainer import *

folder, zero = Path(sys.argv[1]), (sys.argv[2:] or [None])[0]
if zero:
    from deepspeed import comm, ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # plain gloo: nothing to compile before the first step
    comm.init_distributed(dist_backend="gloo")
size, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
tok = AutoTokenizer.from_pretrained(folder / "a")
found = {}

def load(name):
    return AutoModelForCausalLM.from_pretrained(folder / name)

def run(name, cls, teachers, data, args):
    ours = issubclass(cls, MultiTeacherGKDTrainer | MultiTeacherDistillationTrainer)
    given = {k: load(k) for k in teachers} if ours else load(teachers[0])
    trainer = cls(load("student"), given, args, train_dataset=data, processing_class=tok)
    curve, trained = losses(trainer), trainer.accelerator.unwrap_model(trainer.model)
    found[name] = curve, {k: v for k, v in trained.state_dict().items() if not hasattr(v, "ds_id")}
    found[name + " is sharded"] = any(hasattr(p, "ds_id") for p in trained.parameters())

def sgd(make=gkd, batch=4 // size, **changes):
    return make(folder, **{"per_device_train_batch_size": batch, "optim": "sgd", "learning_rate": 0.5, **changes})

routed = rows(teacher_id=["a", "a", "b", "b"], loss_weight=[1.0, 0.5, 2.0, 1.0])
if zero or size == 1:
    adam = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 4, "deepspeed": zero}
    run("adam", MultiTeacherGKDTrainer, "ab", routed, sgd(**adam))
if zero:
    run("stable", MultiTeacherDistillationTrainer, "a", prompts(), sgd(distillation_config, **adam))
    run("stable parent", DistillationTrainer, "a", prompts(), sgd(distillation_config, **adam))
    torch.save(found, folder / f"zero-{rank}.pt")
    sys.exit()
run("ragged", MultiTeacherGKDTrainer, "ab", routed, sgd())
run("accumulated", MultiTeacherGKDTrainer, "ab", routed, sgd(batch=1, gradient_accumulation_steps=4 // size))
run("equal", MultiTeacherGKDTrainer, "a", rows(EQUAL), sgd(average_tokens_across_devices=False))
run("ours", MultiTeacherGKDTrainer, "a", rows(), sgd(max_grad_norm=0.0))
run("parent", GKDTrainer, "a", rows(), sgd(max_grad_norm=0.0, learning_rate=0.5 * size))
run("stable", MultiTeacherDistillationTrainer, "a", prompts(), sgd(distillation_config))
run("stable parent", DistillationTrainer, "a", prompts(), sgd(distillation_config))
if rank == 0:
    torch.save(found, folder / f"{size}.pt")
"""


def run_ranks(models: Any, folder: Path, *arguments: str, ranks: int, **env: str) -> None:
    """DDP in so many processes."""
    student, teachers, tok = models
    for name, model in {"student": student, **teachers}.items():
        model.save_pretrained(folder / name)
        tok.save_pretrained(folder / name)
    script, root = folder / "run.py", str(Path(__file__).parents[2])
    script.write_text(DDP)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), *arguments], capture_output=True, text=True, cwd=root,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([root, *sys.path]), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(models: Any, tmp_path: Path) -> None:
    # SGD: Adam divides by the gradient's size, and so turns the rounding of a vanishing gradient into a full step.
    for ranks in (1, 2):
        run_ranks(models, tmp_path, ranks=ranks)
    one, two = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    before = models[0].state_dict()

    def same(found: Any, expected: Any) -> None:
        assert len(found[0]) == 2 and found[0] == pytest.approx(expected[0], rel=1e-5)
        assert max((value - before[name]).abs().max() for name, value in found[1].items()) > 5e-3
        for name, value in expected[1].items():
            assert_close(found[1][name], value, rtol=1e-5, atol=1e-6, msg=name)

    for name in ("ragged", "accumulated", "equal", "ours"):
        same(two[name], one[name])
    same(two["accumulated"], one["ragged"])
    same(two["stable"], two["stable parent"])
    same(one["ours"], one["parent"])
    # GKDTrainer divides by the tokens of both processes, and DDP averages: half the loss, and the steps of half the
    # learning rate, which is doubled here. `MultiTeacherGKDTrainer` says so.
    same(two["ours"], ([2 * loss for loss in two["parent"][0]], two["parent"][1]))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_takes_the_steps_of_one_process(models: Any, tmp_path: Path, config: str) -> None:
    path = Path(__file__).parents[2] / "configs" / "deepspeed" / f"{config}.json"
    run_ranks(models, tmp_path, ranks=1)
    run_ranks(models, tmp_path, str(path), ranks=2, DS_ACCELERATOR="cpu")
    expected = torch.load(tmp_path / "1.pt")["adam"][0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"zero-{rank}.pt")
        assert found["adam is sharded"] == found["stable is sharded"] == (config == "zero3")
        assert len(expected) == 4 and found["adam"][0] == pytest.approx(expected, rel=1e-3)
        assert len(found["stable"][0]) == 4 and found["stable"][0] == pytest.approx(found["stable parent"][0], rel=1e-3)


def test_stable_trainer_loss_by_hand(models: Any, tmp_path: Path) -> None:
    student, teachers, tok = models
    trainer = MultiTeacherDistillationTrainer(
        student, teachers, distillation_config(tmp_path), train_dataset=prompts(teacher_id=["a", "b", "a", "b"]),
        processing_class=tok, loss=LossOptions(beta=0.0),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.tensor([[5, 6, 7], [0, 8, 9]]), "prompt_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
        "completion_ids": torch.tensor([[10, 11], [12, 0]]), "completion_mask": torch.tensor([[1, 1], [1, 0]]),
        "teacher_weights": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "loss_weight": torch.tensor([1.0, 3.0]),
    }  # fmt: skip
    loss, _, n = trainer._compute_loss(trainer.model, inputs, None)
    first = {"input_ids": torch.tensor([[5, 6, 7, 10, 11]])}
    second = {"input_ids": torch.tensor([[0, 8, 9, 12]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    sums = []
    for given, name, where in ((first, "a", [2, 3]), (second, "b", [2])):
        z_s, z_t = (m(**given).logits[0, where] for m in (student, teachers[name]))
        sums.append(
            distillation_loss(z_s, lambda z: z, [TeacherStates(z_t, lambda z: z)], options=LossOptions(beta=0.0))
        )
    expected = (sums[0].loss * 2 + 3 * sums[1].loss) / 3
    assert n == 3
    assert_close(loss, expected, rtol=1e-5, atol=1e-6)
