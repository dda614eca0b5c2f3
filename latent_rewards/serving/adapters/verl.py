"""verl: a custom reward function, async, one sample per call.

    reward.custom_reward_function.path=pkg://latent_rewards.serving.adapters.verl
    reward.custom_reward_function.name=compute_score

    +reward.custom_reward_function.reward_kwargs.server=http://judge:8077

The reward managers `naive` (the default) and `remote` pass the prompt; `remote` wants `compute_score_sync`. With `dapo`
and `gdpo` put it (text or messages) into `extra_info` under `prompt` when you prepare the data; what is there comes
first. The ground truth is the `reference`; `rubrics` and `criteria` in `extra_info` travel, too. Not `rate_limited`: it
makes 0 of every error, and of an answer that takes 300 s, with a line in its log.

Source: verl 0.9.1 `verl/experimental/reward_loop/reward_manager/{naive,remote,limited,dapo}.py`,
`verl/experimental/agent_loop/agent_loop.py` (`raw_prompt`), `verl/trainer/ppo/reward.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import truth_slots


async def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None,
    reward_router_address: str | None = None, reward_model_tokenizer: Any = None,
    server: str | None = None, reward: str | None = None, prompt_key: str = "prompt", **columns: Any,
) -> dict[str, float]:  # fmt: skip
    """Score one sample; `server`, `reward` and `prompt_key` can be set in `reward_kwargs`.

    Returns:
        {"score": reward}: the same keys for every sample, as verl needs it.

    Raises:
        ValueError: `extra_info` has no prompt.
    """
    row = _row(solution_str, ground_truth, extra_info, prompt_key)
    (score,) = await client(server, reward).score_async([row])
    return {"score": score}


def compute_score_sync(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None,
    reward_router_address: str | None = None, reward_model_tokenizer: Any = None,
    server: str | None = None, reward: str | None = None, prompt_key: str = "prompt", **columns: Any,
) -> dict[str, float]:  # fmt: skip
    """As `compute_score`, for the reward manager `remote`, which calls it in a process of its own."""
    row = _row(solution_str, ground_truth, extra_info, prompt_key)
    (score,) = client(server, reward).score([row])
    return {"score": score}


def _row(said: str, truth: Any, extra_info: Mapping[str, Any] | None, prompt_key: str) -> dict[str, Any]:
    facts = extra_info or {}
    prompt = facts.get(prompt_key)
    if prompt is None and (passed := facts.get("raw_prompt")) is not None:
        prompt = passed if isinstance(passed, str) else list(passed)  # messages, as an array of numpy
    if prompt is None:
        raise ValueError(
            f"extra_info has no {prompt_key!r}, nor the raw_prompt of the reward managers naive and remote: "
            "add it to your data, or set prompt_key"
        )
    return {"prompt": prompt, "completion": said, **truth_slots(truth, facts)}
