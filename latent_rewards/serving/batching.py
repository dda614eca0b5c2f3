"""The micro-batcher: requests of many clients, judged together, groups kept together; one thread per judge."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from latent_rewards.judge.reading import Judge, Request
from latent_rewards.judge.requests import read_together
from latent_rewards.serving.settings import ServeSettings

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """One request: reads that may be judged together with others, or a call that has the judge for itself.

    Attributes:
        reads: what to read; the future's result is one `Reading` for each.
        call: what to do with the number of the judge, instead of reading; the future's result is what it returns.
        rows: how many rows it counts in the queue.
        group: requests with an equal one share a prefix and are judged together where they fit.
        alone: not to be judged together with other requests.
        deadline: `time.monotonic()` after which nobody waits for it any more.
    """

    reads: Sequence[Request] = ()
    call: Callable[[int], Any] | None = None
    rows: int = 0
    group: str = ""
    alone: bool = False
    deadline: float = math.inf
    future: Future[Any] = field(default_factory=Future)


class QueueFullError(Exception):
    """No room for this request; `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Batcher:
    """Feeds judges from one queue, each from a thread of its own.

    Args:
        judges: replicas of one judge, e.g. one per device.
        settings: limits of queue and batch.
        watch: called after each batch with (rows, seconds), from the judge's thread.
        load: called with a judge in its thread before it is used.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        settings: ServeSettings,
        *,
        watch: Callable[[int, float], None] = lambda rows, seconds: None,
        load: Callable[[Any], Any] = lambda judge: judge.blocks,
    ) -> None:
        self.judges, self.settings, self._watch, self._load = list(judges), settings, watch, load
        self._wake = threading.Condition()
        self._queue: list[Job] = []
        self._since = self._latest = 0.0
        self._closed = False
        self._rate = 0.0
        self._loaded: set[int] = set()
        self.failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"judge-{i}", daemon=True) for i in range(len(judges))
        ]

    @property
    def ready(self) -> bool:
        """Whether every judge is loaded and takes requests."""
        return len(self._loaded) == len(self.judges) and not self._closed and self.failure is None

    @property
    def loading(self) -> bool:
        """Whether a judge is being loaded."""
        return any(t.is_alive() and i not in self._loaded for i, t in enumerate(self._threads))

    @property
    def alive(self) -> bool:
        """Whether no judge's thread has ended."""
        return self.failure is None and all(t.is_alive() or not t.ident for t in self._threads)

    @property
    def waiting_rows(self) -> int:
        """Rows in the queue."""
        return sum(job.rows for job in self._queue)

    def start(self) -> None:
        """Load the judges and take requests; returns at once."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Judge what is in the queue, then end the threads; with an empty queue nobody waits for judges that load."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for i, thread in enumerate(self._threads):
            if thread.ident and (self._queue or i in self._loaded):
                thread.join()

    def submit(self, job: Job) -> Future[Any]:
        """Queue a request; never blocks for longer than a look at the queue.

        Raises:
            QueueFullError: too many rows are waiting.
            RuntimeError: the server is shutting down.
        """
        with self._wake:
            if self._closed:
                raise RuntimeError("the judge server is shutting down")
            waiting = self.waiting_rows
            if waiting and waiting + job.rows > self.settings.max_queue_rows:
                raise QueueFullError(self._retry_after(waiting))
            self._latest = time.monotonic()
            if not self._queue:
                self._since = self._latest
            self._queue.append(job)
            self._wake.notify()
        return job.future

    def _retry_after(self, waiting: int) -> int:
        return int(min(60, max(1, math.ceil(waiting / (self._rate or 10.0) / 4))))

    def _work(self, index: int) -> None:
        try:
            threads = self.settings.threads or max(1, torch.get_num_threads() // len(self.judges))
            torch.set_num_threads(threads)  # of this thread: OpenMP keeps the number per thread
            self._load(self.judges[index])
        except Exception as err:
            logger.exception("judge %d cannot be loaded", index)
            self.failure = err
            return
        self._loaded.add(index)
        free, seconds = time.monotonic(), 0.0
        while batch := self._take(free, seconds):
            started = time.monotonic()
            self._run(index, batch)
            free, rows = time.monotonic(), sum(job.rows for job in batch)
            seconds = max(free - started, 1e-9)
            if rows:
                self._rate = 0.8 * (self._rate or rows / seconds) + 0.2 * rows / seconds
            self._watch(rows, seconds)

    def _take(self, free: float, lasted: float) -> list[Job]:
        """The next batch, claimed, for a judge free since then, whose last batch lasted so long; empty at the end."""
        with self._wake:
            while True:
                now = time.monotonic()
                self._queue = [job for job in self._queue if not self._gone(job, now)]
                if not self._queue:
                    if self._closed:
                        return []
                    self._wake.wait()
                    continue
                left = wait_until(self._since, self._latest, free, lasted, self.settings.linger) - now
                if left > 0 and self.waiting_rows < self.settings.max_batch_rows and not self._closed:
                    self._wake.wait(left)
                    continue
                batch = choose(self._queue, self.settings.max_batch_rows)
                self._queue = [job for job in self._queue if not any(job is b for b in batch)]
                claimed = [job for job in batch if job.future.set_running_or_notify_cancel()]
                if claimed:
                    return claimed

    @staticmethod
    def _gone(job: Job, now: float) -> bool:
        if now >= job.deadline:
            job.future.cancel()
        if job.future.cancelled():
            job.future.set_running_or_notify_cancel()
            return True
        return False

    def _run(self, index: int, batch: list[Job]) -> None:
        judge = self.judges[index]
        call = batch[0].call  # whoever has the judge for itself is alone in its batch
        try:
            results = read_together(judge, [job.reads for job in batch]) if call is None else [call(index)]
        except Exception as err:
            if len(batch) > 1:
                logger.warning("a batch of %d requests failed (%s); judging them one by one", len(batch), err)
                for job in batch:
                    self._run(index, [job])
            else:
                batch[0].future.set_exception(err)
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)


def wait_until(since: float, latest: float, free: float, lasted: float, linger: float) -> float:
    """When a judge that is free stops waiting for company. Clients that wait for each answer come back in a burst.

    Without that, they would split into those that a judge takes at once and those that arrive meanwhile, with groups
    torn apart, for good.

    Args:
        since: when the oldest request came to an empty queue.
        latest: when the latest came.
        free: since when the judge has been free.
        lasted: seconds of its last batch.
        linger: of the settings.

    Returns:
        Time at which nobody has come for `linger` (or 1 % of the last batch, up to 10 times `linger`), at the latest
        when it has waited for `linger` if it was idle, or 5 % of the last batch (up to 100 times `linger`).
    """
    quiet = max(linger, min(lasted / 100, 10 * linger))
    longest = max(linger if since > free else 0.0, min(lasted / 20, 100 * linger))
    return min(max(latest, free) + quiet, max(since, free) + longest)


def choose(queue: Sequence[Job], max_rows: int) -> list[Job]:
    """The next batch: the oldest request, those of its group, then the next oldest group, as far as they fit.

    Args:
        queue: requests, oldest first, not empty.
        max_rows: most rows of a batch; the oldest request is taken whatever its size.

    Returns:
        Requests to be judged together, groups side by side.
    """
    first = queue[0]
    if first.alone or first.call is not None:
        return [first]
    rows = 0
    batch: list[Job] = []
    order = {group: i for i, group in reversed(list(enumerate(job.group for job in queue)))}
    for job in sorted(queue, key=lambda j: order[j.group]):  # stable: within a group oldest first
        if job.alone or job.call is not None or (batch and rows + job.rows > max_rows):
            continue
        batch.append(job)
        rows += job.rows
    return batch
