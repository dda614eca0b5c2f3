"""The micro-batcher without HTTP: what is judged together, in what order, and what happens when something fails."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from contracts import FakeJudge

from latent_rewards import JudgePrompt, Need
from latent_rewards.judge.reading import Request
from latent_rewards.judge.requests import read_together
from latent_rewards.serving.batching import Batcher, Job, QueueFullError, choose, wait_until
from latent_rewards.serving.settings import ServeSettings

WEIGHTED, VERIFIER = JudgePrompt.load("weighted"), JudgePrompt.load("verifier")
LABELS = Need(labels=True)


def rows(*completions: str, prompt: str = "p") -> list[dict[str, str]]:
    return [{"prompt": prompt, "completion": c} for c in completions]


def job(group: str, *completions: str, **options: Any) -> Job:
    given = rows(*completions, prompt=group)
    return Job([Request(WEIGHTED, given, LABELS)], rows=len(given), group=group, **options)


class Gate(FakeJudge):
    """Waits before each read until it may go on, and notes what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.started, self.seen = threading.Event(), threading.Event(), []

    def read_rows(self, prompt: JudgePrompt, rows: Any, need: Need) -> Any:
        self.started.set()
        assert self.go.wait(20)
        self.seen.append([r["completion"] for r in rows])
        if any(r["completion"] == "boom" for r in rows):
            raise RuntimeError("boom")
        return super().read_rows(prompt, rows, need)


@pytest.fixture
def gate() -> Any:
    judge = Gate()
    batcher = Batcher([judge], ServeSettings(linger=0.0, max_batch_rows=6, max_queue_rows=8), load=lambda j: None)
    batcher.start()
    yield judge, batcher
    judge.go.set()
    batcher.close()


def test_groups_stay_together_and_nobody_starves() -> None:
    queue = [job("a", "1"), job("b", "1", "2"), job("a", "2"), job("c", "1"), job("a", "3"), job("b", "3")]
    assert [j.group for j in choose(queue, 4)] == ["a", "a", "a", "b"], "two rows do not fit, one does"
    assert [j.group for j in choose(queue, 6)] == ["a", "a", "a", "b", "b"]
    assert [j.group for j in choose(queue, 100)] == ["a", "a", "a", "b", "b", "c"]
    assert choose([job("x", *"123456789"), job("y", "1")], 4)[0].group == "x", "an oversized request is taken alone"
    assert len(choose([job("x", *"123456789"), job("y", "1")], 4)) == 1


def test_a_request_may_ask_to_be_judged_alone() -> None:
    queue = [job("a", "1"), job("a", "2", alone=True), job("a", "3")]
    assert [j.alone for j in choose(queue, 9)] == [False, False]
    assert [j.alone for j in choose(queue[1:], 9)] == [True]


def test_readings_come_back_to_whom_they_belong() -> None:
    judge = FakeJudge()
    both = Need(labels=True, layer_logits=frozenset({"normed"}))
    requests = [
        [Request(WEIGHTED, rows("a", "b"), LABELS)],
        [Request(VERIFIER, rows("c"), LABELS), Request(WEIGHTED, rows("c"), both)],
        [Request(WEIGHTED, rows("d"), Need(hidden=frozenset({2})))],
        [Request(WEIGHTED, rows("e"), Need(hidden=frozenset({2}), hidden_lens="raw"))],
    ]
    got = read_together(judge, requests)
    assert judge.reads == 3, "weighted, verifier, and weighted again for the other lens"
    for reads, readings in zip(requests, got, strict=True):
        for read, reading in zip(reads, readings, strict=True):
            (want,) = judge.read([read])
            assert len(reading) == len(read.rows)
            assert set(reading.hidden) == read.need.hidden and set(reading.layer_label_logits) == read.need.layer_logits
            assert (reading.label_logprobs is not None) == read.need.labels
            if read.need.labels:
                assert torch.equal(reading.label_logprobs, want.label_logprobs)
            for layer in reading.hidden:
                assert torch.equal(reading.hidden[layer], want.hidden[layer])


def test_one_bad_request_does_not_spoil_its_batch(gate: Any) -> None:
    judge, batcher = gate
    first = batcher.submit(job("w", "wait"))
    assert judge.started.wait(10)
    futures = [batcher.submit(job("g", text)) for text in ("one", "boom", "two")]
    judge.go.set()
    assert len(first.result(10)[0]) == 1
    assert [len(futures[i].result(10)[0]) for i in (0, 2)] == [1, 1]
    with pytest.raises(RuntimeError, match="boom"):
        futures[1].result(10)
    assert judge.seen == [["wait"], ["one", "boom", "two"], ["one"], ["boom"], ["two"]]


