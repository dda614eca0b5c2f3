"""Rewards by name: the one place that turns names and options into rewards."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from latent_rewards.judge.opening import open_judge
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge
from latent_rewards.rewards import grammar
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.calibrated import CalibratedReward
from latent_rewards.rewards.composite import ContrastiveReward
from latent_rewards.rewards.cross_layer import CrossLayerReward
from latent_rewards.rewards.ensemble import EnsembleReward
from latent_rewards.rewards.grammar import Wanted as Wanted
from latent_rewards.rewards.grammar import parse_reward as parse_reward
from latent_rewards.rewards.guarded import GuardedReward
from latent_rewards.rewards.latent import LatentReward, ProbabilityWeightedReward, VerifierReward
from latent_rewards.rewards.layer_weights import LayerWeights
from latent_rewards.rewards.likelihood import LikelihoodReward
from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward
from latent_rewards.rewards.pairwise import PairwiseReward
from latent_rewards.rewards.panel import PanelReward
from latent_rewards.rewards.probe import ProbeReward
from latent_rewards.rewards.reasoned import ReasonedReward
from latent_rewards.rewards.revised import RevisedReward
from latent_rewards.rewards.rubric import RubricReward
from latent_rewards.rewards.steps import StepReward


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
        raise ValueError(f"reward {kind!r}: {_told(err, kind)}") from err


def _told(err: TypeError, kind: str) -> str:
    """The error; of an unknown option, which ones there are."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(err))
    if found is None:
        return str(err)
    maker = (REWARDS | AROUND)[kind]
    owner = maker if isinstance(maker, type) else next((c for c in _subclasses(Reward) if c.kind == kind), LatentReward)
    makers: list[Callable[..., Any]] = [vars(c)["__init__"] for c in owner.__mro__[:-1] if "__init__" in vars(c)]
    known = {
        p.name for m in (*makers, maker) for p in inspect.signature(m).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in ("self", "judge")
    }  # fmt: skip
    near = difflib.get_close_matches(found[1], known, 1)
    return f"no option {found[1]!r}{f', perhaps {near[0]!r}' if near else ''}; there are {', '.join(sorted(known))}"


def _subclasses(cls: type[Reward]) -> Iterator[type[Reward]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def build_spec(spec: str | tuple[str, Mapping[str, Any]], judge: Judge, *, samples: int, temperature: float) -> Reward:
    """A reward by its short name, with what it needs after a colon (see `parse_reward`), or a pair of name and options.

    Raises:
        ValueError: unknown name, options or prompt.
    """
    name, options = parse_reward(spec)
    if name.startswith("likert"):
        options = {"n_samples": samples, "temperature": temperature, **options}
    return build_reward(name, judge, **options)


def wanted(specs: Iterable[object] | Mapping[str, object], *, among: Iterable[str] = ()) -> list[Wanted]:
    """Rewards as they stand in YAML or on a command line; see `grammar.wanted`.

    Args:
        specs: as there.
        among: names that are known besides those of `REWARDS`.
    """
    return grammar.wanted(specs, {*NAMES, *among})


def read_rewards(path: str | Path) -> list[Wanted]:
    """Rewards of a YAML file; see `grammar.read_rewards`."""
    return grammar.read_rewards(path, NAMES)


def _likert(scale: Literal[5, 10]) -> Callable[..., Reward]:
    def make(judge: Judge | str = "embedded", *, guided: bool = False, **options: Any) -> Reward:
        kind = GuidedLikertReward if guided else LikertReward
        return kind(judge, scale_points=scale, **options)

    return make


def _member(
    judge: Judge | str, of: str | Mapping[str, Any], outer: Mapping[str, Any], prompt: Any = None
) -> LatentReward:
    """A member of a composite: a name, or its options with the name under "reward"; a prompt of its own comes first.

    So does its own treatment of thoughts, else that of the composite, `outer`; and its own "judge", see `open_judge`.
    """
    options = {**outer, **({"reward": of} if isinstance(of, str) else of)}
    judge = open_judge(options.pop("judge", judge))
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
    names = {"question", "reasoning", "opened", "thought_tags", *(["unfinished"] if text else [])} & options.keys()
    return {name: options.pop(name) for name in names}


def _guarded(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    gate: str | Mapping[str, Any] | None = None,
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    judge, inner = open_judge(judge), _inner(options)
    own = {name: value for name, value in inner.items() if name != "question"}  # a gate asks its own
    gated = None if gate is None else _member(judge, gate, own)
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
    judges: Sequence[Judge | str | Mapping[str, Any]] = (),
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    """`judges` are further ones, each of which reads all members, too."""
    if isinstance(of, str | Mapping) or isinstance(judges, str | Mapping):
        raise ValueError("`of` is a list of rewards and `judges` a list of judges")
    jury, inner = [open_judge(judge), *map(open_judge, judges)], _inner(options)
    return EnsembleReward([_member(one, each, inner, prompt) for one in jury for each in of], **options)


def _cross_layer(
    judge: Judge | str = "embedded", *, weights: str | Path | Sequence[float] | None = None, **options: Any
) -> Reward:
    """`weights` may be the folder of tuned ones."""
    if not isinstance(weights, str | Path):
        return CrossLayerReward(judge, weights=weights, **options)
    judge = open_judge(judge)
    return LayerWeights.load(weights).reward(judge, **options)


def _written(kind: Callable[..., Reward], default: str) -> Callable[..., Reward]:
    """A reward whose judge writes something first; its member's prompt has a slot for that."""

    def make(
        judge: Judge | str = "embedded",
        of: str | Mapping[str, Any] = "weighted",
        *,
        prompt: str | Path | JudgePrompt = default,
        **options: Any,
    ) -> Reward:
        return kind(_member(judge, of, _inner(options), prompt), **options)

    return make


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
    judge = open_judge(judge)
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
    "steps": StepReward,
    "likelihood": LikelihoodReward,
    "panel": PanelReward,
}
# What is laid around a reward, and by which no file or trainer means a reward by itself.
AROUND: dict[str, Callable[..., Reward]] = {
    "reasoned": _written(ReasonedReward, "weighted_reasoned"), "calibrated": _calibrated,
    "revised": _written(RevisedReward, "weighted_reference"),
}  # fmt: skip
NAMES = (*REWARDS, *AROUND)
