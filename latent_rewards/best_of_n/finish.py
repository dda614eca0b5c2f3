"""From scored shards to scored and selected rows: streamed, in order, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latent_rewards.best_of_n import selection as rules
from latent_rewards.best_of_n.config import BestOfNConfig, Selection, selection_dict
from latent_rewards.best_of_n.groups import Completion, Record
from latent_rewards.best_of_n.picks import pick, smallest_kept
from latent_rewards.best_of_n.plan import Plan
from latent_rewards.best_of_n.shards import ShardStore, dump
from latent_rewards.files.atomic import publish, write_text
from latent_rewards.files.outputs import open_output, to_json
from latent_rewards.files.sources import open_source
from latent_rewards.files.types import JsonObject, Prompt, Row, as_messages
from latent_rewards.judge.layouts import answers_of
from latent_rewards.judge.prompts import to_text
from latent_rewards.judge.transcripts import SIDES
from latent_rewards.stats.bootstrap import none_if_nan

# Of the span of a run's scores: far above the rounding of float32. In bfloat16 other batches change the order of
# ratings up to 0.24 of 10 points apart (benchmarks/results/determinism.md), which may be more than this.
MARGIN_SHARE = 0.025


@dataclass
class Scored:
    """One prompt out of a shard: its record, rewards (R, N) and combined score (N,)."""

    record: Record
    rewards: np.ndarray
    combined: np.ndarray

    @property
    def completions(self) -> list[Completion]:
        """Its completions; [None] where there are none."""
        return self.record["completions"] or [None]

    def lengths(self) -> list[int]:
        """Characters of each completion."""
        known = ~np.isnan(self.combined)  # others may be no text at all, and are never selected
        return [len(to_text(c)) if k else 0 for c, k in zip(self.completions, known, strict=True)]


class Finisher:
    """Selects and writes.

    Args:
        config: the run.
        plan: its shards, all done.
        store: where they lie.
        folder: where the results go.
    """

    def __init__(self, config: BestOfNConfig, plan: Plan, store: ShardStore, folder: Path) -> None:
        self.config, self.plan, self.store, self.folder = config, plan, store, folder
        self.names = list(config.reward_specs())
        self.moments: tuple[np.ndarray, np.ndarray] | None = None
        self.margin = config.selection.margin

    def finish(self) -> JsonObject:
        """Write `scored`, `selected` and `summary.json`; counts of what was done.

        Raises:
            OSError: disk full or not writable; earlier results stay as they were, or lack their summary where some
                were replaced.
        """
        self.store.clear()
        chosen, counts = self.config.selection, Counter[str]()
        if chosen.combine in ("z", "worst"):
            self.moments = self._moments()
        if self.margin is None and chosen.method == "pairs":
            self.margin = MARGIN_SHARE * self._span()
        with tempfile.TemporaryDirectory(prefix=".finish-", dir=self.folder) as temp:
            keep = self._global_fraction(Path(temp)) if _is_global(chosen) else None
            suffix = ".jsonl" if self.config.format == "jsonl" else ".parquet"
            scored, selected = (Path(temp) / f"{name}.jsonl" for name in ("scored", "selected"))
            with scored.open("wb") as all_rows, selected.open("wb") as some_rows:
                for group in self._groups():
                    all_rows.writelines(map(dump, self._scored_rows(group)))
                    rows = list(self._selected_rows(group, keep))
                    some_rows.writelines(map(dump, rows))
                    counts += _counts(group, len(rows))
            (self.folder / "summary.json").unlink(missing_ok=True)  # it is true of no mixture of files
            for path in (scored, selected):
                _publish(path, self.folder / f"{path.stem}{suffix}")
        summary = {**{k: counts[k] for k in _COUNTED}, "margin": self.margin, "made_by": self._made_by()}
        write_text(self.folder / "summary.json", to_json(summary, indent=1))
        return summary

    def earlier(self) -> JsonObject | None:
        """The summary of an earlier finish with this selection, if its files are there."""
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        there = all((self.folder / f"{name}.{self.config.format}").is_file() for name in ("scored", "selected"))
        return dict(summary) if there and summary.get("made_by") == self._made_by() else None

    def _made_by(self) -> JsonObject:
        config = self.config
        return {
            "selection": selection_dict(config.selection), "format": config.format, "score_column": config.score_column
        }  # fmt: skip

    def _groups(self) -> Iterator[Scored]:
        chosen, (mean, std) = self.config.selection, self.moments or (None, None)
        for record, rewards in self._raw():
            combined = rules.combine(rewards, chosen.combine, weights=chosen.weights, mean=mean, std=std)
            yield Scored(record, rewards, combined)

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each reward over all rows, in two passes."""
        count, total = np.zeros(len(self.names)), np.zeros(len(self.names))
        for _, group in self._raw():
            known = ~np.isnan(group)
            count += known.sum(1)
            total += np.where(known, group, 0).sum(1)
        mean = total / np.maximum(count, 1)
        square = np.zeros(len(self.names))
        for _, group in self._raw():
            square += np.nansum((group - mean[:, None]) ** 2, 1)
        return mean, np.sqrt(square / np.maximum(count, 1))

    def _span(self) -> float:
        """Between the lowest and the highest combined score; 0 where nothing is scored."""
        low, high = np.inf, -np.inf
        for group in self._groups():
            known = group.combined[~np.isnan(group.combined)]
            low, high = min([low, *known]), max([high, *known])
        return float(max(0.0, high - low))

    def _raw(self) -> Iterator[tuple[Record, np.ndarray]]:
        """Records, each with its rewards (R, N)."""
        for index in range(len(self.plan.shards)):
            for record in self.store.read(index):
                yield record, np.array([record["scores"][n] for n in self.names], dtype=np.float64)

    def _global_fraction(self, temp: Path) -> Iterator[bool]:
        """For every completion in order whether it is among the best fraction of all; ties by the rule."""
        chosen, n = self.config.selection, 0
        with (temp / "keys").open("wb") as file:
            for group in self._groups():
                known = ~np.isnan(group.combined)
                n += int(known.sum())
                keys = np.empty(len(known), dtype=np.complex128)
                keys.real = np.where(known, -group.combined, np.inf)  # the smallest are the best
                keys.imag = _tie_keys(group, chosen)
                keys.tofile(file)
        return smallest_kept(temp / "keys", rules.fraction_count(n, chosen.fraction) if n else 0)

    def _scored_rows(self, group: Scored) -> Iterator[Row]:
        record, name = group.record, self.config.score_column
        columns = {**{n: record["scores"][n] for n in self.names}, name: list(map(none_if_nan, group.combined))}
        if self.plan.layout == "pairs":
            for i, row in enumerate(record["rows"]):
                yield {**row, **{k: v[i] for k, v in columns.items()}, "reason": record["reasons"][i]}
            return
        own = record["rows"][0].get(self.config.completions_column)
        objects = answers_of(own) is not own  # with more than their texts, which the row keeps
        completions = {} if objects else {self.config.completions_column: record["completions"]}
        reason = "; ".join(dict.fromkeys(r for r in record["reasons"] if r)) or None
        yield {**record["rows"][0], **completions, **columns, "reason": reason}

    def _selected_rows(self, group: Scored, keep: Iterator[bool] | None) -> Iterator[Row]:
        chosen = self.config.selection
        key = f"{chosen.seed}:{group.record['row']}"
        if keep is not None:
            picked = [i for i in range(len(group.combined)) if next(keep)]
        elif chosen.method == "pairs":
            yield from self._pair(group, key)
            return
        else:
            picked = pick(group.combined, chosen, lengths=group.lengths(), key=key)
        for i in picked:
            row = self._columns(group, i)
            reply = _reply(row[self.config.prompt_column], group.completions[i])
            yield {
                **row, self.config.completion_column: reply, "candidate": int(i),
                **{n: group.record["scores"][n][i] for n in self.names},
                self.config.score_column: float(group.combined[i]),
            }  # fmt: skip

    def _pair(self, group: Scored, key: str) -> Iterator[Row]:
        chosen = self.config.selection
        pair = rules.preference_pair(
            group.combined, against=chosen.against, margin=self.margin or 0.0, ties=chosen.ties,
            lengths=group.lengths(), key=key,
        )  # fmt: skip
        if pair is None:
            return
        row = self._columns(group, pair.chosen)
        row.pop(self.config.completion_column, None)
        good, bad = (_reply(row[self.config.prompt_column], group.completions[i]) for i in pair[:2])
        name = self.config.score_column
        yield {
            **row, "prompt": row[self.config.prompt_column], "chosen": good, "rejected": bad,
            f"{name}_chosen": float(group.combined[pair.chosen]),
            f"{name}_rejected": float(group.combined[pair.rejected]), "margin": pair.margin,
        }  # fmt: skip

    def _columns(self, group: Scored, i: int) -> Row:
        rows = group.record["rows"]
        row = dict(rows[i] if self.plan.layout == "pairs" else rows[0])
        row.pop(self.config.completions_column, None)
        if row.get(self.config.prompt_column) is None:  # it was inside the completions
            row[self.config.prompt_column] = group.record.get("prompt")
        sides = [row[side] for side in SIDES if side in row]
        if row.get("messages") is not None and row["messages"] in sides:  # what to imitate, as in UltraFeedback
            prompt, reply = row[self.config.prompt_column], group.completions[i]
            row["messages"] = [*as_messages(prompt), *as_messages("" if reply is None else reply, "assistant")]
        return row


