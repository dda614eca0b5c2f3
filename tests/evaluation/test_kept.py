"""Probes from what an evaluation kept: the same states, and no forward."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from latent_rewards import HFJudge, JudgePrompt, ProbabilityWeightedReward
from latent_rewards.evaluation.config import EvaluateConfig
from latent_rewards.evaluation.kept import KeepingJudge, KeptJudge
from latent_rewards.evaluation.run import evaluate
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.examples import Example, read_examples

PROMPT = JudgePrompt.load("weighted")


def test_features_of_an_evaluation(folder, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Say {i}", "chosen": f"It is {i}.", "rejected": "no " * (i % 3 + 1)} for i in range(6)]
    pairs.write_text("\n".join(json.dumps(r) for r in rows))
    judge = HFJudge(folder, device="cpu", dtype="float32")
    out = tmp_path / "out"
    config = EvaluateConfig(rewards=["weighted"], benchmarks=[str(pairs)], output=str(out), resamples=100)
    evaluate(replace(config, keep_layers=[1, 2]), judge)
    examples = [*read_examples(pairs), *(Example(f"Never seen {i}", "x", 0.0) for i in range(4))]
    read = judge.rows_read
    kept = collect_features(
        KeptJudge(judge, out / "cache"),
        PROMPT,
        examples,
        [1, 2],
        folder=tmp_path / "kept",
        dtype="float32",
        shard_rows=4,
    )
    assert judge.rows_read == read
    np.testing.assert_array_equal(kept.column("read"), [True] * 12 + [False] * 4)
    fresh = collect_features(judge, PROMPT, examples, [1, 2], folder=tmp_path / "fresh", dtype="float32", shard_rows=4)
    assert kept.info == fresh.info
    for column in ("layer_1", "layer_2", "label_logprobs"):
        np.testing.assert_allclose(kept.column(column)[:12], fresh.column(column)[:12], rtol=1e-4, atol=1e-4)
    assert np.isnan(kept.states([2])[12:]).all()
    layer_3 = collect_features(KeptJudge(judge, out / "cache"), PROMPT, examples, [3], folder=tmp_path / "third")
    assert not layer_3.column("read").any()


def test_no_cache(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no readings of an evaluation"):
        KeptJudge(HFJudge(folder), tmp_path)


def test_a_keeping_judge_reads_once(folder, tmp_path):
    judge = HFJudge(folder, device="cpu", dtype="float32")
    prompts, completions = ["Say one", "Say one", "Say two"], ["One.", "1", "Two."]
    plain = ProbabilityWeightedReward(judge).score(prompts, completions)
    judge.forget()
    read = judge.rows_read
    kept = ProbabilityWeightedReward(KeepingJudge(judge, tmp_path / "kept"))
    np.testing.assert_allclose(kept.score(prompts, completions), plain, atol=1e-5)
    assert judge.rows_read == read + 3
    again = ProbabilityWeightedReward(KeepingJudge(judge, tmp_path / "kept", rank=1))
    first = kept.score([*prompts[:2], "Say two"], completions)
    np.testing.assert_array_equal(again.score(prompts, completions), first)
    assert judge.rows_read == read + 3
    both = again.score([*prompts, "Say two"], [*completions, "Three."])
    np.testing.assert_array_equal(both[:3], first)
    assert judge.rows_read == read + 4 and not np.isnan(both).any()
    answers = {"n": 2, "temperature": 0.0, "max_new_tokens": 2, "seed": 0}
    row = [{"prompt": "Say", "completion": "x"}]
    likert = JudgePrompt.load("likert10")
    assert again.judge.generate(likert, row, **answers) == judge.generate(likert, row, **answers)
