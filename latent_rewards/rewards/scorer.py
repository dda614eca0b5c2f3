"""Scoring a chunk of rows so that one bad row never spoils the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from latent_rewards.files.groups import whole_groups
from latent_rewards.files.keys import prompt_key
from latent_rewards.files.outputs import Scores
from latent_rewards.files.sources import Chunk, InputError, RowError, Source
from latent_rewards.judge.reading import Request
from latent_rewards.judge.transcripts import SIDES, split_column
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.latent import LatentReward

SHOWN = 20


@dataclass
class Scorer:
    """Scores chunks row by row where it can, in batches where it pays, and counts what went wrong.

    Args:
        rewards: score column -> reward.
        columns: prompt slot -> input column, for slots that are not named like their column.
        bar: progress bar; messages are written past it.

    `rows` counts what came, `scored` the rows with a score, `partly` those of them that lack another, `bad` messages.
    """

    rewards: dict[str, Reward]
    columns: dict[str, str]
    bar: Any
    rows: int = 0
    scored: int = 0
    partly: int = 0
    bad: int = 0

    @property
    def names(self) -> list[str]:
        """The columns that are written."""
        return list(self.rewards)

    def __call__(self, chunk: Chunk) -> Scores:
        """Scores of a chunk, n per column, None where a row has none."""
        numbers = range(self.rows + 1, self.rows + len(chunk.rows) + 1)
        if any(taken := set(self.names) & row.keys() for row in chunk.rows):
            raise InputError(f"row(s) from {numbers[0]} on already have {sorted(taken)}; choose another --score-column")
        scores, reasons = self._scored(chunk, numbers)
        for number, why in zip(numbers, reasons, strict=True):
            if why:
                self._report(number, why)
        self.rows += len(chunk.rows)
        found = [[column[i] is not None for column in scores.values()] for i in range(len(chunk.rows))]
        self.scored += sum(map(any, found))
        self.partly += sum(any(row) and not all(row) for row in found)
        self.bar.update(len(chunk.rows))
        return scores

    def _scored(self, chunk: Chunk, numbers: Sequence[int]) -> tuple[Scores, list[str | None]]:
        return self.read(chunk.rows, chunk.faults, numbers)

    def read(
        self, rows: Sequence[dict[str, Any]], faults: Sequence[str | None], numbers: Sequence[int]
    ) -> tuple[Scores, list[str | None]]:
        """Scores of rows, and for each row why it lacks one.

        Rewards of several prompts on one judge are read in one forward.

        Args:
            rows: n mappings of column to value.
            faults: (n,) None, or why a row cannot be scored at all.
            numbers: (n,) number of each row, for messages; in a file from 1.

        Returns:
            Scores, n per reward, None where there is none; and n reasons, None where no score is missing.

        Raises:
            InputError: a row that the judge was told to stop at; names its number.
        """
        slots: list[dict[str, Any] | None] = []
        reasons: list[dict[str, None]] = []
        for row, fault in zip(rows, faults, strict=True):
            found, lack = (None, fault) if fault else self._slots(row)
            slots.append(found)
            reasons.append({} if lack is None else {lack: None})
        good = {name: self._fit(reward, slots, reasons) for name, reward in self.rewards.items()}
        self._read_together(good, slots, numbers)
        scores: Scores = {}
        for name, reward in self.rewards.items():
            values, why = self._batch(reward, good[name], slots, numbers)
            scores[name] = [None] * len(slots)
            for i, value, reason in zip(good[name], values, why, strict=True):
                if np.isnan(value):
                    reasons[i][reason or "no score"] = None
                else:
                    scores[name][i] = float(value)
        return scores, ["; ".join(why) if why else None for why in reasons]

    def chunks(self, source: Source, size: int) -> Iterator[Chunk]:
        """The source in chunks of `size` rows; whole groups where a reward compares the replies to a prompt."""
        chunks = source.chunks(size)
        if all(reward.by_row for reward in self.rewards.values()):
            return chunks
        return whole_groups(chunks, lambda row: prompt_key((self._slots(row)[0] or {}).get("prompt")))

    def _slots(self, row: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
        """Slots of a row, or why there are none; a prompt that the completion holds is taken out of it."""
        mapped = {slot: row.get(column) for slot, column in self.columns.items()}
        columns = {slot: self.columns.get(slot, slot) for slot in ("prompt", "completion")}
        try:
            mapped["prompt"], mapped["completion"] = split_column(row, **columns)
        except ValueError as err:
            return None, str(err)
        return {k: v for k, v in {**row, **mapped}.items() if v is not None}, None

    def _fit(self, reward: Reward, slots: list[dict[str, Any] | None], reasons: list[dict[str, None]]) -> list[int]:
        """Positions of the rows that the reward's prompt can be filled with."""
        good = []
        for i, row in enumerate(slots):
            if row is None:
                continue
            lacking = [s for s in reward.required if s not in row]
            if lacking:
                reasons[i] |= {f"column {self.columns.get(s, s)!r} is missing or null": None for s in lacking}
                continue
            try:
                reward.check_row(row)
                good.append(i)
            except ValueError as err:
                reasons[i][str(err)] = None
        return good

    def _read_together(
        self, good: dict[str, list[int]], slots: list[dict[str, Any] | None], numbers: Sequence[int]
    ) -> None:
        """One forward for all rewards of each judge, which remembers what it read."""
        judges: dict[int, list[str]] = {}
        for name, reward in self.rewards.items():
            if isinstance(reward, LatentReward) and good[name]:
                judges.setdefault(id(reward.judge), []).append(name)
        for names in judges.values():
            requests: list[Request] = []
            for name in names:
                reward = self.rewards[name]
                assert isinstance(reward, LatentReward)
                given, (prompts, completions) = self._columns(reward, good[name], slots)
                requests += reward.requests(reward.rows(prompts, completions, given))
            if len(names) > 1:
                with _numbered(good[names[0]], numbers):
                    self.rewards[names[0]].judge.read(requests)

    def _columns(
        self, reward: Reward, index: list[int], slots: list[dict[str, Any] | None]
    ) -> tuple[dict[str, list[Any]], tuple[list[Any], list[Any]]]:
        rows = [slots[i] or {} for i in index]
        given = {name: [row.get(name) for row in rows] for name in (*reward.inputs, "prompt", "completion")}
        return given, (given.pop("prompt"), given.pop("completion"))

    def _batch(
        self, reward: Reward, index: list[int], slots: list[dict[str, Any] | None], numbers: Sequence[int]
    ) -> tuple[np.ndarray, list[str | None]]:
        if not index:
            return np.zeros(0), []
        given, (prompts, completions) = self._columns(reward, index, slots)
        with _numbered(index, numbers):
            return reward.score_with_reasons(prompts, completions, **given)

    def _report(self, row: int, reason: str) -> None:
        self.bad += 1
        if self.bad <= SHOWN:
            tqdm.write(f"row {row}: {reason}", file=self.bar.fp)


