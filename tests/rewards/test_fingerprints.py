"""Rewards and judges that give other scores have other fingerprints, and kept scores are never another reward's."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import BASE, FakeJudge, check_fingerprint, options_for
from safetensors.torch import load_file, save_file

from latent_rewards import (
    ContrastiveReward,
    EnsembleReward,
    GuardedReward,
    HFJudge,
    JudgePrompt,
    LikertReward,
    ProbabilityWeightedReward,
    Reward,
    VerifierReward,
    build_reward,
)
from latent_rewards.evaluation import benchmarks, scorers
from latent_rewards.evaluation.readings import Readings
from latent_rewards.evaluation.stability import drift
from latent_rewards.files.cache import Cache
from latent_rewards.judge.fingerprint import digest, tensors_hash
from latent_rewards.rewards import base as rewards_module
from latent_rewards.rewards.build import REWARDS
from latent_rewards.rewards.calibrated import CalibratedReward, Calibration
from latent_rewards.rewards.reasoned import ReasonedReward
from latent_rewards.rewards.response_scores import score_responses


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are taken cost a garbage collection each; here they are taken often and nobody minds."""
    monkeypatch.setattr(rewards_module.gc, "collect", lambda: 0)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_option_is_in_the_fingerprint(name: str) -> None:
    check_fingerprint(name)


def test_the_registry_differs_from_name_to_name() -> None:
    judge = FakeJudge()
    found = {build_reward(name, judge, **options_for(name, judge)).fingerprint for name in REWARDS}
    assert len(found) == len(REWARDS)


def calibrated(judge: Any, x: float = 2.0, method: str = "affine", of: Reward | None = None, **options: Any) -> Reward:
    fitted = Calibration(method, np.array([x, 1.0]), np.zeros(0))  # type: ignore[arg-type]
    return CalibratedReward(of or ProbabilityWeightedReward(judge), fitted, **options)


def reasoned(judge: Any, **options: Any) -> Reward:
    return ReasonedReward(ProbabilityWeightedReward(judge, prompt="weighted_reasoned"), **options)


def test_calibrated_and_reasoned_rewards_state_all_they_hold() -> None:
    judge = FakeJudge()
    made = [
        calibrated(judge), calibrated(judge, 3.0), calibrated(judge, method="platt"), calibrated(judge, scale=2.0),
        calibrated(judge, of=VerifierReward(judge)), calibrated(judge, of=ProbabilityWeightedReward(judge, shift=1.0)),
        reasoned(judge), reasoned(judge, rationales=2), reasoned(judge, rationales=2, temperature=0.1),
        reasoned(judge, max_new_tokens=5), reasoned(judge, seed=1), reasoned(judge, feedback_prompt="likert5"),
    ]  # fmt: skip
    assert len({r.fingerprint for r in made}) == len(made)
    assert calibrated(judge, name="x").fingerprint == made[0].fingerprint
    assert pickle.loads(pickle.dumps(made[0])).fingerprint == made[0].fingerprint


def test_a_reward_that_hides_its_options_is_kept_nowhere(tmp_path: Path) -> None:
    class Hidden(ProbabilityWeightedReward):
        def __init__(self, judge: Any, power: float) -> None:
            self.power = power
            super().__init__(judge)

    with pytest.raises(TypeError, match=r"Hidden takes options of its own: define `options`"):
        score_responses([Hidden(FakeJudge(), 2.0)], ["a"], [["b"]], cache=tmp_path)
    assert score_responses([Hidden(FakeJudge(), 2.0)], ["a"], [["b"]]).scores, "without a cache nothing can mix"
    judge = FakeJudge()
    judge.fingerprint = None  # type: ignore[assignment,misc]
    with pytest.raises(TypeError, match="FakeJudge 'fake' states no `fingerprint`"):
        score_responses([VerifierReward(judge)], ["a"], [["b"]], cache=tmp_path)


