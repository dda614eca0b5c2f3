"""slime and miles: a reward function, where the server's route `/remote_rm` is not enough.

    --custom-rm-path latent_rewards.serving.adapters.slime.reward_func

It sends the token, asks for a whole group at once (`--group-rm`, not with an eval set: evaluation asserts that it is
off), and what a sample's `metadata` holds under `reference`, `rubrics` or `criteria` travels.

Source: slime `slime/rollout/rm_hub/__init__.py`, `slime/utils/types.py` at commit 624b824, miles
`miles/rollout/rm_hub/__init__.py` at commit 31f1ca9, read on 26 November 2026.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, overload

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import plain_prompt, truth_slots, without_end


class Sample(Protocol):
    """What is read of theirs."""

    prompt: str | list[dict[str, str]]
    response: str
    label: object
    metadata: dict[str, object]


@overload
async def reward_func(args: object, sample: Sample, **_: object) -> float: ...
@overload
async def reward_func(args: object, sample: Sequence[Sample], **_: object) -> list[float]: ...
async def reward_func(args: object, sample: Sample | Sequence[Sample], **_: object) -> float | list[float]:
    """The reward of a sample, or those of several in one request."""
    samples: Sequence[Sample] = sample if isinstance(sample, Sequence) else [sample]
    rows = [
        {"prompt": plain_prompt(s.prompt), "completion": without_end(s.response), **truth_slots(s.label, s.metadata)}
        for s in samples
    ]
    scores = await client().score_async(rows)
    return scores if isinstance(sample, Sequence) else scores[0]
