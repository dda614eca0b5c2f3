"""Rewards by name: the one place that turns names and options into rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from latent_rewards.judge.hf import HFJudge, Judge
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.calibrated import CalibratedReward
from latent_rewards.rewards.composite import ContrastiveReward, EnsembleReward
from latent_rewards.rewards.guarded import GuardedReward
from latent_rewards.rewards.latent import CrossLayerReward, LatentReward, ProbabilityWeightedReward, VerifierReward
from latent_rewards.rewards.layer_weights import LayerWeights
from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward
from latent_rewards.rewards.pairwise import PairwiseReward
from latent_rewards.rewards.probe import ProbeReward
from latent_rewards.rewards.reasoned import ReasonedReward
from latent_rewards.rewards.rubric import RubricReward


def build_reward(kind: str, /, judge: Judge | str = "embedded", **options: Any) -> Reward:
    """A reward by its short name, e.g. `build_reward("verifier", judge, output="log_odds", name="sure")`.

    `prompt` of a reward made of others ("guarded", "contrastive", "ensemble") is that of its members, but for a gate.

    Raises:
        ValueError: unknown name or option.
    """
    if kind not in NAMES:
        raise ValueError(f"unknown reward {kind!r}; known are {sorted(NAMES)}")
    try:
        return (REWARDS | AROUND)[kind](judge, **options)
    except TypeError as err:
        raise ValueError(f"reward {kind!r}: {err}") from err


def build_spec(spec: str | tuple[str, Mapping[str, Any]], judge: Judge, *, samples: int, temperature: float) -> Reward:
    """A reward by its short name, with what it needs after a colon (see `parse_reward`), or a pair of name and options.

    Raises:
        ValueError: unknown name, options or prompt.
    """
    name, options = parse_reward(spec)
    if name.startswith("likert"):
        options = {"n_samples": samples, "temperature": temperature, **options}
    return build_reward(name, judge, **options)


class Wanted(NamedTuple):
    """A reward that somebody asked for.

    Attributes:
        own: what they call it.
        reward: its short name, with what it needs after a colon; see `parse_reward`.
        options: further arguments.
    """

    own: str
    reward: str
    options: dict[str, Any]

    @property
    def column(self) -> str:
        """Its own name, fit for a column: "weighted:prompts/mine.yaml" is "weighted-mine"."""
        kind, _, argument = self.own.partition(":")
        return f"{kind}-{Path(argument).stem}" if argument else kind

    def parsed(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments for `build_reward`."""
        return parse_reward((self.reward, self.options))


def parse_reward(spec: str | tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Name and options of a reward by its short name, with what it needs after a colon.

    "weighted", "weighted:rubric" (another prompt, by name or path), "probe:runs/probe" (a saved probe), "likert10:bare"
    (the number without feedback), "likert10:guided" (the number under a choice constraint), "rubric_list:criteria.yaml"
    (criteria for all rows, in a file; another prompt for them is the option "prompt"),
    "guarded:weighted", "contrastive:verifier", "ensemble:weighted+verifier", or a pair of name and options.
    """
    name, options = (spec, {}) if isinstance(spec, str) else (spec[0], dict(spec[1]))
    name, _, argument = str(name).partition(":")
    if not argument:
        return name, options
    if name.startswith("likert") and argument in ("bare", "guided"):
        how = {"feedback": False} if argument == "bare" else {"guided": True}
        return name, {**how, **options}
    if name in ("guarded", "contrastive", "ensemble", "reasoned", "calibrated"):
        return name, options | {"of": argument.split("+") if name == "ensemble" else argument}
    if name == "rubric_list" and argument.endswith((".yaml", ".yml", ".json")):
        return name, options | {"criteria": argument}
    return name, options | {"path" if name == "probe" else "prompt": argument}


def wanted(specs: Iterable[Any] | Mapping[str, Any], *, among: Iterable[str] = ()) -> list[Wanted]:
    """Rewards as they stand in YAML or on a command line.

    Args:
        specs: a mapping of own names to options, of which "reward" names the reward where the own name does not; or a
            list of short names, YAML files of such, mappings of one entry, options with "reward", and (name, options).
        among: names that are known besides those of `REWARDS`.

    Raises:
        ValueError: unknown reward (names the known ones), options that are no mapping, or two of one name.
        OSError: a file that cannot be read.
    """
    entries = [(own, options) for own, options in specs.items()] if isinstance(specs, Mapping) else list(specs)
    out = [one for entry in entries for one in _entry(entry)]
    known = {*NAMES, *among}
    for one in out:
        if one.reward.partition(":")[0] not in known:
            raise ValueError(f"unknown reward {one.reward!r}; known are {sorted(known)}")
    return out


def read_rewards(path: str | Path) -> list[Wanted]:
    """Rewards of a YAML file: what `wanted` takes, or that under the key "rewards".

    Raises:
        ValueError: no YAML of this kind; names the file.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        raw = raw["rewards"] if isinstance(raw, dict) and set(raw) <= {"judge", "rewards"} and "rewards" in raw else raw
        if not isinstance(raw, dict | list) or not raw:
            raise ValueError("expected rewards: a mapping of names to options, or a list")
        return wanted(raw)
    except (ValueError, yaml.YAMLError) as err:
        raise ValueError(f"{path}: {err}") from err


def _entry(entry: Any) -> list[Wanted]:
    if isinstance(entry, str):
        return read_rewards(entry) if entry.endswith((".yaml", ".yml")) and ":" not in entry else [_made(entry, {})]
    if isinstance(entry, Mapping):
        if "reward" in entry:
            return [_made(str(entry["reward"]), {k: v for k, v in entry.items() if k != "reward"})]
        return [one for pair in entry.items() for one in _entry(pair)]
    if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[1], Mapping | None):
        raise ValueError(f"expected a reward and its options as a mapping, got {entry!r}")
    own, options = str(entry[0]), dict(entry[1] or {})
    return [Wanted(own, str(options.pop("reward", own)), options)]