def pairs_that_collided(judge: Any) -> list[tuple[Reward, Reward]]:
    weighted, verifier = ProbabilityWeightedReward(judge), VerifierReward(judge)
    steps = [Calibration("isotonic", np.array([0.0, 10.0]), np.array([0.0, y])) for y in (1.0, 3.0)]
    return [
        (GuardedReward(weighted, floor=-1.0), GuardedReward(weighted, floor=-9.0)),
        (GuardedReward(weighted), GuardedReward(weighted, guards=("blank",))),
        (GuardedReward(weighted), GuardedReward(verifier)),
        (CalibratedReward(weighted, steps[0]), CalibratedReward(weighted, steps[1])),
        (VerifierReward(judge), VerifierReward(judge, output="log_odds")),
        (ContrastiveReward(weighted), ContrastiveReward(ProbabilityWeightedReward(judge, scale=2.0))),
        (EnsembleReward([weighted, verifier]), EnsembleReward([verifier, weighted], how="mean")),
        (LikertReward(judge, n_samples=2), LikertReward(judge, n_samples=2, statistic="one")),
    ]  # fmt: skip


def test_no_reward_is_given_the_kept_scores_of_another(tmp_path: Path) -> None:
    prompts, responses = ["Name a prime."], [["Seven.", ": ", "10/10"]]
    for i, pair in enumerate(pairs_that_collided(FakeJudge())):
        want = [score_responses([r], prompts, responses).scores[r.__name__] for r in pair]
        assert not np.array_equal(*want), "a pair that scores alike shows nothing"
        for reward, scores in zip(pair, want, strict=True):
            kept = score_responses([reward], prompts, responses, cache=tmp_path / str(i)).scores[reward.__name__]
            np.testing.assert_array_equal(kept, scores)


def test_an_evaluation_remembers_each_reward_by_itself(tmp_path: Path) -> None:
    judge = FakeJudge()
    sets, readings = [benchmarks.load("open_ended")], Readings(judge, Cache(tmp_path))
    for first, second in pairs_that_collided(judge)[:3] + pairs_that_collided(judge)[4:7]:
        drift(first, readings, sets)  # type: ignore[arg-type]
        want = drift(second, Readings(judge, Cache(tmp_path / second.__name__)), sets)  # type: ignore[arg-type]
        assert drift(second, readings, sets) == want  # type: ignore[arg-type]


# --- judges


def judge_of(folder: str, **options: Any) -> HFJudge:
    return HFJudge(folder, **{"device": "cpu", "dtype": "float32", **options})


def test_what_changes_readings_changes_the_judges_fingerprint(folder: str, tmp_path: Path) -> None:
    want = judge_of(folder).fingerprint
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    same = [
        judge_of(folder, batch_tokens=64), judge_of(folder, share_prefixes=False), judge_of(folder, cache_bytes=0),
        judge_of(str(moved)), judge_of(folder, max_length=8192), pickle.loads(pickle.dumps(judge_of(folder))),
    ]  # fmt: skip
    assert {j.fingerprint for j in same} == {want}
    tensors = load_file(moved / "model.safetensors")
    name = next(n for n in tensors if n.endswith("mlp.down_proj.weight"))
    tensors[name][1, 1] += 1e-6  # no value that the revision looks at
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    others = [
        judge_of(folder, dtype="bfloat16"), judge_of(folder, max_length=100), judge_of(folder, on_overflow="truncate"),
        judge_of(folder, batch_invariant=True), judge_of(folder, attn_implementation="eager"),
        judge_of(folder, chat_template_kwargs={"enable_thinking": True}), judge_of(str(moved)),
    ]  # fmt: skip
    assert others[-1].revision == judge_of(folder).revision
    assert len({want, *(j.fingerprint for j in others)}) == len(others) + 1


