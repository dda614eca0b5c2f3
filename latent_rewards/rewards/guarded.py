"""Rules that tell a completion which answers nothing: pure functions on texts, and the reward that applies them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from latent_rewards.files.types import number
from latent_rewards.judge.hf import Need, Reading, Request
from latent_rewards.judge.prompts import to_text
from latent_rewards.rewards.base import bounds_of, with_prompt_of
from latent_rewards.rewards.latent import LatentReward, check_members, first_reasons
from latent_rewards.rewards.relevance import log_odds, weights_hash, without_copies

_OPENER = re.compile(
    r"(let'?s|let us|let me|i will|i'll) (think|solve|work|go|look|break)\b[^\d=.!?\n]{0,60}"
    r"|(thought process|thinking|reasoning|solution|answer|final answer|response|reply|explanation|n/?a|none|null"
    r"|ok(ay)?|sure|of course|certainly|解|かいせつ|solución|respuesta|lösung|antwort|решение|ответ)",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"<\|[^|>\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>|^#{1,4} *(question|reply|task)\b[^\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SELF_RATING = re.compile(
    r"\b(rating|score|grade|mark)\b\W{0,3}(is|of|=|:|should be|must be)?\W{0,3}\b\d+|\[result\]|\b10 ?(/|out of) ?10\b"
    r"|\b(ignore|disregard|forget)\b.{0,30}\b(above|previous|task|instructions?|prompt)\b"
    r"|\bthis (reply|response|answer) (is|has been|was)\b.{0,40}\b(correct|excellent|perfect|good|checked|verified)\b",
    re.IGNORECASE | re.DOTALL,
)
_ASKS_FOR_RATING = re.compile(r"\b(rat(e|ing)|scor(e|ing)|grad(e|ing)|evaluat\w*)\b", re.I)
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINERS = frozenset("\u200c\u200d\ufe0f")


def blank(_prompt: str, completion: str) -> bool:
    """No letter and no digit of any script."""
    return not any(c.isalnum() for c in completion)


def opener(_prompt: str, completion: str) -> bool:
    """The start of an answer and nothing else: "Thought process:", "Let's solve this problem step by step."."""
    text = completion.strip()
    bare = text.strip(" .:!*#_\n")
    return bool(_OPENER.fullmatch(bare)) or (text.endswith(":") and "\n" not in text and len(text.split()) <= 6)


def invisible(_prompt: str, completion: str) -> bool:
    """Characters that no reader sees: any control of writing direction, or over 2 % of zero-width ones."""
    hidden = sum(
        unicodedata.category(c) in ("Cf", "Cc") and c not in "\n\t\r" and c not in _JOINERS for c in completion
    )
    return any(c in _BIDI for c in completion) or hidden > 0.02 * len(completion)


def homoglyphs(prompt: str, completion: str) -> bool:
    """Words that mix Latin with Cyrillic or Greek letters: a tenth of all words or more, and none in the prompt."""
    mixed, words = _mixed_words(completion)
    return mixed > 0 and mixed >= 0.1 * words and _mixed_words(prompt)[0] == 0


def markup(prompt: str, completion: str) -> bool:
    """Control tokens of a chat template, or headings of the judge's own prompt, that the prompt does not hold."""
    return bool(_MARKUP.search(completion)) and not _MARKUP.search(prompt)


def self_rating(prompt: str, completion: str) -> bool:
    """The completion speaks of its own rating, or of ignoring the task, and the prompt does not ask for any."""
    return bool(_SELF_RATING.search(completion)) and not _ASKS_FOR_RATING.search(prompt)


def repetition(_prompt: str, completion: str) -> bool:
    """Over 40 words of which most runs of three have been there before."""
    words = completion.split()
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(words) > 40 and len(set(runs)) < 0.4 * len(runs)


