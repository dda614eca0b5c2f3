"""The rewards: callables for TRL's trainers, and `.score` for everything else."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from latent_rewards import compat
from latent_rewards.files.types import check_lists, number, slot_rows
from latent_rewards.judge import fingerprint
from latent_rewards.judge.opening import open_judge
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.questions import with_question
from latent_rewards.judge.reading import Judge
from latent_rewards.judge.thoughts import UNFINISHED
from latent_rewards.rewards.group_statistics import group_statistics

logger = logging.getLogger(__name__)

# Names that are taken. Of the whole process, since a trainer's rewards may have several judges and still need one key
# each in its logs; nothing but the name is looked up here.
_live: weakref.WeakValueDictionary[str, Reward] = weakref.WeakValueDictionary()

COUNTED = "; this trainer counts None as 0: on_missing='none' lets it, unfinished= is for replies cut off in a thought"


class MissingScoreError(ValueError):
    """A score could not be read, and the caller has no way to leave the row out."""


class Reward:
    """Base of every reward: a plain picklable callable that meets TRL's contract.

    Args:
        judge: a judge, or a model name for `HFJudge`; rewards that give the same name share the judge.
        prompt: shipped prompt name, path of a prompt file, or `JudgePrompt`; each reward has its own default.
        question: asked instead of the prompt's own, in plain words: "Is the reply polite?"; see
            `latent_rewards.judge.questions`.
        name: metric key in the trainer's logs; made unique among live rewards.
        scale: the reward is `scale * score + shift`.
        shift: see `scale`.
        clip: (low, high) applied last.
        reasoning: what the judge sees of a reply that holds a thought: "strip" its answer (the default), "keep" all of
            it, "only" the thought; see `latent_rewards.judge.thoughts`.
        unfinished: reward of a reply that ends inside its thought: None is no score (see `on_missing`), a number that
            reward, "keep" judges the text as it is.
        thought_tags: pairs of an opening and a closing tag that surround thoughts, besides the known ones.
        opened: completions are known to begin inside a thought, which the policy's chat template opened.
        on_missing: what a row without a score becomes: "none" (None: GRPO and RLOO leave it out where every reward of
            the trainer gives None), "raise", or "auto": raise under OnlineDPO and TRL before 1.6, which count None as
            0, and None elsewhere.

    Attributes:
        by_row: a row's score depends on that row alone, not on others of the same prompt; what is made of rewards is
            so where all of them are.

    Raises:
        ValueError: unknown options, a prompt that the judge cannot read, or labels that do not fit the readout.

    Source of the contract: TRL 1.16, `GRPOTrainer._calculate_rewards`.
    """

    kind: ClassVar[str] = ""
    default_prompt: ClassVar[str] = "weighted"
    by_row: bool = True

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        prompt: str | Path | JudgePrompt | None = None,
        question: str | None = None,
        name: str | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        clip: tuple[float, float] | None = None,
        on_missing: Literal["auto", "none", "raise"] = "auto",
        reasoning: Literal["strip", "keep", "only"] | None = None,
        unfinished: float | Literal["none", "keep"] | None = None,
        thought_tags: Sequence[tuple[str, str]] = (),
        opened: bool | None = None,
    ) -> None:
        if on_missing not in ("auto", "none", "raise"):
            raise ValueError(f"on_missing must be 'auto', 'none' or 'raise', got {on_missing!r}")
        ends = (-np.inf, np.inf) if clip is None else [number(x, "an end of clip", finite=False) for x in clip]
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise ValueError(f"clip must be (low, high) with low < high, got {clip}")
        self.judge: Judge = open_judge(judge)
        self.prompt = JudgePrompt.load(prompt if prompt is not None else self.default_prompt)
        if question is not None:
            self.prompt = with_question(self.prompt, question)
        if isinstance(unfinished, str) and unfinished not in ("none", "keep"):
            raise ValueError(f"unfinished must be None, 'none', 'keep' or a number, got {unfinished!r}")
        self.prompt = self.prompt.with_thoughts(
            reasoning, thought_tags, keep_unfinished=unfinished == "keep", opened=opened
        )
        self.floor_unfinished = float(unfinished) if isinstance(unfinished, int | float) else None
        self.scale, self.shift = number(scale, "scale"), number(shift, "shift")
        self.clip, self.on_missing = None if clip is None else (ends[0], ends[1]), on_missing
        self.__name__ = self._asked_name = name or self._default_name()
        self._prepare()
        self._take_name()

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
            "class": self._class_key(), "prompt_hash": self.prompt.hash,
            "layout": fingerprint.layout_of(self.judge, self.prompt), "scale": self.scale, "shift": self.shift,
            "clip": None if self.clip is None else [float(x) for x in self.clip], "on_missing": self.on_missing,
            "options": self.options(),
        } | ({} if self.floor_unfinished is None else {"unfinished": self.floor_unfinished})  # fmt: skip

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
            floor = [] if self.floor_unfinished is None else [self.floor_unfinished]
            ends = np.sort([*self._finish(np.array(self.score_range)), *floor])[[0, -1]]
        return (float(ends[0]), float(ends[1])) if np.isfinite(ends).all() else None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that a row supplies: the prompt's slots."""
        return self.prompt.slots

    @property
    def required(self) -> tuple[str, ...]:
        """Those of `inputs` that no row may lack."""
        return tuple(name for name in self.inputs if name not in self.prompt.optional)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raise ValueError where a row cannot be scored for what it holds; see `JudgePrompt.render`."""
        self.prompt.render(row)

    @classmethod
    def _class_key(cls) -> str:
        """One of ours by its name alone, so that kept scores outlive a move from one module to another."""
        ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        return cls.__qualname__ if ours else f"{cls.__module__}.{cls.__qualname__}"

    def _default_name(self) -> str:
        suffix = "" if self.prompt.name == self.default_prompt else f"-{self.prompt.name}"
        return f"{self.kind}{suffix}"

    def _prepare(self) -> None:
        """Check prompt and judge against this readout."""

    def _take_name(self) -> None:
        if self.__name__ in _live:
            gc.collect()  # a trainer that is gone may still hold a reward in a reference cycle
        for i in itertools.count(2):
            if _live.get(self.__name__, self) is self:
                break
            self.__name__ = f"{self._asked_name}-{i}"
        _live[self.__name__] = self

    def _as_part(self) -> Self:
        """A copy that holds no name, for rewards made of this one: its name stays its own, or is free when it goes."""
        part = copy.copy(self)
        part.__name__ = self._asked_name
        return part

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
        check_lists(prompts=prompts, completions=completions)
        elsewhere = self._read_together(list(prompts or []), list(completions), kwargs)
        rewards, facts = self._rewards(list(prompts or []), list(completions), kwargs)
        missing = np.flatnonzero(np.isnan(rewards))
        no_way_out = "trainer_state" in kwargs and ("log_metric" not in kwargs or compat.counts_missing())
        if len(missing) and (self.on_missing == "raise" or (self.on_missing == "auto" and no_way_out)):
            raise MissingScoreError(
                f"{self.__name__}: no score for {len(missing)} of {len(rewards)} rows, first row {missing[0]}: "
                f"{facts['reasons'][missing[0]]}" + COUNTED * no_way_out
            )
        if len(missing):
            logger.warning(
                "%s: no score for %d of %d rows; first: %s",
                self.__name__, len(missing), len(rewards), facts["reasons"][missing[0]],
            )  # fmt: skip
        out = [None if np.isnan(r) else float(r) for r in rewards]
        if kwargs.get("log_metric") is not None:
            facts["metrics"] |= group_statistics(list(prompts or []), rewards)
            cut = [self.prompt.ends_in_thought(c) for c in completions]
            facts["metrics"]["unfinished"] = float(np.mean(cut)) if cut else 0.0
            facts["metrics"]["seconds"] = time.perf_counter() - started + elsewhere
            for key, value in facts["metrics"].items():
                kwargs["log_metric"](f"{self.__name__}/{key}", float(value))
        if kwargs.get("log_extra") is not None:
            for key, column in facts.get("extra", {}).items():
                kwargs["log_extra"](f"{self.__name__}/{key}", column)
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
        check_lists(prompts=prompts, completions=completions)
        return self._rewards(list(prompts), list(completions), dict(columns))[0]

    def score_with_reasons(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> tuple[np.ndarray, list[str | None]]:
        """As `score`, and for each row without a score why it has none."""
        check_lists(prompts=prompts, completions=completions)
        final, facts = self._rewards(list(prompts), list(completions), dict(columns))
        return final, [why if np.isnan(x) else None for x, why in zip(final, facts["reasons"], strict=True)]

    def to_async(self) -> AsyncReward:
        """The same reward with an async `__call__`, which TRL gathers with the other async rewards."""
        return AsyncReward(self)

    def rows(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One slot mapping per row for the judge prompt.

        Raises:
            ValueError: a column's length differs.
        """
        return slot_rows(prompts, completions, columns, self.inputs)

    def _read_together(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> float:
        """Have the judge read what it will be asked of these rows by other rewards, too.

        Returns:
            Seconds to add to those of this call, so that each reward answers for its part of a shared forward.
        """
        return 0.0

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """(B,) scores before scale and clip, and what to log; every kind of reward has its own."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it scores")

    def _rewards(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """(B,) rewards, and what to log; an unfinished thought is the reason whatever became of its row."""
        scores, facts = self._score(prompts, completions, columns)
        facts["reasons"] = self.reasons_first(scores, facts["reasons"], completions)
        return self.finish(scores, facts["reasons"]), facts

    def reasons_first(
        self, scores: np.ndarray, reasons: Sequence[str | None], completions: Sequence[Any]
    ) -> list[str | None]:
        """(B,) why rows have no score: that a reply ends inside its thought comes before what else is said of it."""
        out = list(reasons)
        if self.prompt.unfinished == "none":
            for i in np.flatnonzero(np.isnan(scores)).tolist():
                if self.prompt.ends_in_thought(completions[i]):
                    out[i] = UNFINISHED
        return out

    def finish(self, scores: np.ndarray, reasons: Sequence[str | None]) -> np.ndarray:
        """(B,) rewards: scores scaled and clipped, and the floor for replies that end inside their thought."""
        rewards = self._finish(scores)
        if self.floor_unfinished is None:
            return rewards
        cut = np.array([UNFINISHED in (why or "") for why in reasons], dtype=bool)
        return np.where(cut & np.isnan(rewards), self.floor_unfinished, rewards)

    def _finish(self, scores: np.ndarray) -> np.ndarray:
        rewards = scores * self.scale + self.shift
        return rewards if self.clip is None else np.clip(rewards, *self.clip)


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

    # TRL < 1.15 asks `inspect.iscoroutinefunction`, which does not look at `__call__`, but takes what has these for a
    # function. (A partial of a function would do, too, but TRL from 1.9 on then takes that function's name.)
    __code__, __defaults__, __kwdefaults__ = __call__.__code__, None, None


def bounds_of(reward: Reward) -> tuple[float, float]:
    """The reward's bounds; infinite where it has none."""
    return reward.bounds or (-np.inf, np.inf)


def with_prompt_of(owner: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a reward whose prompt is that of a part of it, a member or a probe.

    Raises:
        ValueError: they ask for another prompt, which would change nothing but its name.
    """
    lost = sorted(key for key in ("reasoning", "thought_tags", "opened") if options.get(key))
    lost += ["question"] if options.get("question") is not None else []
    lost += ["unfinished"] if options.get("unfinished") == "keep" else []
    if lost == ["question"] and not isinstance(owner, Reward):
        raise ValueError(
            f"a {type(owner).__name__} answers no question but that of its own prompt {owner.prompt.name!r}"
        )
    if lost and isinstance(owner, Reward):
        raise ValueError(f"give {lost} to the {type(owner).__name__} in it, which is what reads")
    given, own = options.pop("prompt", None), owner.prompt
    if given is not None and (loaded := JudgePrompt.load(given)).hash != own.hash:
        raise ValueError(
            f"prompt {loaded.name!r} has hash {loaded.hash}, but the {type(owner).__name__} in it reads prompt "
            f"{own.name!r} with hash {own.hash}; leave `prompt` out here, or make that part with it"
        )
    return {**options, "prompt": own}


def _defer(calls: list[tuple[Callable[..., None], tuple[Any, ...]]], function: Callable[..., None]) -> Any:
    return lambda *values: calls.append((function, values))