def test_an_adapter_counts_by_its_content_not_its_path(folder: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    found = {judge_of(folder).fingerprint}
    for value in (0.01, 0.02):
        config = peft.LoraConfig(r=2, target_modules=["q_proj"])
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), config)
        for key, weight in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.constant_(weight, value)
        model.save_pretrained(tmp_path / "adapter")
        found.add(judge_of(folder, adapter=str(tmp_path / "adapter")).fingerprint)
    assert len(found) == 3


def test_the_adapter_in_use_counts(make_model: Any, tokenizers: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(make_model("llama", tokenizers["digits"]), config)
    model.add_adapter("other", config)

    def fingerprint() -> str:
        return HFJudge(model, tokenizer=tokenizers["digits"]).fingerprint

    found = [fingerprint()]
    model.set_adapter("other")
    found.append(fingerprint())
    next(m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)).scaling["other"] = 0.5
    found.append(fingerprint())
    with model.disable_adapter():
        found.append(fingerprint())
    assert len(set(found)) == len(found)


def test_another_chat_template_or_tokenizer_is_another_judge(make_model: Any, tokenizers: dict[str, Any]) -> None:
    def judge(name: str, old: str = "assistant", new: str = "assistant") -> HFJudge:
        tokenizer = copy.deepcopy(tokenizers[name])
        tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
        return HFJudge(make_model("llama", tokenizers["digits"]), tokenizer=tokenizer)

    prompt = JudgePrompt.load("weighted")
    plain, spaced, other = judge("digits"), judge("digits", "assistant", "Assistant"), judge("numbers")
    assert (
        len({j.fingerprint for j in (plain, spaced, other)}) == 3 and judge("digits").fingerprint == plain.fingerprint
    )
    assert len({j.encoder.layout_hash(prompt) for j in (plain, spaced, other)}) == 3
    assert plain.encoder.layout_hash(JudgePrompt.load("verifier")) != plain.encoder.layout_hash(prompt)
    assert VerifierReward(plain).fingerprint != VerifierReward(spaced).fingerprint


def test_hashes_by_content() -> None:
    a, b = torch.arange(4.0), torch.ones(2, 2, dtype=torch.bfloat16)
    assert tensors_hash({"a": a, "b": b}) == tensors_hash({"b": b.clone(), "a": torch.arange(8.0)[:4]})
    different = [{"a": a}, {"b": a}, {"a": a.reshape(2, 2)}, {"a": a.double()}, {"a": -a}, {"a": a.flip(0)}]
    assert len({tensors_hash(t) for t in different}) == len(different)
    assert (
        digest({"a": (1, 2.0), "b": None}) == digest({"b": None, "a": [1, 2.0]}) != digest({"a": [1, 2.5], "b": None})
    )
    with pytest.raises(TypeError, match="not JSON serializable"):
        digest({"a": object()})


# --- options that used to be lost


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_name_prompt_scale_and_clip_go_together(name: str) -> None:
    judge = FakeJudge()
    prompt = {
        "verifier": "verifier", "likert5": "likert10", "likert10": "likert5", "probe": "weighted",
        "rubric_list": "criterion_scale", "pairwise": "pairwise_criterion", "steps": "step_correct",
        "likelihood": "likelihood_reference",
        "panel": "weighted",
    }  # fmt: skip
    options = BASE.get(name, {}) | options_for(name, judge) | {"prompt": prompt.get(name, "four_rubric")}
    reward = build_reward(name, judge, name="mine", scale=0.5, clip=(0.5, 1.5), **options)
    assert reward.__name__ == "mine" and reward.prompt.name == options["prompt"]
    assert reward.scale == 0.5 and reward.clip == (0.5, 1.5) and reward.bounds is not None
    columns = {"other": ["w"] * 3, "criterion": ["It is short."] * 3, "reference": ["v"] * 3}
    scores = reward.score(["p"] * 3, ["x", "y", "z"], **columns)
    assert ((reward.bounds[0] <= scores) & (scores <= reward.bounds[1])).all()


