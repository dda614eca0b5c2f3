"""The run: reads what is missing, scores everything from the cache, and returns the results as plain data."""

from __future__ import annotations

import logging
import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from latent_rewards.engine.loading import default_device
from latent_rewards.evaluation import benchmarks, checks, scorers, scores, summary, tables
from latent_rewards.evaluation.analysis import Analysis
from latent_rewards.evaluation.benchmarks.rows import Benchmark
from latent_rewards.evaluation.config import EvaluateConfig
from latent_rewards.evaluation.readings import Readings
from latent_rewards.evaluation.results import Cost, Results
from latent_rewards.evaluation.scorers import Column
from latent_rewards.evaluation.stability import drift
from latent_rewards.files.cache import Cache
from latent_rewards.files.runs import machine, versions
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.fingerprint import judge_key, layout_of
from latent_rewards.judge.hf import HFJudge, Judge
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.build import build_spec
from latent_rewards.rewards.latent import LatentReward
from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward
from latent_rewards.rewards.probe import ProbeReward

__all__ = ["EvaluateConfig", "evaluate"]

logger = logging.getLogger(__name__)

LARGE = 10**9  # parameters of a judge whose stability is read only where it is asked for
SCHEMA = "latent-rewards/evaluation/1"


def evaluate(config: EvaluateConfig, judge: Judge | None = None) -> Results | None:
    """Measure every reward on every benchmark.

    Args:
        config: what to do. An earlier run's cache is taken up where it ended.
        judge: a judge of your own, instead of `config.judge`.

    Returns:
        The results as plain data (see `latent_rewards.evaluation.report.write`); None on all processes but the first,
        and where a part alone was read. The scores of all items are beside them, in `scores.jsonl.gz` of `output`.

    Raises:
        ValueError: a reward, a benchmark or a part that cannot be used; before anything is read.
        FileNotFoundError: no such benchmark or prompt.
    """
    started = time.perf_counter()
    if config.part is not None and not config.read:
        raise ValueError(f"part {config.part!r} is a part to read, and nothing is to be read: leave out one of the two")
    rank, world = _processes() if config.part is None else _part(config.part)
    sets = [
        benchmarks.load(name, config.limit, max_chars=config.max_chars, per_prompt=config.per_prompt)
        for name in config.benchmarks
    ]
    sets = _named_apart(sets)
    judge = judge or HFJudge(**({"model": config.judge} if isinstance(config.judge, str) else config.judge))
    rewards = {
        name: build_spec(spec, judge, samples=config.samples, temperature=config.temperature)
        for name, spec in config.specs().items()
    }
    _check_judge(judge, rewards)
    cache = Cache(config.cache or Path(config.output) / "cache", rank)
    readings = Readings(judge, cache, batch=config.batch, rank=rank, world=world)
    if config.read:
        _fill(config, readings, rewards, sets, show=rank == 0)
    if config.part is None:
        _wait(world)
    if rank != 0 or config.part is not None:
        cache.close()
        return None
    scored = [(b, _columns(config, readings, rewards, b)) for b in sets]
    scores.write(scored, Path(config.output) / scores.FILE)
    analyses = [Analysis(b, columns, resamples=config.resamples, seed=config.seed) for b, columns in scored]
    results: Results = {
        "schema": SCHEMA,
        "run": _facts(config, judge, rewards),
        "benchmarks": [a.to_dict() for a in analyses],
        "summary": summary.summarise(analyses),
        "pooled": summary.pooled(analyses),
        "stability": _stability(config, readings, _smooth(rewards), sets),
        "robustness": checks.robustness_results(config, readings, _latent(rewards), sets),
        "consistency": checks.consistency_results(config, readings, _smooth(rewards), sets),
        "cost": _cost(cache, started),
    }
    cache.close()
    return results


def _named_apart(sets: list[Benchmark]) -> list[Benchmark]:
    """Benchmarks of one name with their folder before it, or a number behind: results and scores go by the name."""
    seen: Counter[str] = Counter()
    out = []
    for b in sets:
        if sum(other.name == b.name for other in sets) > 1:
            b = replace(b, name=f"{Path(b.source).parent.name or '.'}/{b.name}")
        seen[b.name] += 1
        out.append(replace(b, name=f"{b.name}-{seen[b.name]}") if seen[b.name] > 1 else b)
    return out


def _check_judge(judge: Judge, rewards: Mapping[str, Reward]) -> None:
    """What is measured is read by one judge, whose readings are kept."""
    for name, reward in rewards.items():
        if reward.judge is not judge:
            raise ValueError(
                f"reward {name!r} is read by {reward.judge!r}, but this run measures {judge!r} alone: measure each "
                "judge by itself, or score with the jury and compare the columns"
            )


