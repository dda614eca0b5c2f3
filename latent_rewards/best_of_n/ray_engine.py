"""The Ray engine: a pool of actors, each with a judge of its own, does the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latent_rewards.best_of_n.config import BestOfNConfig
from latent_rewards.best_of_n.groups import open_input
from latent_rewards.best_of_n.plan import Plan
from latent_rewards.best_of_n.shards import ShardStore
from latent_rewards.best_of_n.work import Engine, Worker
from latent_rewards.files.sources import InputError
from latent_rewards.files.types import JsonObject


class ShardActor:
    """One actor: loads its judge once, then does the shards it is sent. All see the same folder."""

    def __init__(self, config: BestOfNConfig, plan: Plan, folder: str, resolved: JsonObject) -> None:
        engine = Engine(config, resolved=resolved)
        self.worker = Worker(engine, plan, open_input(config), ShardStore(Path(folder)))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Do the shards of a batch; whether each was done here."""
        return {**batch, "here": np.array([self.worker.do(int(i)) for i in batch["shard"]])}


def do_all(config: BestOfNConfig, plan: Plan, folder: Path, resolved: JsonObject) -> None:
    """Do all shards that are not done, on `config.workers` actors of a running or a new local Ray cluster.

    An actor that dies is started again by Ray Data and its shard with it.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as err:
        raise InputError("the Ray engine needs `pip install 'latent-rewards[ray]'`") from err
    store = ShardStore(folder)
    todo = [{"shard": i} for i in range(len(plan.shards)) if not store.done(i)]
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        shards = ray.data.from_items(todo, override_num_blocks=min(len(todo), 64 * config.workers))
        done = shards.map_batches(
            ShardActor, fn_constructor_args=(config, plan, str(folder.resolve()), resolved), batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=config.workers), num_gpus=config.gpus_per_worker or None,
        )  # fmt: skip
        for _ in done.iter_batches(batch_size=None):
            pass
    finally:
        if started:
            ray.shutdown()
