"""References made to measure: the judge revises a reply, and reads the reply beside its revision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latent_rewards.files.cache import Cache, content_key
from latent_rewards.files.types import whole
from latent_rewards.judge.fingerprint import judge_key, layout_of
from latent_rewards.judge.hf import Reading, Request
from latent_rewards.judge.messages import to_text
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Row
from latent_rewards.judge.thoughts import Treatment, read_reply
from latent_rewards.rewards.base import bounds_of, with_prompt_of
from latent_rewards.rewards.latent import LatentReward

UNREVISED = "the judge wrote no revision: the reply is too long for it, must not be scored, or what it wrote was empty"


class RevisedReward(LatentReward):
    """A reward that reads a reply beside a reference: the row's own, else the judge's revision of the reply.

    The revision is greedy, of at most `max_new_tokens` tokens and cut there, and is kept by content: the same reply is
    revised once. A thought that the judge writes before it is set aside.

    Args:
        reward: the latent reward; its prompt has a `reference` slot, as `weighted_reference` has.
        revise_prompt: prompt of kind "generate" that asks for the revision.
        max_new_tokens: of one revision.
        cache: folder that keeps revisions between runs; default only this process's memory.
        at_once: replies revised in one call of the judge, and kept after it.
        **options: see `Reward`; the prompt is the wrapped reward's own.

    Raises:
        ValueError: the reward's prompt shows no reference, the revising prompt is not for writing, or a judge that
            cannot write.

    Source: RevisEval (Zhang et al. 2024, arXiv 2410.05193).
    """

    kind = "revised"
    staged = True

    def __init__(
        self,
        reward: LatentReward,
        *,
        revise_prompt: str | Path | JudgePrompt = "revise",
        max_new_tokens: int = 256,
        cache: str | Path | None = None,
        at_once: int = 32,
        **options: Any,
    ) -> None:
        own = reward.prompt
        if "reference" not in own.shown:
            raise ValueError(
                f"prompt {own.name!r} shows no {{{{ reference }}}}; use prompt='weighted_reference', or add the slot"
            )
        self.max_new_tokens, self.at_once = whole(max_new_tokens, "max_new_tokens"), whole(at_once, "at_once")
        if self.max_new_tokens < 1 or self.at_once < 1:
            raise ValueError(f"max_new_tokens and at_once must be at least 1, got {max_new_tokens} and {at_once}")
        self.reward, self.by_row = reward._as_part(), reward.by_row
        self.revise_prompt = JudgePrompt.load(revise_prompt).with_thoughts(
            own.reasoning, own.thought_tags, keep_unfinished=own.unfinished == "keep", opened=own.opened
        )
        self.cache = None if cache is None else Path(cache)
        self._known: dict[bytes, str | None] = {}
        self._unanswered: set[bytes] = set()
        options.setdefault("name", f"{self.reward.__name__}-revised")
        super().__init__(reward.judge, **with_prompt_of(reward, options))

    def _prepare(self) -> None:
        if self.revise_prompt.kind != "generate":
            raise ValueError(f"prompt {self.revise_prompt.name!r} is not for writing; revisions need kind 'generate'")
        if "generate" not in self.judge.capabilities:
            raise ValueError(f"judge {self.judge.name!r} cannot generate, which revisions need; use an HFJudge")

    def options(self) -> dict[str, Any]:
        """The reward, and how revisions are written."""
        return {
            "reward": self.reward.facts, "revise_prompt": self.revise_prompt.hash,
            "revise_layout": layout_of(self.judge, self.revise_prompt), "max_new_tokens": self.max_new_tokens,
        }  # fmt: skip

    @property
    def score_range(self) -> tuple[float, float]:
        """The reward's bounds."""
        return bounds_of(self.reward)

    @property
    def inputs(self) -> tuple[str, ...]:
        """As the reward, and what the revising prompt shows."""
        return tuple(dict.fromkeys((*self.reward.inputs, *self.revise_prompt.slots)))

    @property
    def required(self) -> tuple[str, ...]:
        """As the reward, but for the reference."""
        own = [name for name in self.revise_prompt.slots if name not in self.revise_prompt.optional]
        return tuple(name for name in dict.fromkeys((*self.reward.required, *own)) if name != "reference")

    @property
    def need(self) -> Need:
        """As the reward."""
        return self.reward.need

    def check_row(self, row: Row) -> None:
        """As the reward, whatever the reference becomes."""
        self.reward.check_row({**row, "reference": row.get("reference") or "x"})

    def references(self, rows: Sequence[Row]) -> list[str | None]:
        """(B,) the given reference of each row, else its revision; None where the judge wrote none."""
        given = [to_text(row["reference"]).strip() if row.get("reference") is not None else "" for row in rows]
        todo = [i for i, text in enumerate(given) if not text]
        revised = dict(zip(todo, self._revisions([rows[i] for i in todo]), strict=True))
        return [text or revised[i] for i, text in enumerate(given)]

    def requests(self, rows: Sequence[Row]) -> list[Request]:
        """Those of the reward, each row with its reference; has the judge write what is not known yet."""
        for key in self._unanswered:  # when this was last asked; another time there may be an answer
            self._known.pop(key, None)
        self._unanswered.clear()
        return self.reward.requests(self._filled(rows, self.references(rows)))

    def scores_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) the reward's scores; NaN where there is no reference."""
        references = self.references(rows)
        scores = self.reward._finish(self.reward.scores_of(self._filled(rows, references), readings))
        return np.where([text is None for text in references], np.nan, scores)

    def reasons(self, rows: Sequence[Row], readings: Sequence[Reading]) -> list[str]:
        """Those of the reward, or that there is no reference."""
        references = self.references(rows)
        own = self.reward.reasons(self._filled(rows, references), readings)
        return [UNREVISED if text is None else why for text, why in zip(references, own, strict=True)]

    def facts_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, Any]:
        """The references, share of them that the data gave, and what the reward tells."""
        references = self.references(rows)
        more = self.reward.facts_of(self._filled(rows, references), readings)
        given = float(np.mean([bool(row.get("reference")) for row in rows]))
        return {
            "metrics": {**more.get("metrics", {}), "given": given},
            "extra": {**more.get("extra", {}), "reference": [text or "" for text in references]},
        }

    def _filled(self, rows: Sequence[Row], references: Sequence[str | None]) -> list[dict[str, Any]]:
        return [{**row, "reference": text or ""} for row, text in zip(rows, references, strict=True)]

    def _revisions(self, rows: Sequence[Row]) -> list[str | None]:
        """(B,) revisions, from memory, from the folder, or written now."""
        if not rows:
            return []
        own = [{k: row[k] for k in self.revise_prompt.slots if row.get(k) is not None} for row in rows]
        how = f"{self.revise_prompt.hash} {layout_of(self.judge, self.revise_prompt)} {self.max_new_tokens}"
        who = judge_key(self.judge) if self.cache is not None else ""
        keys = [content_key(who, how, row) for row in own]
        todo = {key: row for key, row in zip(keys, own, strict=True) if key not in self._known}
        with self._kept() as kept:
            if kept is not None and todo:
                found = dict(zip(todo, kept.get(list(todo), "revision"), strict=True))
                self._known |= {key: value[0] for key, value in found.items() if value is not None}
                todo = {key: row for key, row in todo.items() if key not in self._known}
            for start in range(0, len(todo), self.at_once):
                some = list(todo)[start : start + self.at_once]
                outages = self.judge.outages
                texts = self._write([todo[key] for key in some])
                self._known |= dict(zip(some, texts, strict=True))
                if self.judge.outages != outages:
                    self._unanswered.update(some)
                elif kept is not None:
                    parts = [(key, "revision", [text]) for key, text in zip(some, texts, strict=True)]
                    kept.put(parts, stage="revise", texts=len(some), tokens=0, seconds=0.0)
        out = [self._known[key] for key in keys]
        for key in list(self._known)[: max(0, len(self._known) - _MOST_KNOWN)]:
            del self._known[key]
        return out

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        answers = self.judge.generate(
            self.revise_prompt, rows, n=1, temperature=0.0, max_new_tokens=self.max_new_tokens, seed=0
        )
        out: list[str | None] = []
        for (answer,) in answers:
            reply = read_reply(answer or "", Treatment(tags=self.revise_prompt.thought_tags))
            out.append(None if reply.problem else to_text(reply.shown).strip() or None)
        return out

    @contextlib.contextmanager
    def _kept(self) -> Any:
        """The folder's cache, open for this call alone, so that the reward travels between processes."""
        cache = None if self.cache is None else Cache(self.cache, os.getpid())
        try:
            yield cache
        finally:
            if cache is not None:
                cache.close()


_MOST_KNOWN = 1 << 16
