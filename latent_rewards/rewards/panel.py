"""A trained panel as a reward: several questions read in one forward, weighed by a small regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latent_rewards.judge import fingerprint
from latent_rewards.judge.hf import Judge, Need, Reading, Request
from latent_rewards.judge.reading import Row
from latent_rewards.probes.panel import Panel
from latent_rewards.probes.probe import check_revision
from latent_rewards.probes.questions import Question, judged_length, lenses_of, requests_of, values_of
from latent_rewards.rewards.base import with_prompt_of
from latent_rewards.rewards.latent import LatentReward


class PanelReward(LatentReward):
    """Score of a trained panel: a regression on what the judge says to several questions about a completion.

    score = bias + sum_f w_f (x_f - m_f), x_f statistics of label distributions; see `latent_rewards.probes.questions`.

    All questions are read in one forward, task and completion once for all. Only label probabilities are read (and
    label logits of all layers where the panel has features of them), so a panel works with engines behind a server,
    where probes cannot.

    Args:
        judge: the judge that the panel was trained on, or its name.
        path: folder of a panel, or a `Panel`.
        strict: whether another judge revision is an error; False logs a warning.
        **options: see `Reward`; the prompts are the panel's own.

    Raises:
        FileNotFoundError: no panel there.
        ValueError: another judge than the panel's, or one that cannot read what it needs; names both.

    Source: stacking (Wolpert 1992) of what one judge says to several questions.
    """

    kind: ClassVar[str] = "panel"

    def __init__(
        self, judge: Judge | str = "embedded", path: str | Path | Panel = "", *, strict: bool = True, **options: Any
    ) -> None:
        if not path:
            raise ValueError("a panel needs path=..., a folder that `latent-rewards panel train` wrote")
        panel = path if isinstance(path, Panel) else Panel.load(path)
        names = [name for name in ("reasoning", "thought_tags", "opened") if name in options]
        thoughts: dict[str, Any] = {name: options.pop(name) for name in names}
        keep = options.get("unfinished") == "keep"
        self.panel = dataclasses.replace(panel, questions=tuple(_treated(q, thoughts, keep) for q in panel.questions))
        self.strict, self._verified = strict, False
        super().__init__(judge, **with_prompt_of(self.panel, options))

    def options(self) -> dict[str, Any]:
        """What is asked, how that is laid out for the judge, and every weight."""
        layouts = [fingerprint.layout_of(self.judge, q.prompt) for q in self.panel.questions]
        return {**self.panel.facts, "layouts": layouts}

    def _prepare(self) -> None:
        if self.judge.name != self.panel.judge:
            self._verify()
        super()._prepare()
        for question in self.panel.questions[1:]:
            self.judge.check(question.prompt, self.need)

    @property
    def need(self) -> Need:
        """Labels, and those of every layer where the panel has features of them."""
        return Need(labels=True, layer_logits=lenses_of(self.panel.features))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Slots of all prompts but the criterion."""
        slots = (slot for q in self.panel.questions for slot in q.prompt.slots)
        return tuple(dict.fromkeys(slot for slot in slots if slot != "criterion"))

    @property
    def required(self) -> tuple[str, ...]:
        """What no row may lack for any prompt."""
        optional = [set(q.prompt.slots) & set(q.prompt.optional) for q in self.panel.questions]
        needed = [set(q.prompt.slots) - left for q, left in zip(self.panel.questions, optional, strict=True)]
        return tuple(slot for slot in self.inputs if any(slot in own for own in needed))

    def check_row(self, row: Row) -> None:
        """The row fills every prompt."""
        for question in self.panel.questions:
            question.prompt.render(question.text(row))

    def requests(self, rows: Sequence[Row]) -> list[Request]:
        """One for each question; the first call compares the judge with the panel's."""
        if not self._verified:
            self._verify()
        return requests_of(self.panel.questions, rows, lenses_of(self.panel.features))

    def scores_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) scores; NaN where a question could not be read."""
        return self.panel(self._values(rows, readings))

    def explain(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[dict[str, float]]:
        """For each row, what each feature brings: w_f (x_f - m_f); with the bias they add up to the score."""
        rows = self.rows(list(prompts), list(completions), columns)
        if not rows:
            return []
        parts = (self._values(rows, self.judge.read(self.requests(rows))) - self.panel.location) * self.panel.weights
        return [dict(zip((f.name for f in self.panel.features), map(float, row), strict=True)) for row in parts]

    def facts_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, Any]:
        """Mean of each feature over the rows that were read."""
        values = self._values(rows, readings)
        known = values[np.isfinite(values).all(1)]
        means = known.mean(0) if len(known) else []
        return {"metrics": {f.name: float(x) for f, x in zip(self.panel.features, means, strict=False)}}

    def _values(self, rows: Sequence[Row], readings: Sequence[Reading]) -> np.ndarray:
        lengths = np.array([judged_length(self.prompt, row) for row in rows])
        return values_of(self.panel.features, self.panel.questions, readings, lengths)

    def _verify(self) -> None:
        check_revision(self.judge, self.panel, strict=self.strict, what="panel")
        self._verified = True


def _treated(question: Question, thoughts: Mapping[str, Any], keep: bool) -> Question:
    """A question that treats thoughts as the reward is told to."""
    prompt = question.prompt.with_thoughts(
        thoughts.get("reasoning"), thoughts.get("thought_tags", ()), keep_unfinished=keep, opened=thoughts.get("opened")
    )
    return dataclasses.replace(question, prompt=prompt)
