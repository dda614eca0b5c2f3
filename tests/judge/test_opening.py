from __future__ import annotations

import gc
import pickle
import weakref

from latent_rewards import HFJudge, ProbabilityWeightedReward, VerifierReward, build_reward
from latent_rewards.judge.opening import open_judge


def test_a_judge_named_twice_is_one_and_is_dropped_with_the_last_reward(folder: str) -> None:
    weighted, verifier = ProbabilityWeightedReward(folder), VerifierReward(folder)
    around = build_reward("contrastive", folder)
    assert weighted.judge is verifier.judge and around.score(["a"], ["b"]).shape == (1,)
    assert weighted.judge.blocks is verifier.judge.blocks
    assert open_judge(folder) is weighted.judge
    gone = weakref.ref(weighted.judge)
    del weighted, verifier, around
    gc.collect()
    assert gone() is None, "nothing else holds the weights"


def test_a_judge_that_is_given_stays_its_own(folder: str) -> None:
    own = HFJudge(folder, max_length=100)
    assert open_judge(own) is own and VerifierReward(folder).judge is not own
    named = ProbabilityWeightedReward(folder)
    copy = pickle.loads(pickle.dumps([named, VerifierReward(folder)]))
    assert copy[0].judge is copy[1].judge is not named.judge


def test_rewards_that_name_it_share_one_forward(folder: str) -> None:
    weighted, verifier = ProbabilityWeightedReward(folder), VerifierReward(folder)
    judge = weighted.judge
    assert isinstance(judge, HFJudge)
    for step in range(3):
        before = judge.forwards
        for reward in (weighted, verifier):
            reward(prompts=["Say 1"] * 2, completions=[f"It is {step}.", "no"], trainer_state=None)
    assert judge.forwards == before + 1
