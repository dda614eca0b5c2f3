"""The reasoning condition: what is read is what the judge's own feedback makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from latent_rewards import CrossLayerReward, HFJudge, ProbabilityWeightedReward
from latent_rewards.rewards.reasoned import ReasonedReward

PROMPTS, COMPLETIONS = ["What is 2 + 2?", "Say hi"], ["4", "hi there"]


@pytest.fixture(scope="module")
def judge(folder):
    return HFJudge(folder, dtype="float32", device="cpu", max_length=2000)


@pytest.mark.parametrize("kind", [ProbabilityWeightedReward, CrossLayerReward])
def test_score_is_the_inner_reward_given_the_feedback(judge, kind):
    inner = kind(judge, prompt="weighted_reasoned")
    reward = ReasonedReward(inner, max_new_tokens=8)
    rows = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    texts = judge.generate(reward.feedback_prompt, rows, n=1, temperature=0.0, max_new_tokens=8, seed=42)
    feedback = [t[0].split("[RESULT]")[0].strip() for t in texts]
    expected = inner.score(PROMPTS, COMPLETIONS, feedback=feedback)
    np.testing.assert_allclose(reward.score(PROMPTS, COMPLETIONS), expected, atol=1e-5)
    assert not np.allclose(expected, inner.score(PROMPTS, COMPLETIONS), atol=1e-5)


def test_mean_over_rationales(judge):
    inner = ProbabilityWeightedReward(judge, prompt="weighted_reasoned")
    reward = ReasonedReward(inner, rationales=3, max_new_tokens=6, seed=1)
    rows = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    texts = judge.generate(reward.feedback_prompt, rows, n=3, temperature=0.7, max_new_tokens=6, seed=1)
    one = [
        inner.score(PROMPTS, COMPLETIONS, feedback=[t[k].split("[RESULT]")[0].strip() for t in texts]) for k in range(3)
    ]
    np.testing.assert_allclose(reward.score(PROMPTS, COMPLETIONS), np.mean(one, axis=0), atol=1e-5)
    assert reward.score(PROMPTS, COMPLETIONS).tolist() == reward.score(PROMPTS, COMPLETIONS).tolist()


def test_missing_stays_missing_and_misuse_is_refused(judge):
    inner = ProbabilityWeightedReward(judge, prompt="weighted_reasoned")
    reward = ReasonedReward(inner, max_new_tokens=4)
    out = reward.score(["p", "p"], ["ok", "long " * 3000])
    assert np.isfinite(out[0]) and np.isnan(out[1])
    with pytest.raises(ValueError, match=r"no .* feedback .* slot"):
        ReasonedReward(ProbabilityWeightedReward(judge))
    with pytest.raises(ValueError, match="needs kind 'generate'"):
        ReasonedReward(inner, feedback_prompt="verifier")
    with pytest.raises(ValueError, match="at least 1"):
        ReasonedReward(inner, rationales=0)
