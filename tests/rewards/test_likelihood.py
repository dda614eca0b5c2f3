"""Likelihood of a reply, and of the reference answer after it: worked by hand, against a plain forward, in training."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import FakeJudge, Logs, trl_kwargs
from datasets import Dataset
from typer.testing import CliRunner

from latent_rewards import HFJudge, JudgePrompt, LikelihoodReward, Need, Reading, Request, build_reward, readouts
from latent_rewards.cli import app
from latent_rewards.engine.blocks import reference_states
from latent_rewards.files.sources import RowError
from latent_rewards.rewards.composite import ContrastiveReward

PROMPTS = ["What is 17 * 6?"] * 3
REPLIES = ["<think>17 * 6 = 102</think>It is 102.", "<think>17 * 6 = 99</think>It is 102.", "The quick brown fox."]
REFERENCES = ["102", "102", "one hundred and two"]


def plain_mean(judge: HFJudge, prompt: JudgePrompt, row: dict[str, Any]) -> float:
    """Mean log-probability of the target's tokens by one plain forward of the whole text."""
    (e,) = judge.encoder.encode([prompt.render(row)])
    assert e.target is not None
    logits, _ = reference_states(judge.blocks, [e.ids], [list(range(e.target - 1, len(e.ids) - 1))])
    logp = torch.log_softmax(logits.double(), -1)
    return float(logp[torch.arange(len(logp)), e.ids[e.target :]].mean())


def test_by_hand() -> None:
    nan = math.nan
    logp = torch.tensor([[-1.0, -3.0, nan], [math.log(0.5), math.log(0.25), math.log(0.75)], [nan, nan, nan]])
    want = {
        "mean": [-2.0, (math.log(0.5) + math.log(0.25) + math.log(0.75)) / 3],
        "sum": [-4.0, math.log(0.5 * 0.25 * 0.75)],
        "mean_probability": [(math.exp(-1) + math.exp(-3)) / 2, 0.5],
        "probability": [math.exp(-4), 0.5 * 0.25 * 0.75],
    }
    assert set(want) == set(readouts.NORMALISED)
    for how, values in want.items():
        got = readouts.likelihood(logp, how)
        np.testing.assert_allclose(got[:2], values, rtol=1e-6)
        assert got.dtype == torch.float64 and bool(got[2].isnan())
        wider = torch.cat([logp, torch.full((3, 50), nan)], 1)
        assert torch.equal(readouts.likelihood(wider, how)[:2], got[:2]), "to the bit"


class Scripted(FakeJudge):
    """Gives the token log-probabilities of a script by the completion."""

    def read_rows(self, prompt: JudgePrompt, rows: Any, need: Need) -> Reading:
        assert need == Need(target=True)
        said = {"right": [-0.5, -0.1], "wrong": [-2.0, -1.0], "": [-1.0, -1.0], "never": [-math.inf, -1.0]}
        return Reading(reasons=(None,) * len(rows), target_logprobs=torch.tensor([said[r["completion"]] for r in rows]))


def test_the_baseline_by_hand() -> None:
    columns = {"reference": ["4"] * 3}
    prompts, replies = ["2 + 2?"] * 3, ["right", "wrong", "never"]
    plain = LikelihoodReward(Scripted(), of="reference", baseline=True)
    np.testing.assert_allclose(plain.score(prompts, replies, **columns), [0.7, -0.5, math.nan], rtol=1e-6)
    rlpr = LikelihoodReward(Scripted(), of="reference", normalise="mean_probability", baseline=True, clip=(0, 1))
    e = math.exp
    want = [(e(-0.5) + e(-0.1)) / 2 - e(-1), 0.0, 0.0]
    np.testing.assert_allclose(rlpr.score(prompts, replies, **columns), want, rtol=1e-6)
    logs = Logs()
    plain(prompts=prompts, completions=replies, **columns, **trl_kwargs(3, logs))
    assert logs.metrics["likelihood-reference/tokens"] == 2.0 and logs.metrics["likelihood-reference/baseline"] == -1.0
    assert rlpr.bounds == (0.0, 1.0) and plain.bounds is None
    assert LikelihoodReward(Scripted(), normalise="probability").bounds == (0.0, 1.0)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_against_a_plain_forward(make_judge: Any, family: str) -> None:
    judge = make_judge(family)
    reward = LikelihoodReward(judge, of="reference", baseline=True)
    got = reward.score(PROMPTS, REPLIES, reference=REFERENCES)
    assert judge.forwards == 1, "with the baseline"
    for i, score in enumerate(got):
        row = {"prompt": PROMPTS[i], "completion": REPLIES[i], "reference": REFERENCES[i]}
        want = plain_mean(judge, reward.prompt, row) - plain_mean(judge, reward.prompt, {**row, "completion": ""})
        assert score == pytest.approx(want, abs=5e-5)
    assert got[0] != got[1], "thoughts are read"
    stripped = LikelihoodReward(judge, of="reference", reasoning="strip").score(PROMPTS, REPLIES, reference=REFERENCES)
    assert stripped[0] == pytest.approx(stripped[1], abs=1e-5), "unless they are set aside"
    only = LikelihoodReward(judge, of="reference", reasoning="only", baseline=True)
    assert np.isnan(only.score(PROMPTS, REPLIES, reference=REFERENCES)).tolist() == [False, False, True]
    score = LikelihoodReward(judge, aspect="short").score(PROMPTS, REPLIES)
    for i, found in enumerate(score):
        row = {"prompt": PROMPTS[i], "completion": REPLIES[i], "aspect": "short"}
        assert found == pytest.approx(plain_mean(judge, JudgePrompt.load("likelihood_completion"), row), abs=5e-5)
    assert score[0] == pytest.approx(score[1], abs=1e-5), "a reply's thought is no part of it here"


