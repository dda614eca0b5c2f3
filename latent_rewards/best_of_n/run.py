"""A run from configuration to result, in this process or with others beside it."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from latent_rewards.best_of_n.config import BestOfNConfig, Manifest
from latent_rewards.best_of_n.finish import Finisher
from latent_rewards.best_of_n.groups import layout_of, open_input, settled
from latent_rewards.best_of_n.plan import Plan, make_plan
from latent_rewards.best_of_n.sampling import Sampling
from latent_rewards.best_of_n.shards import ShardStore
from latent_rewards.best_of_n.work import Engine, Worker, is_main
from latent_rewards.files.sources import InputError
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.hf import Judge

logger = logging.getLogger(__name__)


def best_of_n(config: BestOfNConfig, judge: Judge | None = None) -> JsonObject | None:
    """Generate where asked, score, select, write.

    Start it again to go on after a stop; start it in several processes, on one node or on many that share `output`, to
    share the work. There is no communication but files, so nothing waits for a process that is gone. Whichever process
    finds all shards done writes the results.

    Args:
        config: the run.
        judge: a judge of your own instead of `config.judge`; not with the Ray engine.

    Returns:
        The counts of `summary.json`; None when other processes are still at shards, one of which will write it.

    Raises:
        InputError: a request that cannot be met, a changed configuration or input; before anything is scored.
        OSError: disk full or output not writable; what was done is kept.
        JudgeFailedError: the judge fails on everything.
        PolicyFailedError: a policy on vLLM or a server takes no prompt, or the server cannot be reached.
    """
    config.check()
    if judge is not None and config.engine == "ray":
        raise InputError("Ray actors load their own judge; give its arguments in config.judge")
    folder = make_folder(Path(config.output))
    source = open_input(config)
    config = settled(config, source)
    layout = layout_of(config, source)
    per_prompt = Sampling(**config.sampling).n if config.generator else 1
    plan = make_plan(source, layout, config, per_prompt)
    manifest, cheap = Manifest(folder), {**config.scoring(), "input": plan.facts(), "reward_specs": specs(config)}
    known = manifest.read()
    if known is not None:
        manifest.agree(cheap)
    store = ShardStore(folder)
    if not all(map(store.done, range(len(plan.shards)))):
        engine = Engine(config, judge, (known or {}).get("resolved"))
        manifest.agree({**cheap, **engine.facts()})
        if config.engine == "ray":
            from latent_rewards.best_of_n.ray_engine import do_all

            do_all(config, plan, folder, engine.resolved)
        else:
            _do_all(Worker(engine, plan, source, store))
    return _finish(config, plan, store, folder)


def make_folder(folder: Path) -> Path:
    """The run's folder, made and tried out.

    Raises:
        InputError: it cannot be made or written to, or it holds other things than a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{id(folder)}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as err:
        raise InputError(f"output {folder}: {err.strerror or err}; choose a folder that can be written to") from err
    if not (folder / "manifest.json").exists() and (folder / "shards").exists() and any((folder / "shards").iterdir()):
        raise InputError(f"output {folder} has shards but no manifest; choose another folder")
    return folder


def specs(config: BestOfNConfig) -> JsonObject:
    """Reward specs as plain data."""
    return {name: spec if isinstance(spec, str) else list(spec) for name, spec in config.reward_specs().items()}


def _do_all(worker: Worker) -> None:
    sizes = [size for _, _, size in worker.plan.shards]
    with tqdm(total=sum(sizes), unit="pair", file=sys.stderr, disable=not is_main(), dynamic_ncols=True) as bar:

        def seen(index: int, here: bool) -> None:
            if not here and not bar.disable:  # done before or elsewhere: no part of this process's speed
                bar.initial += sizes[index]
            bar.update(sizes[index])

        worker.do_all(seen)


def _finish(config: BestOfNConfig, plan: Plan, store: ShardStore, folder: Path) -> JsonObject | None:
    if not all(map(store.done, range(len(plan.shards)))):
        logger.info("other processes are still at shards; the last of them writes the results")
        return None
    with store.claim("finish") as mine:
        if not mine:
            return None
        finisher = Finisher(config, plan, store, folder)
        summary = finisher.earlier()
        if summary is None:
            for left in folder.glob(".finish-*"):
                shutil.rmtree(left, ignore_errors=True)
            summary = finisher.finish()
        return summary
