"""Several training ranks: one judge server for all of them; a judge in each rank of a ZeRO-3 run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import launch, serving

pytest.importorskip("trl")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from latent_rewards import HFJudge, ProbabilityWeightedReward

PROGRAM = Path(__file__).parents[1] / "grpo_ranks.py"


def check_run(ranks: list[Any], folder: str) -> None:
    """Both ranks got rewards, and each is the in-process score of what was scored."""
    judge = HFJudge(folder, dtype="float32", device="cpu")
    reward = ProbabilityWeightedReward(judge)
    for facts in ranks:
        assert facts["world"] == 2 and len(facts["seen"]) == 2
        for call in facts["seen"]:
            assert len(call["rewards"]) == 2
            np.testing.assert_allclose(call["rewards"], reward.score(call["prompts"], call["completions"]), rtol=1e-5)
    for row in ranks[0]["logs"]:
        for name in ("weighted", "cross_layer", "verifier"):
            assert np.isfinite(row[f"rewards/{name}/mean"]) and row[f"{name}/missing"] == 0
    means = [np.mean([x for facts in ranks for x in facts["seen"][step]["rewards"]]) for step in range(2)]
    np.testing.assert_allclose([row["rewards/weighted/mean"] for row in ranks[0]["logs"]], means, rtol=1e-4)


def test_two_ranks_share_one_server(policy: str, folder: str, tmp_path: Path) -> None:
    with serving(folder, tmp_path / "log", "--reward", "weighted") as server:
        ranks = launch(PROGRAM, policy, server.url, str(tmp_path), timeout=550)
        text = server.http().get("/metrics").text
    check_run(ranks, folder)
    rows = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("latent_rewards_rows_total"))
    assert rows == 2 * (2 * 3 + 2), "two ranks, two completions: at the first step for each of three rewards, then once"
    assert all(facts["forwards"] == 3 + 1 for facts in ranks)


ZERO3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_a_judge_in_each_rank_of_a_zero_3_run(policy: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / "zero3.json").write_text(json.dumps(ZERO3))
    ranks = launch(
        PROGRAM, policy, folder, str(tmp_path), str(tmp_path / "zero3.json"), timeout=900, DS_ACCELERATOR="cpu",
        ACCELERATE_USE_CPU="false",
    )  # fmt: skip
    check_run(ranks, folder)
    for facts in ranks:
        assert facts["zero3"], "the policy is sharded"
        assert not facts["judge_sharded"] and not facts["judge_nan"], "the judge is whole"


def _in_zero_3(folder: str, queue: Any) -> None:
    """What a training script has done by the time a reward first loads its judge: TrainingArguments with ZeRO-3."""
    from transformers.integrations import deepspeed

    class Stage3:
        """What transformers asks of a running configuration; the real one needs DeepSpeed."""

        def is_zero3(self) -> bool:
            return True

    if importlib.util.find_spec("deepspeed"):
        config: Any = deepspeed.HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    else:
        config = Stage3()  # kept: transformers holds a weak reference
        deepspeed.set_hf_deepspeed_config(config)
    is_deepspeed_zero3_enabled = deepspeed.is_deepspeed_zero3_enabled
    assert is_deepspeed_zero3_enabled()
    judge = HFJudge(folder, dtype="float32", device="cpu")
    scores = ProbabilityWeightedReward(judge).score(["p", "p"], ["a", "b"])
    whole = all(p.numel() and not hasattr(p, "ds_id") for p in judge.blocks.model.parameters())
    queue.put((scores.tolist(), whole, is_deepspeed_zero3_enabled(), config.is_zero3()))


def test_loading_a_judge_while_zero_3_is_on(folder: str) -> None:
    """Whole, finite weights, and ZeRO-3 is on again afterwards; runs without DeepSpeed itself."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_in_zero_3, args=(folder, queue))
    child.start()
    scores, whole, *still_on = queue.get(timeout=300)
    child.join(60)
    want = ProbabilityWeightedReward(HFJudge(folder, dtype="float32", device="cpu")).score(["p", "p"], ["a", "b"])
    assert scores == pytest.approx(want.tolist(), abs=1e-4) and whole and all(still_on)