def test_a_prompt_goes_to_the_members_and_no_further() -> None:
    judge = FakeJudge()
    ensemble: Any = build_reward("ensemble", judge, of=["weighted", {"reward": "verifier", "prompt": "verifier"}],
                                 prompt="four_rubric")  # fmt: skip
    assert [r.prompt.name for r in ensemble.rewards] == ["four_rubric", "verifier"]
    guarded: Any = build_reward("guarded", judge, gate="verifier", gate_below=0.5, prompt="four_rubric")
    assert (guarded.reward.prompt.name, guarded.gate.prompt.name) == ("four_rubric", "verifier")
    weighted = ProbabilityWeightedReward(judge)
    for make in (GuardedReward, ContrastiveReward, lambda r, **o: EnsembleReward([r, r], **o),
                 lambda r, **o: calibrated(judge, of=r, **o)):  # fmt: skip
        assert make(weighted, prompt="weighted").prompt.name == "weighted"
        with pytest.raises(
            ValueError, match=r"prompt 'four_rubric' has hash .* but the ProbabilityWeightedReward in it"
        ):
            make(weighted, prompt="four_rubric")


def test_bounds_by_hand() -> None:
    judge = FakeJudge()
    weighted, verifier = ProbabilityWeightedReward(judge, scale=-0.1, shift=1.0), VerifierReward(judge)
    odds, plain = VerifierReward(judge, output="log_odds"), ProbabilityWeightedReward(judge)
    clipped = VerifierReward(judge, output="log_odds", clip=(-3, 4))
    standard = EnsembleReward([verifier, plain], location=[0, 5], scales=[1, 5])
    want: list[tuple[Reward, tuple[float, float] | None]] = [
        (plain, (0, 10)), (weighted, (0, 1)), (verifier, (0, 1)), (odds, None), (clipped, (-3, 4)),
        (VerifierReward(judge, clip=(0.5, 9)), (0.5, 1)), (LikertReward(judge), (1, 10)), (reasoned(judge), (0, 10)),
        (GuardedReward(verifier, floor=-1.0), (-1, 1)), (GuardedReward(weighted), (0, 1)), (standard, (-1, 1)),
        (ContrastiveReward(verifier, weight=0.5), (-0.5, 1)), (ContrastiveReward(odds), None),
        (EnsembleReward([verifier, weighted], how="mean"), (0, 1)), (EnsembleReward([verifier, odds]), None),
        (calibrated(judge), (1, 21)), (calibrated(judge, of=odds), None),
        (calibrated(judge, method="platt", of=odds), (0, 1)),
    ]  # fmt: skip
    for reward, bounds in want:
        assert reward.bounds == (None if bounds is None else pytest.approx(bounds)), reward.__name__


def test_an_evaluation_scales_and_clips_like_the_reward(tmp_path: Path) -> None:
    judge, rows = FakeJudge(answers=("[RESULT] 4", "[RESULT] 2")), [{"prompt": "p", "completion": c} for c in "abcdef"]
    readings = Readings(judge, Cache(tmp_path))
    for name, key in (("weighted", "mine"), ("verifier", "mine"), ("guarded", "mine"), ("likert5", "mine/mean")):
        reward: Any = build_reward(name, judge, scale=-0.2, shift=1.0, clip=(-0.5, 0.9))
        work = readings.fill_answers(reward, rows) if name == "likert5" else readings.fill(
            [(r.prompt, r.need) for r in reward.requests(rows)], rows
        )  # fmt: skip
        assert sum(work) == len(rows)
        column = scorers.columns("mine", reward, readings, rows, greedy=False)[key]
        want = reward.score(["p"] * len(rows), list("abcdef"))
        np.testing.assert_allclose(column.scores, want, atol=1e-5)
        assert column.range in (None, reward.bounds) and (name == "likert5" or len(set(want)) > 1)
