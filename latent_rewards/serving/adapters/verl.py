"""verl: a custom reward function, async, one sample per call.

    reward.custom_reward_function.path=pkg://latent_rewards.serving.adapters.verl
    reward.custom_reward_function.name=compute_score

    +reward.custom_reward_function.reward_kwargs.server=http://judge:8077

verl does not pass the prompt: put it (text or messages) into `extra_info` under `prompt` when you prepare the data. The
ground truth is the `reference`; `rubrics` and `criteria` in `extra_info` travel, too.

Source: verl `experimental/reward_loop/reward_manager/naive.py`, `utils/import_utils.py`.
"""

from __future__ import annotations

from typing import Any

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import truth_slots


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None,
    reward_router_address: str | None = None, reward_model_tokenizer: Any = None,
    server: str | None = None, reward: str | None = None, prompt_key: str = "prompt", **columns: Any,
) -> dict[str, float]:  # fmt: skip
    """Score one sample; `server`, `reward` and `prompt_key` can be set in `reward_kwargs`.

    Returns:
        {"score": reward}: the same keys for every sample, as verl needs it.

    Raises:
        ValueError: `extra_info` has no prompt.
    """
    prompt = (extra_info or {}).get(prompt_key)
    if prompt is None:
        raise ValueError(
            f"extra_info has no {prompt_key!r}; verl passes no prompt: add it to your data, or set prompt_key"
        )
    row = {"prompt": prompt, "completion": solution_str, **truth_slots(ground_truth, extra_info)}
    (score,) = await client(server, reward).score_async([row])
    return {"score": score}
