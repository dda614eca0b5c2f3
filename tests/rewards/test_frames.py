"""How far it is from a reward's call to the attention: a newcomer who reads along passes few hands of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import latent_rewards
from latent_rewards import ProbabilityWeightedReward, VerifierReward
from latent_rewards.engine import packed

OURS = str(Path(latent_rewards.__file__).parent)


def test_frames_of_ours_between_the_reward_and_the_attention(make_judge: Any, monkeypatch: Any) -> None:
    judge, seen = make_judge("llama"), []
    rewards = [ProbabilityWeightedReward(judge), VerifierReward(judge)]
    attend = packed.attention_forward

    def watched(*arguments: Any, **options: Any) -> Any:
        frame, ours = sys._getframe(1), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(OURS):
                ours.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        seen.append(ours[::-1])
        return attend(*arguments, **options)

    monkeypatch.setattr(packed, "attention_forward", watched)
    for prompts in (["a", "b"], ["c", "d"]):  # from the second step on both are read together
        seen.clear()
        for reward in rewards:
            reward(prompts=prompts, completions=["one", "two"], trainer_state=None)
    assert seen and seen[0][0] == "base.__call__"
    longest = max(seen, key=len)
    assert len(longest) <= 10, " ".join(longest)
