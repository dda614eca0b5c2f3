from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_tree import SHARING, close, make_blocks, random_trees, with_labels

from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.tree import TreeForward
from latent_rewards.engine.workers import Turns, replica, side_by_side


@pytest.fixture
def four_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    return make_blocks(SHARING["qwen3"]())


def run_side_by_side(step: Callable[[int], None], waits: list[set[int]], workers: list[Blocks]) -> None:
    turns = Turns(waits)

    def work(_: Blocks) -> None:
        for i in turns:
            step(i)

    side_by_side(work, turns, workers)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("keep", [True, False])
def test_packs_side_by_side_give_what_the_plain_forward_gives(
    blocks: Blocks, four_threads: None, keep: bool, compiled: bool
) -> None:
    forward = TreeForward(blocks, batch_tokens=160, min_saving=4, compile=compiled)
    for seed in range(4):
        sequences, positions = with_labels(random_trees(seed, prompts=8, completions=8, longest=90))
        keepable = None if keep else [0] * len(sequences)
        ours = forward.read(sequences, positions, layers=(1, 3), keepable=keepable)
        plain = read_states(blocks, sequences, positions, layers=(1, 3))
        close(ours, plain)
        again = forward.read(sequences, positions, layers=(1, 3), keepable=keepable)
        assert torch.equal(again.final, ours.final), "bit for bit, whichever worker came first"
    assert len(forward._replicas) == 3 and torch.get_num_threads() == 4


def test_a_replica_shares_weights_and_no_hooks(blocks: Blocks) -> None:
    other = replica(blocks)
    mine, theirs = dict(blocks.model.named_parameters()), dict(other.model.named_parameters())
    assert mine.keys() == theirs.keys() and all(mine[n] is theirs[n] for n in mine)
    assert other.layers[0] is not blocks.layers[0] and other.decoder.config is not blocks.decoder.config


def test_a_judge_whose_modules_cannot_be_copied_runs_one_pack_at_a_time(
    blocks: Blocks, four_threads: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Blocks) -> Blocks:
        raise TypeError("cannot pickle")

    monkeypatch.setattr("latent_rewards.engine.tree.replica", fail)
    forward = TreeForward(blocks, batch_tokens=160)
    sequences, positions = with_labels(random_trees(1, prompts=8, completions=8, longest=90))
    for _ in range(2):
        ours = forward.read(sequences, positions).final
    torch.testing.assert_close(ours, read_states(blocks, sequences, positions).final, atol=1e-4, rtol=1e-4)
    assert caplog.text.count("one pack at a time") == 1


def test_steps_wait_for_those_they_need_and_run_two_at_a_time(blocks: Blocks, four_threads: None) -> None:
    done: list[int] = []
    at_once, most, lock = 0, 0, threading.Lock()

    def step(i: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        assert torch.get_num_threads() == 2 and not torch.is_grad_enabled()
        time.sleep(0.02)
        with lock:
            at_once -= 1
            done.append(i)

    waits: list[set[int]] = [set(), set(), {0, 1}, set(), {3}, {2, 4}]
    run_side_by_side(step, waits, [blocks, blocks])
    assert sorted(done) == list(range(6)) and most == 2
    assert all(done.index(a) < done.index(b) for b, before in enumerate(waits) for a in before)


def test_a_free_worker_does_not_wait_for_a_step_that_cannot_run_yet(blocks: Blocks, four_threads: None) -> None:
    first, others = threading.Event(), []

    def step(i: int) -> None:
        if i == 0:
            assert first.wait(20), "steps 2 to 4 run while step 1 waits for step 0"
        elif i > 1:
            others.append(i)
            if len(others) == 3:
                first.set()

    run_side_by_side(step, [set(), {0}, set(), set(), set()], [blocks, blocks])
    assert sorted(others) == [2, 3, 4]


def test_the_first_error_comes_out_and_threads_come_back(blocks: Blocks, four_threads: None) -> None:
    ran: list[int] = []

    def step(i: int) -> None:
        ran.append(i)
        if i == 1:
            raise ValueError("step 1")
        time.sleep(0.02)

    for waits in ({1}, set()):
        ran.clear()
        with pytest.raises(ValueError, match="step 1"):
            run_side_by_side(step, [set(), set(), *(waits for _ in range(20))], [blocks, blocks])
        assert len(ran) < 10
    with ThreadPoolExecutor(1) as pool:
        assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 4