def test_order_and_company_of_the_batch(make_judge: Any) -> None:
    reward = LikelihoodReward(make_judge("llama"), of="reference", baseline=True)
    want = reward.score(PROMPTS, REPLIES, reference=REFERENCES)
    for order in ([2, 0, 1], [1, 2], [0]):
        part = [[of[i] for i in order] for of in (PROMPTS, REPLIES, REFERENCES)]
        np.testing.assert_allclose(reward.score(part[0], part[1], reference=part[2]), want[order], atol=5e-5)


def test_an_aspect_by_option_and_by_column(make_judge: Any) -> None:
    judge = make_judge("llama")
    plain, short = LikelihoodReward(judge), LikelihoodReward(judge, aspect="short")
    assert not np.isclose(plain.score(PROMPTS, REPLIES), short.score(PROMPTS, REPLIES)).any()
    both = short.score(PROMPTS, REPLIES, aspect=["short", "long", ""])
    want = [plain.score([PROMPTS[0]], [r], aspect=[a])[0] for r, a in zip(REPLIES, ("short", "long", ""), strict=True)]
    np.testing.assert_allclose(both, want, atol=5e-5)
    assert plain.fingerprint != short.fingerprint
    (asked,) = short.requests([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "aspect": "c"}])
    assert [row["aspect"] for row in asked.rows] == ["short", "c"], "whoever asks, a server too"
    contrast = ContrastiveReward(plain)
    taskless = plain.score([""] * 3, REPLIES)
    np.testing.assert_allclose(contrast.score(PROMPTS, REPLIES), plain.score(PROMPTS, REPLIES) - taskless, atol=5e-5)


def test_what_cannot_be_is_told() -> None:
    judge = FakeJudge()
    for options, what in (
        ({"of": "prompt"}, "of must be 'completion' or 'reference'"),
        ({"normalise": "median"}, "normalise must be one of"),
        ({"prompt": "weighted"}, "'weighted' has no target"),
        ({"of": "completion", "prompt": "likelihood_reference"}, "of='completion', but the target"),
        ({"baseline": True}, "does not show the completion"),
        ({"of": "reference", "aspect": "short"}, "has no {{ aspect }} slot"),
    ):
        with pytest.raises(ValueError, match=what):
            LikelihoodReward(judge, **options)
    judge.capabilities = frozenset({"labels"})
    with pytest.raises(
        ValueError, match=r"needs \['target'\], which judge 'fake' cannot give .*use an HFJudge, or our"
    ):
        LikelihoodReward(judge)
    reward = LikelihoodReward(FakeJudge(), of="reference")
    assert reward.required == ("completion", "prompt", "reference")


@pytest.mark.parametrize("bad", [None, "", " \n", float("nan")])
def test_a_missing_reference_names_its_row(make_judge: Any, bad: Any) -> None:
    reward = LikelihoodReward(make_judge("llama"), of="reference")
    with pytest.raises(RowError, match="row 1") as err:
        reward(prompts=PROMPTS, completions=REPLIES, reference=["102", bad, "102"], **trl_kwargs(3))
    assert err.value.row == 1
    with pytest.raises(ValueError, match="needs 'reference'"):
        reward.score(PROMPTS, REPLIES)