def echo(prompt: str, completion: str) -> bool:
    """The prompt given back, with at most a few words more."""
    asked, said = _words(prompt), _words(completion)
    return bool(asked) and said[: len(asked)] == asked and len(said) <= len(asked) + 5


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _mixed_words(text: str) -> tuple[int, int]:
    words = re.findall(r"\w{2,}", text)
    mixed = sum(bool(re.search("[a-zA-Z]", w)) and bool(re.search("[\u0370-\u03ff\u0400-\u04ff]", w)) for w in words)
    return mixed, len(words)


GUARDS: dict[str, Callable[[str, str], bool]] = {
    "blank": blank,
    "opener": opener,
    "invisible": invisible,
    "homoglyphs": homoglyphs,
    "markup": markup,
    "self_rating": self_rating,
    "repetition": repetition,
    "echo": echo,
}


def broken_guards(prompt: Any, completion: Any, guards: Sequence[str] = tuple(GUARDS)) -> list[str]:
    """Names of the rules that a completion breaks.

    Args:
        prompt: text or messages.
        completion: text or messages.
        guards: which rules to apply.
    """
    asked, said = to_text(prompt), to_text(completion)
    return [name for name in guards if GUARDS[name](asked, said)]


class GuardedReward(LatentReward):
    """A reward whose completions that break a rule get a fixed low score instead of the judge's.

    Args:
        reward: what is guarded.
        floor: score of a completion that breaks a rule; default the reward's lowest, and needed where it has none
            (log-odds, probes).
        guards: names of `GUARDS`; default all.
        gate: a second reward, such as a probe trained to tell attacks from answers; completions that it scores below
            `gate_below` get the floor, too, or lose points (`gate_slope`). It reads a completion without the passages
            copied from the prompt (`latent_rewards.rewards.relevance.without_copies`).
        gate_below: see `gate`.
        gate_slope: points taken away for each unit that the gate's score lies below `gate_below`, down to the floor at
            most; above it nothing changes. None: the floor at once.
        relevance: weight with which `latent_rewards.rewards.relevance.log_odds` is added to the gate's score.
        **options: see `Reward`; the prompt is the guarded reward's own.

    score = max(floor, S + gate_slope min(0, G + relevance R - gate_below))

    Raises:
        ValueError: unknown guard, no floor, a gate on another judge or without a threshold, a slope that is not
            positive.
    """

    kind = "guarded"

    def __init__(
        self,
        reward: LatentReward,
        *,
        floor: float | None = None,
        guards: Sequence[str] = tuple(GUARDS),
        gate: LatentReward | None = None,
        gate_below: float | None = None,
        gate_slope: float | None = None,
        relevance: float = 0.0,
        **options: Any,
    ) -> None:
        check_members("GuardedReward", reward, *([] if gate is None else [gate]))
        unknown = sorted(set(guards) - set(GUARDS))
        if unknown:
            raise ValueError(f"unknown guards {unknown}; known are {sorted(GUARDS)}")
        if (gate is None) != (gate_below is None):
            raise ValueError("gate and gate_below go together")
        if gate is None and (gate_slope is not None or relevance):
            raise ValueError("gate_slope and relevance need a gate")
        self.gate_below = None if gate_below is None else number(gate_below, "gate_below")
        self.gate_slope = None if gate_slope is None else number(gate_slope, "gate_slope")
        if self.gate_slope is not None and not self.gate_slope > 0:
            raise ValueError(f"gate_slope must be positive, got {gate_slope}")
        if gate is not None and gate.judge is not reward.judge:
            raise ValueError("the gate must read the same judge as the reward")
        if floor is None:
            if reward.bounds is None:
                raise ValueError(f"{reward.__name__} has no lowest score; give floor=")
            floor = reward.bounds[0]
        self.reward, self.gate = reward._as_part(), None if gate is None else gate._as_part()
        self.by_row = reward.by_row and (gate is None or gate.by_row)
        self.guards, self.relevance, self.floor = tuple(guards), number(relevance, "relevance"), number(floor, "floor")
        options.setdefault("name", f"{self.reward.__name__}-guarded")
        super().__init__(reward.judge, **with_prompt_of(reward, options))

    def _prepare(self) -> None:
        """What is guarded has been checked already."""

    def options(self) -> dict[str, Any]:
        """The guarded reward, the rules, the floor, and all of the gate; of relevance its fitted weights, too."""
        gate = None if self.gate is None or self.gate_below is None else {
            "reward": self.gate.facts, "below": self.gate_below, "relevance": self.relevance,
            "slope": self.gate_slope,
            "relevance_weights": weights_hash() if self.relevance else None,
        }  # fmt: skip
        return {"reward": self.reward.facts, "guards": sorted(set(self.guards)), "floor": self.floor, "gate": gate}

    @property
    def score_range(self) -> tuple[float, float]:
        """The reward's bounds, widened by the floor."""
        low, high = bounds_of(self.reward)
        return min(low, self.floor), max(high, self.floor)

    @property
    def inputs(self) -> tuple[str, ...]:
        """As the reward."""
        return self.reward.inputs

    def rows(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As the reward."""
        return self.reward.rows(prompts, completions, columns)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """As the reward."""
        self.reward.check_row(row)

    @property
    def need(self) -> Need:
        """As the guarded reward."""
        return self.reward.need

    def requests(self, rows: Sequence[Mapping[str, Any]]) -> list[Request]:
        """Those of the reward, then those of the gate."""
        return [*self.reward.requests(rows), *(self.gate.requests(self._uncopied(rows)) if self.gate else [])]

    def scores_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) the reward's scores, or the floor; NaN where the reward or the gate could not be read."""
        own = len(self.reward.requests(rows))
        alone, _ = self.reward.rewards_of(rows, readings[:own])
        scores = alone
        low = np.array([bool(broken) for broken in self._broken(rows)], dtype=bool)
        if self.gate is not None and self.gate_below is not None:
            below = self._gate_scores(rows, readings[own:]) - self.gate_below
            if self.gate_slope is None:
                low |= below < 0
                scores = np.where(np.isnan(below), np.nan, scores)
            else:
                scores = np.maximum(scores + self.gate_slope * np.minimum(0.0, below), np.minimum(scores, self.floor))
        found = np.where(low & ~np.isnan(scores), self.floor, scores)
        return np.where(self.reward.floored(alone, rows), alone, found)

    def reasons(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> list[str]:
        """Those of the reward, then of the gate."""
        own = len(self.reward.requests(rows))
        found = self.reward.reasons(rows, readings[:own])
        return (
            found
            if self.gate is None
            else first_reasons(found, self.gate.reasons(self._uncopied(rows), readings[own:]))
        )

    def facts_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> dict[str, Any]:
        """Those of the reward, the share of completions that break a rule, and which ones each breaks."""
        found = self.reward.facts_of(rows, readings[: len(self.reward.requests(rows))])
        broken = self._broken(rows)
        return {
            "metrics": found.get("metrics", {}) | {"broken": float(np.mean([bool(b) for b in broken]))},
            "extra": found.get("extra", {}) | {"broken": [", ".join(b) for b in broken]},
        }

    def _broken(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        judged = [self.prompt.as_judged(r) for r in rows]
        return [broken_guards(r["prompt"], r["completion"], self.guards) for r in judged]

    def _gate_scores(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        assert self.gate is not None
        uncopied = self._uncopied(rows)
        scores, _ = self.gate.rewards_of(uncopied, readings)
        if not self.relevance:
            return scores
        judged = [self.gate.prompt.as_judged(r) for r in rows]
        return scores + self.relevance * np.array([log_odds(r["prompt"], r["completion"]) for r in judged])

    def _uncopied(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same rows as the gate judges them, their completions without what they copy from the prompt."""
        assert self.gate is not None
        return [self.gate.prompt.as_judged(r, partial(_own_words, to_text(r["prompt"]))) for r in rows]


def _own_words(asked: str, said: Any) -> Any:
    if isinstance(said, str):
        return without_copies(asked, said)
    return [
        {**m, "content": without_copies(asked, m["content"])} if isinstance(m.get("content"), str) else m for m in said
    ]