def _fill(
    config: EvaluateConfig,
    readings: Readings,
    rewards: Mapping[str, Reward],
    sets: Sequence[Benchmark],
    *,
    show: bool,
) -> None:
    """Read and sample all that is missing, with a progress bar over the rows.

    Slice by slice of the items, each with all that is asked of it, so that a run that is cut off has whole items.
    """
    jobs: list[checks.Job] = []
    for some in checks.slices(sets, config.batch):
        for wanted, rows in checks.label_work(rewards, some, config.keep_layers):
            jobs.append(("read " + "+".join(p.name for p, _ in wanted), len(rows), readings.fill(wanted, rows)))
    for reward in rewards.values():
        if isinstance(reward, LikertReward):
            rows = [r for b in sets for r in tables.texts(b.sample(config.likert_limit).items, reward)]
            jobs.append((f"sample {reward.prompt.name}", len(rows), readings.fill_answers(reward, rows)))
            if config.greedy:
                work = readings.fill_answers(reward, rows, greedy=True)
                jobs.append((f"greedy {reward.prompt.name}", len(rows), work))
    jobs += checks.jobs(config, readings, _latent(rewards), sets)
    with tqdm(total=sum(n for _, n, _ in jobs), unit="row", disable=not show, mininterval=1.0) as bar:
        for name, left, work in jobs:
            bar.set_description(name, refresh=False)
            for done in work:
                bar.update(done)
                left -= done
            bar.update(left)  # texts that came before, or are another process's


def _stability(
    config: EvaluateConfig, readings: Readings, rewards: Mapping[str, LatentReward], sets: Sequence[Benchmark]
) -> dict[str, dict[str, float | None]]:
    """See `stability.drift`, with a progress bar over rewards; empty where it was not asked for."""
    wanted = config.stability if config.stability is not None else _parameters(readings.judge) < LARGE
    wanted = wanted and config.read
    shown = tqdm(rewards.items() if wanted else (), desc="stability", unit="reward", disable=not wanted)
    return {name: drift(reward, readings, sets) for name, reward in shown}


def _parameters(judge: Judge) -> int:
    """Number of a judge's own parameters; 0 where it is not here."""
    return sum(p.numel() for p in judge.blocks.model.parameters()) if isinstance(judge, HFJudge) else 0


def _columns(
    config: EvaluateConfig, readings: Readings, rewards: Mapping[str, Reward], benchmark: Benchmark
) -> dict[str, Column]:
    out: dict[str, Column] = {}
    for name, reward in rewards.items():
        rows = tables.texts(benchmark.items, reward)
        found = scorers.columns(name, reward, readings, rows, greedy=config.greedy)
        if isinstance(reward, ProbeReward) and (share := reward.share_seen([i.prompt for i in benchmark.items])):
            found[name] = replace(found[name], facts={**found[name].facts, "trained_on": share})
        out |= found
    return out


def _latent(rewards: Mapping[str, Reward]) -> dict[str, LatentReward]:
    return {name: r for name, r in rewards.items() if isinstance(r, LatentReward)}


def _smooth(rewards: Mapping[str, Reward]) -> dict[str, LatentReward]:
    return {name: r for name, r in _latent(rewards).items() if not isinstance(r, GuidedLikertReward)}


def _facts(config: EvaluateConfig, judge: Judge, rewards: Mapping[str, Reward]) -> JsonObject:
    return {
        "config": asdict(config),
        "judge": judge.name,
        "judge_revision": judge.revision,
        "judge_fingerprint": judge_key(judge),
        "judge_arithmetic": judge.arithmetic,
        "prompts": {
            name: {"name": r.prompt.name, "hash": r.prompt.hash, "layout": layout_of(judge, r.prompt)}
            for name, r in rewards.items()
        },
        "rewards": {name: {"fingerprint": r.fingerprint, **r.facts} for name, r in rewards.items()},
        "versions": versions("latent-rewards", "torch", "transformers", "numpy"),
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else machine(),
    }


def _cost(cache: Cache, started: float) -> Cost:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    seconds = time.perf_counter() - started
    return {"stages": cache.cost(), "wall_seconds": seconds, "peak_memory_mib": peak, "peak_gpu_memory_mib": gpu}


def _processes() -> tuple[int, int]:
    """Rank and number of processes; under a launcher the process group is made here."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=default_device().type == "cpu")
    return state.process_index, state.num_processes


def _part(text: str) -> tuple[int, int]:
    """Rank and number of parts of "2/4"."""
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"part must be like '2/4', the second of four, got {text!r}")
    return int(number) - 1, int(parts)


def _wait(world: int) -> None:
    if world > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
