"""Packs side by side on CPU: workers of few threads each, on modules of their own around the same weights.

One packed forward keeps more than one core poorly busy: attention is a small product per node. Two forwards at once do.
"""

from __future__ import annotations

import copy
import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from latent_rewards.forward import Blocks

MOST_WORKERS = 4


def replica(blocks: Blocks) -> Blocks:
    """The same tensors in modules of their own, so that hooks of one forward do not meet another's."""
    tensors = itertools.chain(blocks.model.parameters(), blocks.model.buffers())
    out = Blocks(copy.deepcopy(blocks.model, {id(t): t for t in tensors}))
    out.plain_head = blocks.plain_head
    return out


def run_side_by_side(step: Callable[[int, Blocks], None], waits: Sequence[set[int]], workers: Sequence[Blocks]) -> None:
    """Run step(0), step(1), ... in this order, as many at once as there are workers.

    Args:
        step: what to do, and on which worker's modules; in a thread, without gradients.
        waits: for each step the earlier ones that it has to wait for.
        workers: modules, one per thread; PyTorch's threads are shared out among them.

    Raises:
        Exception: that of the first step that failed; those not begun are left out.
    """
    free: queue.SimpleQueue[Blocks] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    futures: list[Future[None]] = []
    failed = threading.Event()

    def run(i: int) -> None:
        for before in waits[i]:
            futures[before].result()
        if failed.is_set():
            return
        worker = free.get()
        try:
            with torch.no_grad():
                step(i, worker)
        except BaseException:
            failed.set()
            raise
        finally:
            free.put(worker)

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        len(workers), initializer=torch.set_num_threads, initargs=(max(1, threads // len(workers)),)
    )
    try:
        with pool:
            for i in range(len(waits)):
                futures.append(pool.submit(run, i))
        for future in futures:
            future.result()
    finally:
        # Setting a thread's number also sets what new threads begin with.
        torch.set_num_threads(threads)
