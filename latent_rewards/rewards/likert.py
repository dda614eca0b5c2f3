"""The baseline that latent rewards are measured against: a judge that writes a rating."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latent_rewards.files.types import number, whole
from latent_rewards.judge.hf import Judge, Reading
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.latent import LatentReward


class LikertReward(Reward):
    """Mean of sampled ratings: the judge writes feedback and a whole number, or the number alone.

    Args:
        judge: a judge, or a model name.
        scale_points: 5 or 10, choosing the shipped prompt; ignored when `prompt` is given.
        feedback: write feedback first; False asks for the bare number.
        temperature: of sampling; 0 is greedy.
        n_samples: answers per completion; the reward is the mean of those that parse.
        max_new_tokens: longest answer; default 160 with feedback, 8 without.
        seed: answers depend on it and on what is judged, on nothing else.
        statistic: the score is the "mean" of the ratings, or the "one" that was sampled first: what a judge gives that
            is asked once. Two rewards on one judge that differ in this alone share their samples.
        **options: see `Reward`. An answer that does not parse is no rating; a row with none is None.

    Source: the Likert baseline of Girrbach et al. 2025, section 3.1 (temperature 0.7, 10 samples).
    """

    kind = "likert"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        scale_points: Literal[5, 10] = 10,
        feedback: bool = True,
        temperature: float = 0.7,
        n_samples: int = 1,
        max_new_tokens: int | None = None,
        seed: int = 0,
        statistic: Literal["mean", "one"] = "mean",
        **options: Any,
    ) -> None:
        if scale_points not in (5, 10):
            raise ValueError(f"scale_points must be 5 or 10, got {scale_points!r}")
        self.temperature, self.seed = number(temperature, "temperature"), whole(seed, "seed")
        self.n_samples = whole(n_samples, "n_samples")
        if self.n_samples < 1 or self.temperature < 0:
            raise ValueError(f"need n_samples >= 1 and temperature >= 0, got {n_samples} and {temperature}")
        if statistic not in ("mean", "one"):
            raise ValueError(f"statistic must be 'mean' or 'one', got {statistic!r}")
        self.statistic = statistic
        self.max_new_tokens = max_new_tokens or (160 if feedback else 8)
        shipped = f"likert{scale_points}" + ("" if feedback else "_bare")
        super().__init__(judge, **{**options, "prompt": options.get("prompt") or shipped})

    def _default_name(self) -> str:
        return self.prompt.name

    def options(self) -> dict[str, Any]:
        """How answers are drawn and put together."""
        keys = ("temperature", "n_samples", "max_new_tokens", "seed", "statistic")
        return {key: getattr(self, key) for key in keys}

    @property
    def score_range(self) -> tuple[float, float]:
        """The prompt's scale."""
        assert self.prompt.scale is not None
        return float(self.prompt.scale[0]), float(self.prompt.scale[1])

    def _prepare(self) -> None:
        if self.prompt.kind != "generate":
            raise ValueError(
                f"LikertReward needs a prompt of kind 'generate'; {self.prompt.name!r} is {self.prompt.kind!r}"
            )
        if self.prompt.pattern is None:
            raise ValueError(f"LikertReward needs a rating: prompt {self.prompt.name!r} has no 'pattern' and 'scale'")
        if "generate" not in self.judge.capabilities:
            raise ValueError(f"judge {self.judge.name!r} cannot generate, which LikertReward needs")

    def sample(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> np.ndarray:
        """(B, n_samples) ratings, NaN where an answer does not parse."""
        return self._sample(list(prompts), list(completions), columns)

    def _sample(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> np.ndarray:
        rows = self.rows(prompts, completions, columns)
        answers = self.judge.generate(
            self.prompt, rows, n=self.n_samples, temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )  # fmt: skip
        ratings = [[parse_rating(text, self.prompt) for text in row] for row in answers]
        out = np.array([[np.nan if r is None else r for r in row] for row in ratings], dtype=np.float64)
        return out.reshape(len(rows), self.n_samples)

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        ratings = self._sample(prompts, completions, columns)
        parsed = ~np.isnan(ratings)
        total, count = np.where(parsed, ratings, 0.0).sum(1), parsed.sum(1)
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        if self.statistic == "one":
            means = ratings[:, 0]
        metrics = {"parsed": float(parsed.mean())} if parsed.size else {}
        return means, {"metrics": metrics, "reasons": ["no answer held a rating"] * len(means)}


class GuidedLikertReward(LatentReward):
    """Mean of ratings sampled under a choice constraint, as engines offer it ("guided choice"): every answer parses.

    The judge may only answer with a label, so its ratings follow p(label)^(1/temperature), renormalised over the
    labels; they are drawn from the exact label probabilities, at the price of one forward whatever `n_samples` is.

    Args:
        judge: a judge, or a model name.
        scale_points: 5 or 10, choosing the shipped prompt; ignored when `prompt` is given.
        temperature: of sampling; 0 takes the most probable label.
        n_samples: ratings per completion; the reward is their mean.
        seed: ratings depend on it and on what is judged, on nothing else.
        **options: see `Reward`.

    Source: the Likert baseline of Girrbach et al. 2025, section 3.1, without free text.
    """

    kind = "likert"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        scale_points: Literal[5, 10] = 10,
        temperature: float = 0.7,
        n_samples: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if scale_points not in (5, 10):
            raise ValueError(f"scale_points must be 5 or 10, got {scale_points!r}")
        self.temperature, self.seed = number(temperature, "temperature"), whole(seed, "seed")
        self.n_samples = whole(n_samples, "n_samples")
        if self.n_samples < 1 or self.temperature < 0:
            raise ValueError(f"need n_samples >= 1 and temperature >= 0, got {n_samples} and {temperature}")
        if options.get("prompt") is None:
            options["prompt"] = f"likert{scale_points}_guided"
        super().__init__(judge, **options)

    def options(self) -> dict[str, Any]:
        """How ratings are drawn."""
        return {"temperature": self.temperature, "n_samples": self.n_samples, "seed": self.seed}

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest label value."""
        return self._label_range()

    def _default_name(self) -> str:
        return self.prompt.name

    def readout(self, reading: Reading) -> Tensor:
        """(B,) the most probable rating, in rating points: what greedy decoding under the constraint gives."""
        assert reading.label_logprobs is not None
        best = torch.tensor(self.values)[reading.label_logprobs.nan_to_num(-torch.inf).argmax(-1)]
        return torch.where(reading.label_logprobs.isnan().any(-1), torch.nan, best)

    def ratings(self, reading: Reading, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(B, n_samples) sampled ratings; NaN for a row that could not be read."""
        assert reading.label_logprobs is not None
        if self.temperature == 0:
            return np.repeat(self.readout(reading).double().numpy()[:, None], self.n_samples, 1)
        uniforms = np.stack([_uniforms(row, self.n_samples, self.seed) for row in rows])
        return sample_ratings(reading.label_logprobs.double().numpy(), self.values, uniforms, self.temperature)

    def scores_of(self, rows: Sequence[Mapping[str, Any]], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) mean of the sampled ratings."""
        return self.ratings(readings[0], rows).mean(1)


def sample_ratings(
    label_logprobs: np.ndarray, values: Sequence[float], uniforms: np.ndarray, temperature: float
) -> np.ndarray:
    """Ratings drawn from p(label)^(1/temperature), renormalised over the labels, by inverting the distribution.

    Args:
        label_logprobs: (B, K) nats; NaN marks an unknown label.
        values: (K,) rating of each label.
        uniforms: (B, n) numbers in [0, 1).
        temperature: above 0.

    Returns:
        (B, n) rating points; NaN where any label of the row is unknown.
    """
    scaled = label_logprobs / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    edges = np.cumsum(weights, 1) / weights.sum(1, keepdims=True)
    chosen = np.minimum((uniforms[:, :, None] >= edges[:, None, :]).sum(2), len(values) - 1)
    unknown = np.isnan(label_logprobs).any(1)[:, None]
    return np.where(unknown, np.nan, np.asarray(values, dtype=np.float64)[chosen])


def _uniforms(row: Mapping[str, Any], n: int, seed: int) -> np.ndarray:
    """(n,) numbers in [0, 1) that depend on the row and the seed alone."""
    text = json.dumps([seed, row], sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little")).random(n)


def parse_rating(text: str | None, prompt: JudgePrompt) -> int | None:
    """The rating in a judge's answer.

    Args:
        text: the answer; None for a row that was not judged.
        prompt: its `pattern` (last match counts) and `scale` decide.

    Returns:
        The rating, or None when there is none or it lies outside the scale. Never a guess.
    """
    assert prompt.pattern is not None and prompt.scale is not None
    found = re.findall(prompt.pattern, text or "")
    if not found:
        return None
    last = found[-1] if isinstance(found[-1], str) else found[-1][0]
    rating = int(last) if re.fullmatch("[0-9]{1,9}", last) else None
    low, high = prompt.scale
    return rating if rating is not None and low <= rating <= high else None


def mode_agreement(ratings: np.ndarray) -> np.ndarray:
    """Share of each row's ratings that equal its most frequent rating.

    Args:
        ratings: (B, n) sampled ratings, NaN where unparsed.

    Returns:
        (B,) in (0, 1]; NaN for a row without ratings. Unparsed answers are left out.

    Source: Girrbach et al. 2025, section 3.1.
    """
    out = np.full(len(ratings), np.nan)
    for i, row in enumerate(ratings):
        seen = row[~np.isnan(row)]
        if len(seen):
            out[i] = np.unique(seen, return_counts=True)[1].max() / len(seen)
    return out
