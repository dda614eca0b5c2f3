"""ms-swift: an asynchronous outcome reward model.

    swift rlhf --rlhf_type grpo --external_plugins /path/to/latent_rewards/serving/adapters/ms_swift.py \
        --reward_funcs latent_rewards ...

Source: ms-swift `swift/rewards/orm.py`.
"""

from __future__ import annotations

from typing import Any

from swift.rewards import AsyncORM, orms

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import SLOTS, truth_slots

TRUTH = ("solution", "ground_truth", "label", "answer", *SLOTS)


class LatentRewards(AsyncORM):
    """Scores completions of `messages`; dataset columns fill further slots of the judge prompt."""

    async def __call__(
        self, completions: list[str], messages: list[list[dict[str, Any]]], **columns: Any
    ) -> list[float]:
        """One reward per completion; a row of mixed data sets has None in the columns that it lacks."""
        known = {name: columns[name] for name in TRUTH if columns.get(name) is not None}
        rows = []
        for i, (completion, turns) in enumerate(zip(completions, messages, strict=True)):
            prompt = turns[:-1] if turns[-1]["role"] == "assistant" else turns
            own = {name: values[i] for name, values in known.items() if values[i] is not None}
            truth = next(iter(own.values()), None)
            rows.append({"prompt": prompt, "completion": completion, **truth_slots(truth, own)})
        return await client().score_async(rows)


orms["latent_rewards"] = LatentRewards
