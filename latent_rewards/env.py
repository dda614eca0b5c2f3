"""Rewards for TRL's command line, which takes no arguments for a reward.

    trl grpo --reward_funcs latent_rewards.env.weighted latent_rewards.env.verifier ...

Every name of `REWARDS` is here, configured by the environment: `LATENT_REWARDS_JUDGE` (model name, default "embedded"),
`LATENT_REWARDS_DEVICE`, `LATENT_REWARDS_DTYPE`, `LATENT_REWARDS_PROMPT` (for label rewards), by `LATENT_REWARDS_SERVER`
(URL of a judge server, instead of a judge here; its token in `LATENT_REWARDS_TOKEN`), or, for everything else, by a
YAML file named by `LATENT_REWARDS_CONFIG`:

    judge: {model: Qwen/Qwen3-8B, device: "cuda:1"}
    rewards:
      weighted: {scale: 0.1}
      verifier: {output: log_odds}
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from latent_rewards.judge.hf import HFJudge, Judge
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.build import REWARDS, build_reward


@functools.lru_cache(maxsize=1)
def _config() -> dict[str, Any]:
    path = os.environ.get("LATENT_REWARDS_CONFIG")
    if not path:
        if os.environ.get("LATENT_REWARDS_SERVER"):
            return {"judge": {"server": os.environ["LATENT_REWARDS_SERVER"]}, "rewards": {}}
        judge: dict[str, Any] = {"model": os.environ.get("LATENT_REWARDS_JUDGE", "embedded")}
        for key in ("device", "dtype"):
            if os.environ.get(f"LATENT_REWARDS_{key.upper()}"):
                judge[key] = os.environ[f"LATENT_REWARDS_{key.upper()}"]
        return {"judge": judge, "rewards": {}}
    with _named():
        return read_config(Path(path))


def read_config(path: Path) -> dict[str, Any]:
    """A file with `judge` (arguments of `HFJudge`, or `server` and arguments of `ServerJudge`) and `rewards`.

    Raises:
        ValueError: unknown keys or rewards, or options that are no mapping.
    """
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or set(raw) - {"judge", "rewards"}:
        raise ValueError(f"expected the keys 'judge' and 'rewards', got {raw!r}")
    judge, rewards = raw.get("judge") or {}, raw.get("rewards") or {}
    judge = {"model": judge} if isinstance(judge, str) else judge
    for what, value in {"judge": judge, "rewards": rewards}.items():
        if not isinstance(value, dict):
            raise ValueError(f"{what!r} must be a mapping of options, got {value!r}")
    unknown = sorted(set(rewards) - set(REWARDS))
    if unknown:
        raise ValueError(f"unknown rewards {unknown}; known are {sorted(REWARDS)}")
    for what, value in rewards.items():
        if not isinstance(value, dict | None):
            raise ValueError(f"options of reward {what!r} must be a mapping, got {value!r}")
    return {"judge": judge, "rewards": rewards}


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Errors in what was configured start with where it was configured."""
    try:
        yield
    except (ValueError, TypeError, yaml.YAMLError) as err:
        raise ValueError(f"{os.environ.get('LATENT_REWARDS_CONFIG') or 'LATENT_REWARDS_* variables'}: {err}") from err


@functools.lru_cache(maxsize=1)
def _judge() -> Judge:
    options = dict(_config()["judge"])
    with _named():
        if "server" in options:
            from latent_rewards.serving import ServerJudge

            return ServerJudge(options.pop("server"), **options)
        return HFJudge(**options)


@functools.cache
def _reward(name: str) -> Reward:
    options, judge = dict(_config()["rewards"].get(name) or {}), _judge()
    if os.environ.get("LATENT_REWARDS_PROMPT") and not name.startswith(("likert", "probe")):
        options.setdefault("prompt", os.environ["LATENT_REWARDS_PROMPT"])
    with _named():
        return build_reward(name, judge, **options)


def __getattr__(name: str) -> Reward:
    if name not in REWARDS:
        raise AttributeError(f"no reward {name!r}; known are {sorted(REWARDS)}")
    return _reward(name)
