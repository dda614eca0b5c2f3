"""verl: a custom reward function, async, one sample per call.

    reward.custom_reward_function.path=pkg://latent_rewards.serving.adapters.verl
    reward.custom_reward_function.name=compute_score

verl does not pass the prompt: put it (text or messages) into `extra_info` under `prompt` when you prepare the data.

Source: verl `experimental/reward_loop/reward_manager/naive.py`, `utils/import_utils.py`.
"""

from __future__ import annotations

from typing import Any

from latent_rewards.serving.adapters import client


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
    reference = {"reference": ground_truth} if isinstance(ground_truth, str) else {}
    row = {"prompt": prompt, "completion": solution_str, **reference}
    (score,) = await client(server, reward).score_async([row])
    return {"score": score}
