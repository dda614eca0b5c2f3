"""Packs side by side on CPU: workers of few threads each, on modules of their own around the same weights.

One packed forward keeps more than one core poorly busy: attention is a small product per node. Two forwards at once do.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
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


class Turns:
    """Steps to do, given out to whoever iterates: a free worker gets the first that can run, and waits if none can.

    A step is done when its worker asks for the next.

    Args:
        waits: for each step the earlier ones that it has to wait for.
    """

    def __init__(self, waits: Sequence[set[int]]) -> None:
        self._waits = waits
        self._left, self._done = list(range(len(waits))), set[int]()
        self._change = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        while (step := self._next()) is not None:
            yield step
            with self._change:
                self._done.add(step)
                self._change.notify_all()

    def _next(self) -> int | None:
        with self._change:
            while self._left:
                ready = next((step for step in self._left if self._waits[step] <= self._done), None)
                if ready is not None:
                    self._left.remove(ready)
                    return ready
                self._change.wait()
        return None

    def stop(self) -> None:
        """Give out no more."""
        with self._change:
            self._left.clear()
            self._change.notify_all()


def side_by_side(work: Callable[[Blocks], None], turns: Turns, workers: Sequence[Blocks]) -> None:
    """Run work(worker) for all workers at once, until there are no more turns to take.

    Args:
        work: takes its steps from `turns`; in a thread, without gradients.
        turns: stopped by a worker that fails.
        workers: modules, one per thread; PyTorch's threads are shared out among them.

    Raises:
        Exception: that of the first step that failed; those not begun are left out.
    """
    errors: list[BaseException] = []

    @torch.no_grad()
    def run(worker: Blocks) -> None:
        try:
            work(worker)
        except BaseException as err:
            errors.append(err)
            turns.stop()

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        len(workers), initializer=torch.set_num_threads, initargs=(max(1, threads // len(workers)),)
    )
    try:
        with pool:
            list(pool.map(run, workers))
    finally:
        # Setting a thread's number also sets what new threads begin with.
        torch.set_num_threads(threads)
    if errors:
        raise errors[0]
