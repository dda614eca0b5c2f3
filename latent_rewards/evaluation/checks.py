"""The parts of a run beside the benchmarks themselves: attacks, edits, and comparisons in both orders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from latent_rewards.evaluation import consistency, robustness, scorers, tables
from latent_rewards.evaluation.benchmarks.rows import Benchmark, Item
from latent_rewards.evaluation.config import EvaluateConfig
from latent_rewards.evaluation.readings import Readings, Rows
from latent_rewards.evaluation.results import Consistency, Robustness
from latent_rewards.evaluation.scorers import Column
from latent_rewards.judge.hf import Need
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.latent import LatentReward
from latent_rewards.rewards.pairwise import PairwiseReward

Rewards = Mapping[str, LatentReward]
Job = tuple[str, int, Iterator[int]]

SLICE = 8  # batches of texts that are read with all that is asked of them before the next ones


def jobs(config: EvaluateConfig, readings: Readings, rewards: Rewards, sets: Sequence[Benchmark]) -> list[Job]:
    """What has to be read for the checks that are asked for: name, number of texts, and the work."""
    out: list[Job] = []
    for benchmark in sets if config.robustness_items else []:
        for version in robustness.variants(benchmark, config.robustness_items).values():
            for wanted, rows in label_work(rewards, [version]):
                out.append(("attacks and edits", len(rows), readings.fill(wanted, rows)))
    for benchmark in _comparable(sets) if config.consistency_items else []:
        rows = consistency.rows(benchmark, config.consistency_items)
        work = readings.fill([(JudgePrompt.load("pairwise"), Need(labels=True))], rows)
        out.append(("compare", len(rows), work))
    return out


def slices(sets: Sequence[Benchmark], batch: int) -> Iterator[list[Benchmark]]:
    """All items in slices of at least `SLICE` batches of texts; a slice holds parts of the benchmarks.

    Items come in the order of their prompts' hashes, whatever benchmark they are of, so any number of slices is a fair
    sample of all. Those of one prompt stay together: they share it, and are compared with each other.
    """
    owners = sorted(
        (
            (hashlib.sha256(item.group.encode()).digest(), n, i)
            for n, b in enumerate(sets)
            for i, item in enumerate(b.items)
        )
    )
    some: list[list[Item]] = [[] for _ in sets]
    texts, last = 0, b""
    for key, n, i in owners:
        if key != last and texts >= SLICE * batch:
            yield [replace(b, items=tuple(items)) for b, items in zip(sets, some, strict=True) if items]
            some, texts = [[] for _ in sets], 0
        some[n].append(sets[n].items[i])
        texts, last = texts + len(sets[n].items[i].responses), key
    if texts:
        yield [replace(b, items=tuple(items)) for b, items in zip(sets, some, strict=True) if items]


def label_work(
    rewards: Mapping[str, Reward], sets: Sequence[Benchmark], keep_layers: Sequence[int] = ()
) -> list[tuple[list[tuple[JudgePrompt, Need]], Rows]]:
    """What has to be read, as texts and the label prompts that take them, each with all that its readouts need.

    One forward serves all prompts of the same texts.
    """
    keep = Need(labels=True, hidden=frozenset(keep_layers))
    works: dict[str, tuple[dict[str, tuple[JudgePrompt, list[Need]]], Rows]] = {}
    for reward in rewards.values():
        if not isinstance(reward, LatentReward):
            continue
        texts = [r for b in sets for r in tables.texts(b.items, reward)]
        for prompt, rows, need in reward.requests(texts):
            prompts, _ = works.setdefault(_digest(rows), ({}, list(rows)))
            own = rows == texts and prompt.name == "weighted"
            _, known = prompts.setdefault(prompt.hash, (prompt, [keep] if own else []))
            fits = next((i for i, n in enumerate(known) if n.hidden_lens == need.hidden_lens or not n.hidden), None)
            if fits is None:
                known.append(need)
            else:
                known[fits] = known[fits] | need
    return [([(p, need) for p, known in prompts.values() for need in known], rows) for prompts, rows in works.values()]


def _digest(rows: Sequence[Mapping[str, object]]) -> str:
    text = json.dumps(list(rows), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def robustness_results(
    config: EvaluateConfig, readings: Readings, rewards: Rewards, sets: Sequence[Benchmark]
) -> dict[str, Robustness]:
    """See `robustness.measure`; empty when it was not asked for."""
    if not config.robustness_items:
        return {}

    def score(benchmark: Benchmark) -> dict[str, Column]:
        out: dict[str, Column] = {}
        for name, reward in rewards.items():
            out |= scorers.columns(name, reward, readings, tables.texts(benchmark.items, reward), greedy=False)
        return out

    return robustness.measure(sets, config.robustness_items, score, resamples=config.resamples)


def consistency_results(
    config: EvaluateConfig, readings: Readings, rewards: Rewards, sets: Sequence[Benchmark]
) -> dict[str, Consistency]:
    """Benchmark -> see `consistency.measure`; empty when it was not asked for."""
    count, out = config.consistency_items, {}
    comparing = PairwiseReward(readings.judge, name="consistency")
    for benchmark in _comparable(sets) if count else []:
        reading = readings.fetch(comparing.prompt, consistency.rows(benchmark, count), comparing.need)
        d, first = comparing.odds(reading)
        items = benchmark.sample(count).items
        scores = {}
        for name, reward in rewards.items():
            column = scorers.columns(name, reward, readings, tables.texts(items, reward), greedy=False)[name].scores
            starts = np.cumsum([0, *(len(i.responses) for i in items)])
            at = [(s + i, s + j) for s, item in zip(starts, items, strict=False) for i, j in consistency.pairs(item)]
            scores[name] = column[np.array(at)]
        out[benchmark.name] = consistency.measure(benchmark, count, d, first, scores, resamples=config.resamples)
    return out


def _comparable(sets: Sequence[Benchmark]) -> list[Benchmark]:
    return [b for b in sets if b.kind != "rating"]
