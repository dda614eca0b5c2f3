"""Rewards by name: the one place that turns names and options into rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from latent_rewards.judge.hf import HFJudge, Judge
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.composite import ContrastiveReward, EnsembleReward
from latent_rewards.rewards.guarded import GuardedReward
from latent_rewards.rewards.latent import CrossLayerReward, LatentReward, ProbabilityWeightedReward, VerifierReward
from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward
from latent_rewards.rewards.probe import ProbeReward


def build_reward(kind: str, /, judge: Judge | str = "embedded", **options: Any) -> Reward:
    """A reward by its short name, e.g. `build_reward("verifier", judge, output="log_odds", name="sure")`.

    `prompt` of a reward made of others ("guarded", "contrastive", "ensemble") is that of its members, but for a gate.

    Raises:
        ValueError: unknown name or option.
    """
    if kind not in REWARDS:
        raise ValueError(f"unknown reward {kind!r}; known are {sorted(REWARDS)}")
    try:
        return REWARDS[kind](judge, **options)
    except TypeError as err:
        raise ValueError(f"reward {kind!r}: {err}") from err


def build_spec(spec: str | tuple[str, Mapping[str, Any]], judge: Judge, *, samples: int, temperature: float) -> Reward:
    """A reward by its short name, with what it needs after a colon.

    "weighted", "weighted:rubric" (another prompt, by name or path), "probe:runs/probe" (a saved probe), "likert10:bare"
    (the number without feedback), "likert10:guided" (the number under a choice constraint),
    "guarded:weighted", "contrastive:verifier", "ensemble:weighted+verifier", or a pair of name and options.

    Raises:
        ValueError: unknown name, options or prompt.
    """
    name, options = (spec, {}) if isinstance(spec, str) else (spec[0], dict(spec[1]))
    name, _, argument = str(name).partition(":")
    if name.startswith("likert"):
        options = {"n_samples": samples, "temperature": temperature, **options}
    if argument in ("bare", "guided") and name.startswith("likert"):
        how = {"feedback": False} if argument == "bare" else {"guided": True}
        return build_reward(name, judge, **how, **options)
    if argument and name == "probe":
        options["path"] = argument
    elif argument and name in ("guarded", "contrastive", "ensemble"):
        options["of"] = argument if name != "ensemble" else argument.split("+")
    elif argument:
        options["prompt"] = argument
    return build_reward(name, judge, **options)


def _likert(scale: Literal[5, 10]) -> Callable[..., Reward]:
    def make(judge: Judge | str = "embedded", *, guided: bool = False, **options: Any) -> Reward:
        kind = GuidedLikertReward if guided else LikertReward
        return kind(judge, scale_points=scale, **options)

    return make


def _member(judge: Judge | str, of: str | Mapping[str, Any], prompt: Any = None) -> LatentReward:
    """A member of a composite: a name, or its options with the name under "reward"; a prompt of its own comes first."""
    options = {"reward": of} if isinstance(of, str) else dict(of)
    if prompt is not None and options.get("prompt") is None:
        options["prompt"] = prompt
    reward = build_reward(options.pop("reward", "weighted"), judge, **options)
    if not isinstance(reward, LatentReward):
        raise ValueError(f"{reward.__name__} is sampled; only rewards that are read can be combined")
    return reward


def _guarded(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    gate: str | Mapping[str, Any] | None = None,
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    judge = HFJudge(judge) if isinstance(judge, str) else judge
    return GuardedReward(_member(judge, of, prompt), gate=None if gate is None else _member(judge, gate), **options)


def _contrastive(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    return ContrastiveReward(_member(judge, of, prompt), **options)


def _ensemble(
    judge: Judge | str = "embedded",
    of: Sequence[str | Mapping[str, Any]] = ("weighted", "verifier"),
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    judge = HFJudge(judge) if isinstance(judge, str) else judge
    return EnsembleReward([_member(judge, each, prompt) for each in of], **options)


REWARDS: dict[str, Callable[..., Reward]] = {
    "weighted": ProbabilityWeightedReward,
    "verifier": VerifierReward,
    "cross_layer": CrossLayerReward,
    "likert5": _likert(5),
    "likert10": _likert(10),
    "probe": ProbeReward,
    "guarded": _guarded,
    "contrastive": _contrastive,
    "ensemble": _ensemble,
}
