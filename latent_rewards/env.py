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
      strict: {reward: "weighted:rubric"}     # a name of your own: latent_rewards.env.strict

Where torch is not installed, names are those of the server's own rewards, which have their options there.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from latent_rewards.compat import NEEDS_JUDGE, has_torch

if TYPE_CHECKING:
    from latent_rewards.judge.hf import Judge
    from latent_rewards.rewards.base import Reward
    from latent_rewards.serving.client import ServedReward


_OWN_PROMPT = ("likert", "probe", "rubric_list", "pairwise", "likelihood", "panel")  # what label prompts do not fit


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
    if has_torch():
        from latent_rewards.rewards.build import wanted

        wanted(rewards)
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
    from latent_rewards.judge.opening import open_judge

    options = dict(_config()["judge"])
    with _named():
        return open_judge(options if options.keys() & {"server", "model"} else {"model": "embedded", **options})


@functools.cache
def _reward(name: str) -> Reward:
    from latent_rewards.rewards.build import build_reward, wanted

    asked = _config()["rewards"]
    (one,), judge = wanted({name: asked.get(name)}), _judge()
    kind, options = one.parsed()
    if os.environ.get("LATENT_REWARDS_PROMPT") and not kind.startswith(_OWN_PROMPT):
        options.setdefault("prompt", os.environ["LATENT_REWARDS_PROMPT"])
    with _named():
        return build_reward(kind, judge, **options)


@functools.cache
def _served(name: str) -> ServedReward:
    """The server's own reward of that name, where there is no torch to make one of its readings.

    Raises:
        ImportError: no server, or options that only a reward made here can take.
    """
    options, asked = dict(_config()["judge"]), _config()["rewards"].get(name)
    if "server" not in options:
        raise ImportError(f"{NEEDS_JUDGE}; or set LATENT_REWARDS_SERVER to the URL of a judge server")
    if asked or os.environ.get("LATENT_REWARDS_PROMPT"):
        raise ImportError(
            f"{name!r} has options or a prompt of its own: give them to the judge server, or {NEEDS_JUDGE}"
        )
    from latent_rewards.serving.client import ServedReward

    with _named():
        return ServedReward(name, options.pop("server"), **options)


def __getattr__(name: str) -> Reward | ServedReward:
    if name.startswith("_"):
        raise AttributeError(f"no reward {name!r}")
    if not has_torch():
        return _served(name)
    from latent_rewards.rewards.build import REWARDS

    own = _config()["rewards"] if os.environ.get("LATENT_REWARDS_CONFIG") else {}
    if name not in {*REWARDS, *own}:
        raise AttributeError(f"no reward {name!r}; known are {sorted({*REWARDS, *own})}")
    return _reward(name)
