"""Packs side by side on CPU: workers of few threads each, on modules of their own around the same weights.

One packed forward keeps more than one core poorly busy: attention is a small product per node. Two forwards at once do.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from latent_rewards.engine.blocks import Blocks

MOST_WORKERS = 4


def replica(blocks: Blocks) -> Blocks:
    """The same tensors in modules of their own, so that hooks of one forward do not meet another's."""
    tensors = itertools.chain(blocks.model.parameters(), blocks.model.buffers())
    out = Blocks(copy.deepcopy(blocks.model, {id(t): t for t in tensors}))
    out.head.why_own = blocks.head.why_own
    return out


def run_side_by_side(step: Callable[[int, Blocks], None], waits: Sequence[set[int]], workers: Sequence[Blocks]) -> None:
    """Run step(0), step(1), ..., as many at once as there are workers; a free worker takes the first that can run.

    Args:
        step: what to do, and on which worker's modules; in a thread, without gradients.
        waits: for each step the earlier ones that it has to wait for.
        workers: modules, one per thread; PyTorch's threads are shared out among them.

    Raises:
        Exception: that of the first step that failed; those not begun are left out.
    """
    left: list[int] = list(range(len(waits)))
    done: set[int] = set()
    errors: list[BaseException] = []
    change = threading.Condition()

    def next_step() -> int | None:
        while left and not errors:
            ready = next((i for i in left if waits[i] <= done), None)
            if ready is not None:
                left.remove(ready)
                return ready
            change.wait()
        return None

    @torch.no_grad()
    def work(worker: Blocks) -> None:
        while True:
            with change:
                i = next_step()
            if i is None:
                return
            try:
                step(i, worker)
            except BaseException as err:
                errors.append(err)
            with change:
                done.add(i)
                change.notify_all()

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        len(workers), initializer=torch.set_num_threads, initargs=(max(1, threads // len(workers)),)
    )
    try:
        with pool:
            list(pool.map(work, workers))
    finally:
        # Setting a thread's number also sets what new threads begin with.
        torch.set_num_threads(threads)
    if errors:
        raise errors[0]