def test_the_queue_is_bounded_and_expired_requests_are_not_judged(gate: Any) -> None:
    judge, batcher = gate
    batcher.submit(job("w", "wait"))
    assert judge.started.wait(10)
    left = batcher.submit(job("g", "left"))
    late = batcher.submit(job("g", "late", deadline=time.monotonic() + 0.05))
    kept = batcher.submit(job("g", "kept"))
    with pytest.raises(QueueFullError) as full:
        batcher.submit(job("g", *"123456"))
    assert 1 <= full.value.retry_after <= 60
    left.cancel()
    time.sleep(0.06)
    judge.go.set()
    assert len(kept.result(10)[0]) == 1 and late.cancelled() and left.cancelled()
    assert judge.seen == [["wait"], ["kept"]]


def test_what_was_accepted_is_finished_and_then_nothing_more(gate: Any) -> None:
    judge, batcher = gate
    futures = [batcher.submit(job("g", str(i))) for i in range(4)]
    judge.go.set()
    batcher.close()
    assert all(f.done() and len(f.result()[0]) == 1 for f in futures)
    with pytest.raises(RuntimeError, match="shutting down"):
        batcher.submit(job("g", "late"))


def test_a_judge_that_cannot_be_loaded_is_told() -> None:
    def broken(judge: Any) -> None:
        raise OSError("no weights")

    batcher = Batcher([FakeJudge()], ServeSettings(), load=broken)
    batcher.start()
    while batcher.alive:
        time.sleep(0.01)
    batcher.close()
    assert isinstance(batcher.failure, OSError) and not batcher.ready and not batcher.alive


def test_the_end_does_not_wait_for_a_judge_that_loads_unless_requests_do() -> None:
    for asked in (0, 1):
        go, judge = threading.Event(), Gate()
        judge.go.set()
        batcher = Batcher([judge], ServeSettings(linger=0.0), load=lambda j, go=go: go.wait(20))
        batcher.start()
        futures = [batcher.submit(job("g", "x")) for _ in range(asked)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
        closing.join(5 if not asked else 0.5)
        assert closing.is_alive() == bool(asked) and batcher.loading
        go.set()
        assert [len(f.result(20)[0]) for f in futures] == [1] * asked
        closing.join(20)


def test_replicas_share_the_queue() -> None:
    judges = [Gate(), Gate()]
    batcher = Batcher(judges, ServeSettings(linger=0.0, max_batch_rows=1), load=lambda j: None)
    batcher.start()
    futures = [batcher.submit(job(str(i), "x")) for i in range(6)]
    assert all(j.started.wait(10) for j in judges), "both are at work at once"
    for judge in judges:
        judge.go.set()
    assert all(len(f.result(10)[0]) == 1 for f in futures)
    batcher.close()
    assert sum(len(j.seen) for j in judges) == 6


def test_clients_that_come_back_in_a_burst_are_judged_together() -> None:
    """Closed loop: the first is taken at once, the others while it is judged; after that all go together."""

    sizes = []

    class Slow(FakeJudge):
        def read_rows(self, prompt: JudgePrompt, rows: Any, need: Need) -> Any:
            time.sleep(0.3)
            sizes.append(len(rows))
            return super().read_rows(prompt, rows, need)

    batcher = Batcher([Slow()], ServeSettings(linger=0.01), load=lambda j: None)
    batcher.start()

    def client(i: int) -> None:
        time.sleep(0.05 if i else 0.0)
        for _ in range(3):
            batcher.submit(job(str(i // 4), str(i))).result(20)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert sizes[:2] == [1, 8] and sum(sizes) == 24


def test_how_long_a_free_judge_waits() -> None:
    idle = dict(since=10.0, latest=10.0, free=0.0, linger=0.005)
    assert wait_until(lasted=0.0, **idle) == 10.005, "a lone request"
    assert wait_until(lasted=1e6, **idle) == 10.05, "no longer after however long a batch"
    assert wait_until(lasted=1.0, **idle | {"latest": 10.03}) == pytest.approx(10.04), "more are coming"
    assert wait_until(lasted=1.0, **idle | {"latest": 10.049}) == pytest.approx(10.05), "at most 5 %"
    busy = dict(since=9.0, latest=9.5, free=10.0)
    assert wait_until(lasted=0.02, linger=0.005, **busy) == pytest.approx(10.001), "a quick judge hardly waits"
    assert wait_until(lasted=9.0, linger=0.0, **busy) == 10.0, "0 is never to wait"


@pytest.mark.parametrize("bad", [{"max_rows": 0}, {"deadline": 0.0}, {"linger": -1.0}, {"token": " x"}, {"token": ""}])
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ServeSettings(**bad)
