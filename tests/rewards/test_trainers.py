"""Real TRL trainers on tiny models."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from latent_rewards import (
    CrossLayerReward,
    HFJudge,
    MissingScoreError,
    ProbabilityWeightedReward,
    VerifierReward,
    compat,
)
from latent_rewards.compat import release

PROMPTS = ["Name a prime.", "Say hello.", "Count to three.", "What is a dog?"]
CHATS = [[{"role": "user", "content": p}] for p in PROMPTS]
METRICS = ("label_mass", "spread", "tie_share", "flat_groups", "missing", "seconds")
SMALL: dict[str, Any] = {
    "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "max_steps": 2,
    "logging_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no",
    "disable_tqdm": True, "gradient_checkpointing": False,
}  # fmt: skip


class Calls:
    """Wraps a reward and keeps what it was called with."""

    def __init__(self, reward: Any) -> None:
        self.reward, self.__name__, self.seen = reward, reward.__name__, []

    def __call__(self, **kwargs: Any) -> Any:
        out = self.reward(**kwargs)
        self.seen.append((kwargs, out))
        return out


def history(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS], ids=["strings", "messages"])
def test_grpo_with_two_rewards_makes_one_forward_per_batch(
    policy: str, folder: str, tmp_path: Path, prompts: list[Any]
) -> None:
    judge = HFJudge(folder)
    rewards = [ProbabilityWeightedReward(judge, name="mean"), CrossLayerReward(judge, name="layers")]
    spy = Calls(rewards[0])
    args = GRPOConfig(output_dir=str(tmp_path), reward_weights=[1.0, 0.5], **SMALL)
    data = Dataset.from_dict({"prompt": prompts, "topic": ["a", "b", "c", "d"]})
    trainer = GRPOTrainer(policy, reward_funcs=[spy, rewards[1]], args=args, train_dataset=data)
    trainer.train()
    rows = history(trainer)
    assert len(rows) == 2 and len(spy.seen) == 2
    assert judge.forwards == 1 + len(spy.seen), "two rewards, one forward per generation batch after the first"
    for row in rows:
        for name in (r.__name__ for r in rewards):
            assert np.isfinite(row[f"rewards/{name}/mean"]) and all(f"{name}/{key}" in row for key in METRICS)
            assert 0 < row[f"{name}/label_mass"] <= 1 and row[f"{name}/missing"] == 0 and row[f"{name}/spread"] > 0
    kwargs, out = spy.seen[0]
    assert {"trainer_state", "log_metric", "log_extra", "completion_ids", "topic"} <= set(kwargs)
    assert len(out) == 4 and all(isinstance(x, float) for x in out)
    np.testing.assert_allclose(rewards[0].score(kwargs["prompts"], kwargs["completions"]), out, rtol=1e-6)


@pytest.mark.skipif(compat.counts_missing(), reason="this TRL counts a missing score as 0, so it is an error")
def test_grpo_with_async_twins_and_missing_scores(policy: str, folder: str, tmp_path: Path) -> None:
    judge = HFJudge(folder)
    tight = VerifierReward(HFJudge(folder, max_length=10), name="never")
    rewards = [ProbabilityWeightedReward(judge, name="twin").to_async(), CrossLayerReward(judge, name="sync"), tight]
    data = Dataset.from_dict({"prompt": PROMPTS})
    args = GRPOConfig(output_dir=str(tmp_path), **SMALL | {"max_steps": 1})
    trainer = GRPOTrainer(policy, reward_funcs=rewards, args=args, train_dataset=data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean of nothing
        trainer.train()
    (row,) = history(trainer)
    assert judge.forwards == 1 and np.isfinite(row["rewards/twin/mean"]) and np.isfinite(row["reward"])
    assert all(f"twin/{key}" in row for key in METRICS) and row["never/missing"] == 1
    assert row["rewards/never/mean"] is None or np.isnan(row["rewards/never/mean"]), "a missing score is no zero"


def test_rloo(policy: str, folder: str, tmp_path: Path) -> None:
    judge = HFJudge(folder)
    rewards = [ProbabilityWeightedReward(judge, name="rw"), CrossLayerReward(judge, name="rl")]
    data = Dataset.from_dict({"prompt": CHATS})
    args = RLOOConfig(output_dir=str(tmp_path), **SMALL)
    trainer = RLOOTrainer(policy, reward_funcs=rewards, args=args, train_dataset=data)
    trainer.train()
    rows = history(trainer)
    assert len(rows) == 2 and judge.forwards == 3, "one forward for both rewards, after the first step"
    assert all(np.isfinite(row["rewards/rw/mean"]) and "rw/label_mass" in row for row in rows)


def online_dpo(policy: str, reward: Any, out: Path, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.padding_side = "left"
    options = {"max_new_tokens": 6, "max_length": 64}
    drop = {k: v for k, v in SMALL.items() if k not in ("num_generations", "max_completion_length")}
    args = OnlineDPOConfig(output_dir=str(out), **drop | options | {"max_steps": 1, "per_device_train_batch_size": 2})
    return OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        reward_processing_classes=None,
        **more,
    )


def test_online_dpo(policy: str, folder: str, tmp_path: Path) -> None:
    spy = Calls(ProbabilityWeightedReward(folder))
    online_dpo(policy, spy, tmp_path).train()
    (kwargs, out), *_ = spy.seen
    assert len(out) == 4 and all(isinstance(x, float) for x in out)
    assert kwargs["prompts"][:2] == kwargs["prompts"][2:], "the two completions of a prompt do not stand side by side"
    assert "trainer_state" in kwargs and "log_metric" not in kwargs


def test_online_dpo_does_not_take_a_missing_score_for_zero(policy: str, folder: str, tmp_path: Path) -> None:
    reward = ProbabilityWeightedReward(HFJudge(folder, max_length=10))
    with pytest.raises(MissingScoreError, match="no score for 4 of 4 rows"):
        online_dpo(policy, reward, tmp_path).train()


def _score_in_child(payload: bytes, queue: Any) -> None:
    """What the spawned rollout worker does with its pickled rewards: no hooks, no CUDA, one group at a time."""
    import asyncio

    import torch

    assert not torch.cuda.is_available()
    rewards = pickle.loads(payload)["reward_funcs"]
    group = {
        "prompts": [CHATS[0]] * 2,
        "completions": [[{"role": "assistant", "content": c}] for c in ("7", "x " * 999)],
    }
    out = []
    for prompt in ("an earlier step", None):
        judge, out = rewards[0].judge, []
        judge.forwards = 0
        for reward in rewards:
            columns = group if prompt is None else group | {"prompts": [prompt] * 2}
            call = reward(**columns, completion_ids=[[1], [2]], topic=["a", "a"])
            out.append(asyncio.run(call) if asyncio.iscoroutine(call) else call)
    queue.put((out, judge.forwards))


def start_worker(rewards: list[Any]) -> dict[str, Any]:
    """Run TRL's own `AsyncRolloutWorker.start` up to the child process; returns what it hands to that process."""
    from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker

    class Started(Exception):
        pass

    def process(*, args: tuple[Any, ...], **_: Any) -> None:
        raise Started(args[1])

    worker: Any = AsyncRolloutWorker.__new__(AsyncRolloutWorker)
    for name in (
        "_loop_cls", "rollout_buffer", "_model_version_value", "_stop_event_mp", "_child_ready_event", "_failed_event",
        "_exception_info_queue", "metrics_queue", "_process",
    ):  # fmt: skip
        worker.__dict__[name] = None
    worker._heartbeat_value, worker._mp_ctx = SimpleNamespace(value=0.0), SimpleNamespace(Process=process)
    worker._loop_kwargs = {"reward_funcs": rewards}
    try:
        worker.start()
    except Started as started:
        return started.args[0]
    raise AssertionError("the worker did not come to its child process")


