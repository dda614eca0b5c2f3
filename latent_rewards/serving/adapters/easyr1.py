"""EasyR1: a batch reward function (its default kind).

    worker.reward.reward_function=/path/to/latent_rewards/serving/adapters/easyr1.py:compute_score

EasyR1 passes no prompt: let the data's ground truth be a mapping, or its JSON text, with `prompt` and, where wanted,
`reference` or `rubrics`.

Source: EasyR1 `verl/workers/reward/function.py`, read on 26 November 2026 at commit b44b311 (at 46c6c21 the kind
is an option: `worker.reward.reward_type=batch`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import truth_slots, without_end

REWARD_NAME, REWARD_TYPE = "latent_rewards", "batch"  # how EasyR1 reads it


def compute_score(reward_inputs: Sequence[dict[str, Any]], **_: Any) -> list[dict[str, float]]:
    """Rewards of a batch, each under `overall`.

    Raises:
        ValueError: a ground truth without prompt; names the row.
    """
    rows = []
    for i, given in enumerate(reward_inputs):
        truth = given["ground_truth"]
        if isinstance(truth, str) and truth.lstrip().startswith("{"):
            truth = json.loads(truth)
        if not isinstance(truth, dict) or truth.get("prompt") is None:
            raise ValueError(f"row {i}: EasyR1 passes no prompt; make the ground truth a mapping with 'prompt' in it")
        rows.append({"prompt": truth["prompt"], "completion": without_end(given["response"]), **truth_slots(truth)})
    return [{"overall": score} for score in client().score(rows)]