def _is_global(chosen: Selection) -> bool:
    return chosen.method == "top-fraction" and chosen.over == "all"


def _tie_keys(group: Scored, chosen: Selection) -> np.ndarray:
    n = len(group.combined)
    if chosen.ties == "shortest":
        return np.asarray(group.lengths(), dtype=np.float64)
    if chosen.ties == "random":
        return rules.draws(f"{chosen.seed}:{group.record['row']}", n)
    return np.zeros(n)


def _reply(prompt: Prompt, completion: Completion) -> Completion:
    """A completion in the form of its prompt: messages for messages, as trainers want it."""
    if isinstance(prompt, list) and isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return completion


_COUNTED = ("prompts", "completions", "scored", "unscored", "prompts_without_score", "selected")


def _counts(group: Scored, selected: int) -> Counter[str]:
    n, known = len(group.combined), int((~np.isnan(group.combined)).sum())
    return Counter(
        prompts=1, completions=n, scored=known, unscored=n - known, prompts_without_score=int(known == 0),
        selected=selected,
    )  # fmt: skip


def _publish(jsonl: Path, target: Path) -> None:
    """Put a finished file in its place, as JSONL or converted to Parquet."""
    if target.suffix == ".jsonl":
        publish(jsonl, target)
    elif jsonl.stat().st_size:
        source = open_source(str(jsonl))
        with open_output(target, source, []) as write:
            for chunk in source.chunks(4096):
                write(chunk, {})
    else:
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