def test_names_and_pickles() -> None:
    judge = FakeJudge()
    a, b = LikelihoodReward(judge), LikelihoodReward(judge, of="reference")
    own = LikelihoodReward(judge, prompt=replace(b.prompt, name="mine", prefill="So:"))
    assert [r.__name__ for r in (a, b, own)] == ["likelihood", "likelihood-reference", "likelihood-mine"]
    assert own.of == "reference" and build_reward("likelihood", judge, prompt="likelihood_reference").prompt == b.prompt
    assert pickle.loads(pickle.dumps(b)).fingerprint == b.fingerprint != a.fingerprint


def test_score_best_of_n_and_evaluate(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": p, "completion": c, "reference": r} for p, c, r in zip(PROMPTS, REPLIES, REFERENCES, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, options = CliRunner().invoke, ["--judge", folder, "--dtype", "float32", "--reward", "likelihood"]
    options += ["--reward-option", "of=reference", "--reward-option", "baseline=true"]
    done = run(app, ["score", *options, "--input", str(file), "--output", str(tmp_path / "out.jsonl")])
    assert done.exit_code == 0, done.output
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    reward = LikelihoodReward(HFJudge(folder, dtype="float32"), of="reference", baseline=True)
    want = reward.score(PROMPTS, REPLIES, reference=REFERENCES)
    np.testing.assert_allclose([row["likelihood"] for row in scored], want, atol=5e-5)
    done = run(app, ["best-of-n", *options, "--input", str(file), "--output", str(tmp_path / "best")])
    assert done.exit_code == 0, done.output
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": f"Say {i}.", "chosen": f"{i}", "rejected": "No."}) + "\n" for i in range(4))
    )
    done = run(app, ["evaluate", *options[:6], "--benchmarks", str(pairs), "--output", str(tmp_path / "eval")])
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "eval" / "results.json").read_text())["benchmarks"]
    good, bad = (LikelihoodReward(reward.judge).score([f"Say {i}." for i in range(4)], c)
                 for c in ([str(i) for i in range(4)], ["No."] * 4))  # fmt: skip
    metrics = found["scorers"]["likelihood"]["metrics"]
    assert metrics["accuracy"]["value"] == np.mean(good > bad)
    assert metrics["accuracy"]["n"] == 4 and found["scorers"]["likelihood"]["missing"] == 0
    spread = found["scorers"]["likelihood"]["compression"]["histogram"]["range"]
    np.testing.assert_allclose(spread, [min(*good, *bad), max(*good, *bad)], atol=1e-4)


def test_grpo_step(policy: str, folder: str, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    judge = HFJudge(folder, dtype="float32", device="cpu")
    rewards: list[Any] = [LikelihoodReward(judge, of="reference", unfinished="keep"), LikelihoodReward(judge)]
    seen: list[Any] = []
    args = GRPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1, seed=3,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": f"Count to {i}.", "reference": str(i)} for i in range(4)])

    def watch(prompts: Any, completions: Any, reference: Any, **_: Any) -> list[float]:
        seen.append((prompts, completions, reference))
        return [0.0] * len(prompts)

    trainer = GRPOTrainer(model=policy, reward_funcs=[*rewards, watch], train_dataset=data, args=args)
    trainer.train()
    log = trainer.state.log_history[0]
    (prompts, completions, reference), *_ = seen
    alone = LikelihoodReward(HFJudge(folder, dtype="float32", device="cpu"), of="reference", unfinished="keep")
    want = alone.score(prompts, completions, reference=reference)
    assert log["rewards/likelihood-reference/mean"] == pytest.approx(np.mean(want), abs=1e-4)
    assert log["rewards/likelihood-reference/std"] > 0 and log["likelihood-reference/tokens"] >= 1
    assert np.isfinite(log["rewards/likelihood/mean"]) and log["likelihood-reference/missing"] == 0


def test_it_is_read_with_others_in_one_forward(make_judge: Any) -> None:
    judge = make_judge("llama")
    likelihood, weighted = LikelihoodReward(judge), build_reward("weighted", judge)
    rows = likelihood.rows(PROMPTS, REPLIES, {})
    found = judge.read([*likelihood.requests(rows), *weighted.requests(rows)])
    assert judge.forwards == 1 and found[0].label_logprobs is None and found[1].target_logprobs is None
    alone = make_judge("llama").read([Request(likelihood.prompt, rows, likelihood.need)])
    torch.testing.assert_close(found[0].target_logprobs, alone[0].target_logprobs, rtol=0, atol=5e-5, equal_nan=True)
