"""The rewards: callables for TRL's trainers, and `.score` for everything else."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from latent_rewards import readouts
from latent_rewards.files.keys import prompt_key
from latent_rewards.judge import fingerprint
from latent_rewards.judge.hf import HFJudge, Judge, Lens, Need, Reading
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Request
from latent_rewards.judge.requests import read_all

logger = logging.getLogger(__name__)

_live: weakref.WeakValueDictionary[str, Reward] = weakref.WeakValueDictionary()  # names that are taken
_all: weakref.WeakSet[Reward] = weakref.WeakSet()  # what may be read together, copies that were unpickled included


class MissingScoreError(ValueError):
    """A score could not be read, and the caller has no way to leave the row out."""


class Reward:
    """Base of every reward: a plain picklable callable that meets TRL's contract.

    Args:
        judge: a judge, or a model name for `HFJudge`.
        prompt: shipped prompt name, path of a prompt file, or `JudgePrompt`; each reward has its own default.
        name: metric key in the trainer's logs; made unique among live rewards.
        scale: the reward is `scale * score + shift`.
        shift: see `scale`.
        clip: (low, high) applied last.
        on_missing: what a row without a score becomes: "none" (None: GRPO and RLOO leave it out), "raise", or "auto":
            raise under OnlineDPO, which would count None as 0, and None elsewhere.

    Raises:
        ValueError: unknown options, a prompt that the judge cannot read, or labels that do not fit the readout.

    Source of the contract: TRL 1.16, `GRPOTrainer._calculate_rewards`.
    """

    kind: ClassVar[str] = ""
    default_prompt: ClassVar[str] = "weighted"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        prompt: str | Path | JudgePrompt | None = None,
        name: str | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        clip: tuple[float, float] | None = None,
        on_missing: Literal["auto", "none", "raise"] = "auto",
    ) -> None:
        if on_missing not in ("auto", "none", "raise"):
            raise ValueError(f"on_missing must be 'auto', 'none' or 'raise', got {on_missing!r}")
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError(f"clip must be (low, high) with low < high, got {clip}")
        self.judge: Judge = HFJudge(judge) if isinstance(judge, str) else judge
        self.prompt = JudgePrompt.load(prompt if prompt is not None else self.default_prompt)
        self.scale, self.shift, self.clip, self.on_missing = float(scale), float(shift), clip, on_missing
        self.__name__ = name or self._default_name()
        self._prepare()
        self._join()

    def options(self) -> dict[str, Any]:
        """What the scores depend on besides judge, prompt, scale, shift, clip and `on_missing`, as plain data.

        Every class whose constructor takes options of its own says here what they are, and adds those of its base.
        """
        return {}

    @property
    def facts(self) -> dict[str, Any]:
        """All but the judge that the scores depend on, as plain data; asks the judge how its template renders.

        Raises:
            TypeError: a class takes options and does not say which; see `options`.
        """
        for kind in type(self).__mro__[: type(self).__mro__.index(Reward)]:
            if "__init__" in vars(kind) and "options" not in vars(kind):
                raise TypeError(
                    f"{kind.__qualname__} takes options of its own: define `options`, a method that gives them as "
                    "plain data, so that kept scores of two such rewards cannot be mixed up"
                )
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}", "prompt_hash": self.prompt.hash,
            "layout": fingerprint.layout_of(self.judge, self.prompt), "scale": self.scale, "shift": self.shift,
            "clip": None if self.clip is None else [float(x) for x in self.clip], "on_missing": self.on_missing,
            "options": self.options(),
        }  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Hash of the judge's fingerprint, this package's version and `facts`: equal ones give equal scores.

        The name is no part of it. Loads the judge. Caches and manifests keep scores under it.

        Raises:
            TypeError: the judge states no fingerprint, or a class not its options.
        """
        return fingerprint.digest([fingerprint.judge_key(self.judge), fingerprint.software(), self.facts])

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest score that can be, before scale, shift and clip; infinite where there is none."""
        return -np.inf, np.inf

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest reward that can be; None where one of them has no end."""
        with np.errstate(invalid="ignore"):
            ends = np.sort(self._finish(np.array(self.score_range)))
        return (float(ends[0]), float(ends[1])) if np.isfinite(ends).all() else None

    def _default_name(self) -> str:
        suffix = "" if self.prompt.name == self.default_prompt else f"-{self.prompt.name}"
        return f"{self.kind}{suffix}"

    def _prepare(self) -> None:
        """Check prompt and judge against this readout."""

    def _join(self) -> None:
        wanted = self.__name__
        for i in itertools.count(2):
            if self.__name__ in _live:
                gc.collect()  # a trainer that is gone may still hold a reward in a reference cycle
            if _live.get(self.__name__, self) is self:
                break
            self.__name__ = f"{wanted}-{i}"
        _live[self.__name__] = self
        _all.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _all.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.judge!r}, prompt={self.prompt.name!r})"

    def __call__(
        self, prompts: Sequence[Any] | None = None, completions: Sequence[Any] = (), **kwargs: Any
    ) -> list[float | None]:
        """Rewards as TRL wants them.

        Args:
            prompts: B prompts, strings or message lists; may repeat, in any order.
            completions: B completions, strings or message lists.
            **kwargs: dataset columns (B entries each), `trainer_state`, `log_extra`, `log_metric`; others are ignored.

        Returns:
            B floats; None where no score could be read (see `on_missing`).

        Raises:
            MissingScoreError: a score is missing and the caller cannot leave the row out.
            ValueError: a row lacks something the prompt needs; the message has the row number.
        """
        started = time.perf_counter()
        _check_lists(prompts=prompts, completions=completions)
        self._read_together(list(prompts or []), list(completions), kwargs)
        scores, facts = self._score(list(prompts or []), list(completions), kwargs)
        rewards = self._finish(scores)
        missing = np.flatnonzero(np.isnan(rewards))
        no_way_out = "trainer_state" in kwargs and "log_metric" not in kwargs
        if len(missing) and (self.on_missing == "raise" or (self.on_missing == "auto" and no_way_out)):
            raise MissingScoreError(
                f"{self.__name__}: no score for {len(missing)} of {len(rewards)} rows, first row {missing[0]}: "
                f"{facts['reasons'][missing[0]]}"
            )
        if len(missing):
            logger.warning(
                "%s: no score for %d of %d rows; first: %s",
                self.__name__, len(missing), len(rewards), facts["reasons"][missing[0]],
            )  # fmt: skip
        out = [None if np.isnan(r) else float(r) for r in rewards]
        if kwargs.get("log_metric") is not None:
            facts["metrics"] |= group_statistics(list(prompts or []), rewards)
            facts["metrics"]["seconds"] = time.perf_counter() - started
            for key, value in facts["metrics"].items():
                kwargs["log_metric"](f"{self.__name__}/{key}", float(value))
        if kwargs.get("log_extra") is not None:
            kwargs["log_extra"](self.__name__, out)
        return out

    def score(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> np.ndarray:
        """Scores for offline use, scaled and clipped like the reward.

        Args:
            prompts: B strings or message lists.
            completions: B strings or message lists.
            **columns: further slots of the judge prompt, B entries each.

        Returns:
            (B,) float64; NaN where no score could be read.

        Raises:
            TypeError: one text instead of a list.
            ValueError: lengths differ, or a row lacks something the prompt needs; the message has the row number.
        """
        _check_lists(prompts=prompts, completions=completions)
        scores, _ = self._score(list(prompts), list(completions), dict(columns))
        return self._finish(scores)

    def score_with_reasons(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> tuple[np.ndarray, list[str | None]]:
        """As `score`, and for each row without a score why it has none."""
        _check_lists(prompts=prompts, completions=completions)
        scores, facts = self._score(list(prompts), list(completions), dict(columns))
        final = self._finish(scores)
        return final, [why if np.isnan(x) else None for x, why in zip(final, facts["reasons"], strict=True)]

    def to_async(self) -> AsyncReward:
        """The same reward with an async `__call__`, which TRL gathers with the other async rewards."""
        return AsyncReward(self)

    def rows(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One slot mapping per row for the judge prompt.

        Raises:
            ValueError: a column's length differs.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
        given = {"prompt": prompts, "completion": completions}
        for slot in self.prompt.slots:
            if slot in given or columns.get(slot) is None:
                continue
            _check_lists(**{slot: columns[slot]})
            column = list(columns[slot])
            if len(column) != len(completions):
                raise ValueError(f"column {slot!r} has {len(column)} entries for {len(completions)} completions")
            given[slot] = column
        return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]

    def _read_together(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> None:
        """Have the judge read what it will be asked of these rows by other rewards, too."""

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """(B,) scores before scale and clip, and what to log; every kind of reward has its own."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it scores")

    def _finish(self, scores: np.ndarray) -> np.ndarray:
        rewards = scores * self.scale + self.shift
        return rewards if self.clip is None else np.clip(rewards, *self.clip)


class LatentReward(Reward):
    """A reward that is one pure readout of the judge's `Reading`."""

    @property
    def need(self) -> Need:
        """What this readout asks of the forward."""
        return Need(labels=True)

    def readout(self, reading: Reading) -> Tensor:
        """(B,) scores of a reading; rewards that ask for several readings have `scores_of` instead."""
        raise NotImplementedError(f"{type(self).__name__} is no readout of one reading; use scores_of")

    def requests(self, rows: Sequence[Mapping[str, Any]]) -> list[Request]:
        """What the judge has to read to score B rows."""
        return [Request(self.prompt, list(rows), self.need)]

    def scores_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) float64 scores, NaN where there is none, from the readings of `requests(rows)`."""
        scores = self.readout(readings[0])
        return torch.where(torch.isfinite(scores), scores, torch.nan).double().numpy()

    def _prepare(self) -> None:
        missing = {
            "labels": self.need.labels,
            "hidden": bool(self.need.hidden),
            "layer_logits": bool(self.need.layer_logits),
        }
        lacks = sorted(k for k, v in missing.items() if v and k not in self.judge.capabilities)
        if lacks:
            raise ValueError(f"{type(self).__name__} needs {lacks}, which judge {self.judge.name!r} cannot give")
        self.judge.check(self.prompt, self.need)
        self._register()

    def _register(self) -> None:
        register = getattr(self.judge, "register", None)
        if register is not None:
            register(self.prompt, self.need)

    def _read_together(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> None:
        """One forward for all live rewards of this judge: a trainer is about to call them on the same rows.

        Rewards of other prompts cost their questions only. Left alone: rewards that these rows lack a column for, and
        calls outside a trainer, whose rows no other reward may ever see.
        """
        from_trainer = {"trainer_state", "completion_ids", "log_metric"} & columns.keys()
        if not from_trainer or not hasattr(self.judge, "read_many"):
            return
        together: list[Request] = []
        for reward in sorted(_all, key=lambda r: r.__name__):
            if not isinstance(reward, LatentReward) or reward.judge is not self.judge:
                continue
            given = {"prompt", "completion", *reward.prompt.optional, *(k for k, v in columns.items() if v is not None)}
            if set(reward.prompt.slots) <= given:
                together += reward.requests(reward.rows(prompts, completions, columns))
        if len(together) < 2 or not prompts:
            return
        try:
            read_all(self.judge, together)
        except ValueError as err:  # the reward that cannot be read says so itself, if it is called
            logger.debug("reading one reward at a time: %s", err)

    @property
    def values(self) -> tuple[float, ...]:
        """Value of each label of the prompt."""
        assert self.prompt.labels is not None
        return self.prompt.labels.values

    def _label_range(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rows = self.rows(prompts, completions, columns)
        if not rows:
            return np.zeros(0), {"metrics": {}, "reasons": []}
        readings = read_all(self.judge, self.requests(rows))
        mass = readings[0].label_mass
        metrics = {} if mass is None else {"label_mass": float(mass.nanmean())}
        return self.scores_of(rows, readings), {"metrics": metrics, "reasons": reasons_of(readings)}


def bounds_of(reward: Reward) -> tuple[float, float]:
    """The reward's bounds; infinite where it has none."""
    return reward.bounds or (-np.inf, np.inf)


def with_prompt_of(owner: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a reward whose prompt is that of a part of it, a member or a probe.

    Raises:
        ValueError: they ask for another prompt, which would change nothing but its name.
    """
    given, own = options.pop("prompt", None), owner.prompt
    if given is not None and (loaded := JudgePrompt.load(given)).hash != own.hash:
        raise ValueError(
            f"prompt {loaded.name!r} has hash {loaded.hash}, but the {type(owner).__name__} in it reads prompt "
            f"{own.name!r} with hash {own.hash}; leave `prompt` out here, or make that part with it"
        )
    return {**options, "prompt": own}


def reasons_of(readings: Sequence[Reading]) -> list[str]:
    """Why each row has no score, if it has none: what the first reading says that could not read it."""
    every = zip(*(reading.reasons for reading in readings), strict=True)
    return [next((why for why in row if why), "the judge gave NaN") for row in every]


class ProbabilityWeightedReward(LatentReward):
    """Expected rating under the judge's label distribution, in rating points (0..10 with the default prompt).

    Source: Girrbach et al. 2025, eq. 1 (arXiv 2509.24678).
    """

    kind = "weighted"

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest label value."""
        return self._label_range()

    def readout(self, reading: Reading) -> Tensor:
        """(B,) rating points."""
        assert reading.label_logprobs is not None
        return readouts.expected_rating(reading.label_logprobs, self.values)


class VerifierReward(LatentReward):
    """P(yes) to a yes/no question, or its log-odds.

    Args:
        judge: a judge, or a model name.
        output: "p" in [0, 1], renormalised over yes and no, or "log_odds", which keeps resolution where p saturates.
        **options: see `Reward`.

    Source: Girrbach et al. 2025, eq. 2.
    """

    kind = "verifier"
    default_prompt = "verifier"

    def __init__(
        self, judge: Judge | str = "embedded", *, output: Literal["p", "log_odds"] = "p", **options: Any
    ) -> None:
        if output not in ("p", "log_odds"):
            raise ValueError(f"output must be 'p' or 'log_odds', got {output!r}")
        self.output = output
        super().__init__(judge, **options)
        if set(self.values) != {0.0, 1.0}:
            raise ValueError(
                f"VerifierReward needs labels with values 0 and 1; prompt {self.prompt.name!r} has {self.values}"
            )

    def options(self) -> dict[str, Any]:
        """The output."""
        return {"output": self.output}

    @property
    def score_range(self) -> tuple[float, float]:
        """0 to 1; log-odds have no ends."""
        return self._label_range() if self.output == "p" else super().score_range

    def readout(self, reading: Reading) -> Tensor:
        """(B,) probability or nats."""
        assert reading.label_logprobs is not None
        function = readouts.p_yes if self.output == "p" else readouts.log_odds
        return function(reading.label_logprobs, self.values)


class CrossLayerReward(LatentReward):
    """Expected rating of label logits averaged over all layers (uniform weights unless given).

    Args:
        judge: a judge, or a model name.
        lens: "normed" (through the final norm) or "raw" (as the published code does).
        weights: (L+1,) layer weights, or (L,) with `drop_last`; None is uniform.
        drop_last: leave out the last layer, as the published code does.
        **options: see `Reward`.

    Source: Lai et al. 2025 (LAGER).
    """

    kind = "cross_layer"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        lens: Lens = "normed",
        weights: Sequence[float] | None = None,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        if lens not in ("raw", "normed"):
            raise ValueError(f"lens must be 'raw' or 'normed', got {lens!r}")
        self.lens, self.drop_last = lens, drop_last
        self.weights = None if weights is None else [float(w) for w in weights]
        super().__init__(judge, **options)

    def _default_name(self) -> str:
        return super()._default_name() + ("-raw" if self.lens == "raw" else "")

    def options(self) -> dict[str, Any]:
        """Lens and layer weights."""
        return {"lens": self.lens, "weights": self.weights, "drop_last": bool(self.drop_last)}

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest label value."""
        return self._label_range()

    @property
    def need(self) -> Need:
        """Labels on every layer."""
        return Need(labels=True, layer_logits=frozenset({self.lens}))

    def readout(self, reading: Reading) -> Tensor:
        """(B,) rating points."""
        weights = None if self.weights is None else torch.tensor(self.weights)
        logits = reading.layer_label_logits[self.lens]
        return readouts.cross_layer(logits, self.values, weights=weights, drop_last=self.drop_last)


class AsyncReward:
    """Async twin of a reward: the work runs in a thread, so that other async rewards and I/O go on meanwhile."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.__name__ = reward.__name__

    async def __call__(self, *args: Any, **kwargs: Any) -> list[float | None]:
        """As `Reward.__call__`; the trainer's log hooks are called on the event loop's own thread."""
        extra: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        for hook in ("log_extra", "log_metric"):
            if kwargs.get(hook) is not None:
                kwargs[hook] = _defer(extra, kwargs[hook])
        out = await asyncio.to_thread(self.reward, *args, **kwargs)
        for function, values in extra:
            function(*values)
        return out


def _check_lists(**given: Any) -> None:
    """Refuse one text or message where a list of them is due: its letters or keys would be taken for rows."""
    for name, value in given.items():
        if isinstance(value, str | bytes | Mapping):
            raise TypeError(
                f"{name} must be a list with one entry per row, got one {type(value).__name__}: {value!r:.60}"
            )


def _defer(calls: list[tuple[Callable[..., None], tuple[Any, ...]]], function: Callable[..., None]) -> Any:
    return lambda *values: calls.append((function, values))


def group_statistics(prompts: Sequence[Any], rewards: np.ndarray) -> dict[str, float]:
    """How much a batch of rewards tells GRPO; groups are rows with the same prompt content, wherever they stand.

    Args:
        prompts: B prompts.
        rewards: (B,) with NaN for missing ones.

    Returns:
        `spread`: mean within-group standard deviation; `tie_share`: share of same-prompt pairs with equal rewards;
        `flat_groups`: share of groups of two or more whose rewards are all equal (they give GRPO no gradient);
        `missing`: share of rows without reward. NaN where no group has two rewards.
    """
    groups: dict[str, list[float]] = {}
    for prompt, reward in zip(prompts, rewards, strict=True):
        key = prompt_key(prompt)
        groups.setdefault(key, [])
        if not np.isnan(reward):
            groups[key].append(float(reward))
    several = [np.asarray(g) for g in groups.values() if len(g) > 1]
    if not several:
        nan = float("nan")
        return {"spread": nan, "tie_share": nan, "flat_groups": nan, "missing": _share(np.isnan(rewards))}
    pairs = [(g[:, None] == g[None, :])[np.triu_indices(len(g), 1)] for g in several]
    return {
        "spread": float(np.mean([g.std() for g in several])),
        "tie_share": _share(np.concatenate(pairs)),
        "flat_groups": _share(np.array([g.min() == g.max() for g in several])),
        "missing": _share(np.isnan(rewards)),
    }


def _share(flags: np.ndarray) -> float:
    return float(np.mean(flags)) if len(flags) else float("nan")


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


def _likert(scale: Literal[5, 10]) -> Callable[..., Reward]:
    def make(judge: Judge | str = "embedded", *, guided: bool = False, **options: Any) -> Reward:
        from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward

        kind = GuidedLikertReward if guided else LikertReward
        return kind(judge, scale_points=scale, **options)

    return make


def _probe(judge: Judge | str = "embedded", path: str | Path = "embedded", **options: Any) -> Reward:
    from latent_rewards.probes.probe import ProbeReward

    return ProbeReward(judge, path, **options)


def _part(judge: Judge | str, of: str | Mapping[str, Any], prompt: Any = None) -> LatentReward:
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
    from latent_rewards.rewards.guarded import GuardedReward

    judge = HFJudge(judge) if isinstance(judge, str) else judge
    return GuardedReward(_part(judge, of, prompt), gate=None if gate is None else _part(judge, gate), **options)


def _contrastive(
    judge: Judge | str = "embedded",
    of: str | Mapping[str, Any] = "weighted",
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    from latent_rewards.rewards.composite import ContrastiveReward

    return ContrastiveReward(_part(judge, of, prompt), **options)


def _ensemble(
    judge: Judge | str = "embedded",
    of: Sequence[str | Mapping[str, Any]] = ("weighted", "verifier"),
    *,
    prompt: str | Path | JudgePrompt | None = None,
    **options: Any,
) -> Reward:
    from latent_rewards.rewards.composite import EnsembleReward

    judge = HFJudge(judge) if isinstance(judge, str) else judge
    return EnsembleReward([_part(judge, part, prompt) for part in of], **options)


REWARDS: dict[str, Callable[..., Reward]] = {
    "weighted": ProbabilityWeightedReward,
    "verifier": VerifierReward,
    "cross_layer": CrossLayerReward,
    "likert5": _likert(5),
    "likert10": _likert(10),
    "probe": _probe,
    "guarded": _guarded,
    "contrastive": _contrastive,
    "ensemble": _ensemble,
}