@dataclass
class PairScorer(Scorer):
    """Scores both completions of rows with `chosen` and `rejected`, in one forward: two columns a reward."""

    @property
    def names(self) -> list[str]:
        """Each reward's, for each side."""
        return [f"{name}_{side}" for name in self.rewards for side in SIDES]

    def _scored(self, chunk: Chunk, numbers: Sequence[int]) -> tuple[Scores, list[str | None]]:
        rows = [self._side(row, side) for row in chunk.rows for side in SIDES]
        faults = [f or why for f, (_, why) in zip((f for f in chunk.faults for _ in SIDES), rows, strict=True)]
        scores, reasons = self.read([row for row, _ in rows], faults, [n for n in numbers for _ in SIDES])
        n = len(SIDES)
        sides = SIDES * len(numbers)
        reasons = [r and r.replace("'completion'", repr(side)) for r, side in zip(reasons, sides, strict=True)]
        why = ["; ".join(dict.fromkeys(filter(None, reasons[i : i + n]))) or None for i in range(0, len(rows), n)]
        return {f"{name}_{side}": of[i::n] for name, of in scores.items() for i, side in enumerate(SIDES)}, why

    def _side(self, row: dict[str, Any], side: str) -> tuple[dict[str, Any], str | None]:
        """The row with one side as its completion, and why that cannot be."""
        prompt, completion = (self.columns.get(slot, slot) for slot in ("prompt", "completion"))
        try:
            found = split_column(row, prompt, side)
        except ValueError as err:
            return row, str(err)
        return {**row, prompt: found[0], completion: found[1]}, None


@contextlib.contextmanager
def _numbered(index: list[int], numbers: Sequence[int]) -> Iterator[None]:
    """Errors that name a row of the batch name it by its number in the input."""
    try:
        yield
    except RowError as err:
        raise InputError(f"row {numbers[index[err.row]]}: {err.reason}") from err
