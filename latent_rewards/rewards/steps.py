"""A reply read after each of its steps, all in one forward: where a chain of thought or a trajectory turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from latent_rewards import readouts
from latent_rewards.files.sources import RowError
from latent_rewards.files.types import Prompt, check_lists
from latent_rewards.judge.hf import Judge, Reading, Request
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Row
from latent_rewards.rewards.latent import UNKNOWN, LatentReward
from latent_rewards.rewards.step_text import joined, prefixes

Aggregate = Literal["last", "min", "mean", "product", "rise"]


class StepReward(LatentReward):
    """How a reply stands after each of its steps, and one score of that.

    s_t is the expected label of the judge's prompt after step t of T, each step with all before it; the steps' texts
    extend each other, so that the reply is read once and each step costs the question's tokens.

    Args:
        judge: a judge, or a model name.
        split: where steps end: "paragraphs" (blank lines), "numbered" ("2.", "Step 3:"), "lines", "turns" (messages of
            the assistant, with what its tools answered), or a text that stands between them; see `step_text.prefixes`.
        steps_column: dataset column with the steps, a list of texts or of messages, instead of the completion.
        aggregate: "last" s_T; "min" the lowest; "mean"; "product" of the s_t as shares of the labels' range; "rise"
            s_T - s_1.
        **options: see `Reward`. `prompt`: "progress" (how far the task is solved, 0..10) or "step_correct" (is the last
            step right, P(yes)). Steps within thoughts are read with `reasoning="keep"` or "only".

    A reply is without score where one of its steps cannot be read.

    Raises:
        ValueError: unknown options, or steps that are none; names the row.

    Source: process rewards (Lightman et al. 2023, arXiv 2305.20050), read from a frozen judge's label probabilities.
    """

    kind = "steps"
    default_prompt = "progress"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        split: str = "paragraphs",
        steps_column: str | None = None,
        aggregate: Aggregate = "last",
        **options: Any,
    ) -> None:
        if aggregate not in _AGGREGATES:
            raise ValueError(f"aggregate must be one of {tuple(_AGGREGATES)}, got {aggregate!r}")
        if not split:
            raise ValueError("split must name a way to split, or be the text between steps")
        self.split, self.steps_column, self.aggregate = split, steps_column, aggregate
        super().__init__(judge, **options)

    def options(self) -> dict[str, Any]:
        """Where steps end, and how they become a score."""
        return {"split": self.split, "steps_column": self.steps_column, "aggregate": self.aggregate}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Slots of the prompt, and the column of steps."""
        return (*self.prompt.slots, *(() if self.steps_column is None else (self.steps_column,)))

    @property
    def score_range(self) -> tuple[float, float]:
        """That of the labels; a rise may be as far below 0 as above, a product is a share."""
        low, high = self._label_range()
        return {"rise": (low - high, high - low), "product": (0.0, 1.0)}.get(self.aggregate, (low, high))

    def rows(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `Reward.rows`, with the steps of each row checked."""
        rows = super().rows(prompts, completions, columns)
        for i, row in enumerate(rows):
            try:
                self._texts(row)
            except ValueError as err:
                raise RowError(i, err) from err
        return rows

    def check_row(self, row: Row) -> None:
        """The row has steps, and fills the prompt."""
        self.prompt.render(self._texts(row)[-1])

    def requests(self, rows: Sequence[Row]) -> list[Request]:
        """One request, with a text for each step of each row."""
        return [Request(self.prompt, [text for row in rows for text in self._texts(row)], self.need)]

    def scores_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) aggregated; NaN where a step could not be read."""
        low, high = self._label_range()
        steps = self.steps_of(rows, readings)
        if self.aggregate == "product":
            steps = [(s - low) / (high - low) for s in steps]
        return np.array([_AGGREGATES[self.aggregate](s) for s in steps], dtype=np.float64)

    def steps_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> list[np.ndarray]:
        """B arrays (T_i,) of what each step is worth, from the readings of `requests(rows)`; NaN where unread."""
        assert readings[0].label_logprobs is not None
        values = readouts.expected_rating(readings[0].label_logprobs, self.values).double().numpy()
        ends = np.cumsum([len(self._texts(row)) for row in rows])
        return np.split(values, ends[:-1]) if len(ends) else []

    def reasons(self, rows: Sequence[Row], readings: Sequence[Reading]) -> list[str]:
        """Which step of a row could not be read, and why."""
        out, at = [], 0
        for row in rows:
            n = len(self._texts(row))
            whys = [f"step {i + 1} of {n}: {why}" for i, why in enumerate(readings[0].reasons[at : at + n]) if why]
            out.append(whys[0] if whys else UNKNOWN)
            at += n
        return out

    def facts_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, Any]:
        """Steps of a reply on average, and every row's curve as JSON."""
        curves = [[None if np.isnan(x) else round(float(x), 4) for x in s] for s in self.steps_of(rows, readings)]
        return {
            "metrics": {"steps": float(np.mean([len(c) for c in curves]))},
            "extra": {"steps": [json.dumps(c) for c in curves]},
        }

    def score_steps(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[np.ndarray]:
        """What each step is worth, for filtering or a curve.

        Returns:
            B arrays (T_i,), in label values, neither scaled nor clipped; NaN where a step could not be read.
        """
        check_lists(prompts=prompts, completions=completions)
        rows = self.rows(list(prompts), list(completions), columns)
        return self.steps_of(rows, self.judge.read(self.requests(rows))) if rows else []

    def _texts(self, row: Row) -> list[dict[str, Any]]:
        """The row as it stands after each step; one that must not be scored has one step."""
        own = {slot: row[slot] for slot in ("prompt", *self.prompt.slots) if row.get(slot) is not None}
        if self.steps_column is not None:
            return [{**own, "completion": text} for text in joined(row.get(self.steps_column))]
        found: list[Prompt] = []

        def split(shown: Prompt) -> Prompt:
            found.extend(prefixes(shown, self.split))
            return shown

        def shortened(text: Prompt) -> dict[str, Any]:
            return self.prompt.as_judged(own, lambda _: text)

        self.prompt.as_judged(own, split)
        return [shortened(text) for text in found] or [own]


def track(
    judge: Judge | str,
    prompt: object,
    steps: object,
    *,
    with_prompt: str | JudgePrompt = "progress",
    split: str = "paragraphs",
) -> np.ndarray:
    """The curve of a trajectory: what the judge says after each of its steps, in one forward.

    Args:
        judge: a judge, or a model name.
        prompt: the task, text or messages.
        steps: a list of texts or of messages, or a reply that `split` takes apart.
        with_prompt: judge prompt with labels.
        split: as in `StepReward`.

    Returns:
        (T,) expected labels, 0..10 with the default prompt; NaN where a step could not be read.
    """
    if isinstance(steps, str):
        return StepReward(judge, prompt=with_prompt, split=split).score_steps([prompt], [steps])[0]
    reward = StepReward(judge, prompt=with_prompt, steps_column="steps")
    return reward.score_steps([prompt], [""], steps=[steps])[0]


_AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "last": lambda s: float(s[-1]) if not np.isnan(s).any() else np.nan,
    "min": lambda s: float(s.min()),
    "mean": lambda s: float(s.mean()),
    "product": lambda s: float(s.prod()),
    "rise": lambda s: float(s[-1] - s[0]) if not np.isnan(s).any() else np.nan,
}