@pytest.mark.skipif((release("trl") or (0, 0)) < (1, 16), reason="looks into the worker of TRL 1.16")
def test_async_grpo_pickles_the_rewards_for_its_worker(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = HFJudge(folder, max_length=900)
    loaded = HFJudge(judge.blocks.model, tokenizer=judge.encoder.tokenizer)
    with pytest.raises(TypeError, match="must be picklable"):
        start_worker([ProbabilityWeightedReward(loaded)])
    rewards = [ProbabilityWeightedReward(judge), CrossLayerReward(judge), VerifierReward(judge).to_async()]
    payload = pickle.dumps(start_worker(rewards))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_score_in_child, args=(payload, queue))
    child.start()
    out, forwards = queue.get(timeout=240)
    child.join(60)
    assert child.exitcode == 0 and forwards == 1, "three rewards, two prompts, one forward"
    rows = [CHATS[0]] * 2, [[{"role": "assistant", "content": c}] for c in ("7", "x " * 999)]
    columns = {"prompts": rows[0], "completions": rows[1], "completion_ids": [[1], [1]]}
    plain = [*rewards[:2], rewards[2].reward]
    for reward in plain:  # as in the child, so that the judge reads the same batch
        reward(**columns | {"prompts": ["an earlier step"] * 2})
    for got, reward in zip(out, plain, strict=True):
        want = reward(**columns)
        assert got[1] is None and want[1] is None and got[0] == pytest.approx(want[0], rel=1e-5)


def test_trl_command_line(policy: str, folder: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    command = [
        sys.executable, "-m", "trl.scripts.grpo", "--model_name_or_path", policy, "--dataset_name", str(data),
        "--reward_funcs", "latent_rewards.env.weighted", "latent_rewards.env.verifier",
        "--output_dir", str(tmp_path / "out"),
        "--per_device_train_batch_size", "2", "--num_generations", "2", "--max_completion_length", "4",
        "--max_steps", "1", "--logging_steps", "1", "--report_to", "none", "--use_cpu", "true", "--bf16", "false",
        "--dtype", "float32", "--save_strategy", "no",
    ]  # fmt: skip
    environment = os.environ | {
        "LATENT_REWARDS_JUDGE": folder, "LATENT_REWARDS_DTYPE": "float32", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]), "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    environment.pop("LATENT_REWARDS_CONFIG", None)
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rewards/weighted/mean" in done.stdout and "verifier/label_mass" in done.stdout