def _made(reward: str, options: dict[str, Any]) -> Wanted:
    return Wanted(reward, reward, options)


def _likert(scale: Literal[5, 10]) -> Callable[..., Reward]:
    def make(judge: Judge | str = "embedded", *, guided: bool = False, **options: Any) -> Reward:
        kind = GuidedLikertReward if guided else LikertReward
        return kind(judge, scale_points=scale, **options)

    return make


def _member(
    judge: Judge | str, of: str | Mapping[str, Any], outer: Mapping[str, Any], prompt: Any = None
) -> LatentReward:
    """A member of a composite: a name, or its options with the name under "reward"; a prompt of its own comes first.

    So does its own treatment of thoughts, else that of the composite, `outer`.
    """
    options = {**outer, **({"reward": of} if isinstance(of, str) else of)}
    if prompt is not None and options.get("prompt") is None:
        options["prompt"] = prompt
    name, options = parse_reward((options.pop("reward", "weighted"), options))
    reward = build_reward(name, judge, **options)
    if not isinstance(reward, LatentReward):
        raise ValueError(f"{reward.__name__} is sampled; only rewards that are read can be combined")
    return reward


def _inner(options: dict[str, Any]) -> dict[str, Any]:
    """Of a composite's options those that its members read by, taken out; a floor stays its own."""
    text = isinstance(options.get("unfinished"), str)
    names = {"reasoning", "opened", "thought_tags", *(["unfinished"] if text else [])} & options.keys()
    return {name: options.pop(name) for name in names}


def _guarded(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    gate: str | Mapping[str, Any] | None = None,
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    judge, inner = HFJudge(judge) if isinstance(judge, str) else judge, _inner(options)
    gated = None if gate is None else _member(judge, gate, inner)
    return GuardedReward(_member(judge, of, inner, prompt), gate=gated, **options)


def _contrastive(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    return ContrastiveReward(_member(judge, of, _inner(options), prompt), **options)


def _ensemble(
    judge: Judge | str = "embedded",
    of: Sequence[str | Mapping[str, Any]] = ("weighted", "verifier"),
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    judge, inner = HFJudge(judge) if isinstance(judge, str) else judge, _inner(options)
    return EnsembleReward([_member(judge, each, inner, prompt) for each in of], **options)


def _cross_layer(
    judge: Judge | str = "embedded", *, weights: str | Path | Sequence[float] | None = None, **options: Any
) -> Reward:
    """`weights` may be the folder of tuned ones."""
    if not isinstance(weights, str | Path):
        return CrossLayerReward(judge, weights=weights, **options)
    judge = HFJudge(judge) if isinstance(judge, str) else judge
    return LayerWeights.load(weights).reward(judge, **options)


def _reasoned(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    *,
    prompt: str | Path | JudgePrompt = "weighted_reasoned",
    **options: Any,
) -> Reward:
    return ReasonedReward(_member(judge, of, _inner(options), prompt), **options)


def _calibrated(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    *,
    calibration: str | Path,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    return CalibratedReward(_member(judge, of, _inner(options), prompt), calibration, **options)


def _pairwise(judge: Judge | str = "embedded", *, by: str | Mapping[str, Any] | None = None, **options: Any) -> Reward:
    judge = HFJudge(judge) if isinstance(judge, str) else judge
    thoughts = {name: value for name, value in options.items() if name in ("reasoning", "opened", "thought_tags")}
    return PairwiseReward(judge, by=None if by is None else _member(judge, by, thoughts), **options)


REWARDS: dict[str, Callable[..., Reward]] = {
    "weighted": ProbabilityWeightedReward,
    "verifier": VerifierReward,
    "cross_layer": _cross_layer,
    "likert5": _likert(5),
    "likert10": _likert(10),
    "probe": ProbeReward,
    "guarded": _guarded,
    "contrastive": _contrastive,
    "ensemble": _ensemble,
    "rubric_list": RubricReward,
    "pairwise": _pairwise,
}
# What is laid around a reward, and by which no file or trainer means a reward by itself.
AROUND: dict[str, Callable[..., Reward]] = {"reasoned": _reasoned, "calibrated": _calibrated}
NAMES = (*REWARDS, *AROUND)
