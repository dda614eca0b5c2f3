from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.engine.invariant import pieces

WEIGHTED, VERIFIER = JudgePrompt.load("weighted"), JudgePrompt.load("verifier")
NEED = Need(labels=True, hidden=frozenset({1, 2}), layer_logits=frozenset({"normed"}))
WORDS = "seven is a prime because nothing divides it but one and itself".split()


def texts(n: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": f"Question {rng.randrange(n // 3)}?",
            "completion": " ".join(rng.choices(WORDS, k=rng.randint(0, 30))),
        }
        for _ in range(n)
    ]


def tensors(reading: Any) -> list[torch.Tensor]:
    return [
        reading.label_logprobs, reading.label_mass, *(reading.hidden[k] for k in sorted(reading.hidden)),
        *reading.layer_label_logits.values(),
    ]  # fmt: skip


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.float32), ("qwen2", torch.bfloat16)])
def test_bit_identical_for_any_batching(make_judge: Any, family: str, dtype: torch.dtype) -> None:
    judge = make_judge(family, batch_invariant=True)
    judge.blocks.model.to(dtype)
    rows = texts(18)
    alone = [tensors(judge.read([Request(WEIGHTED, [row], NEED)])[0]) for row in rows]
    rng = random.Random(1)
    for _ in range(12):
        order = rng.sample(range(len(rows)), len(rows))
        at = 0
        while at < len(order):
            some = order[at : at + rng.randint(1, 9)]
            at += len(some)
            batch = [rows[i] for i in some]
            both = [Request(WEIGHTED, batch, NEED), Request(VERIFIER, batch, Need(labels=True))]
            reading = judge.read(both)[0] if rng.random() < 0.5 else judge.read([Request(WEIGHTED, batch, NEED)])[0]
            for k, i in enumerate(some):
                for got, want in zip(tensors(reading), alone[i], strict=True):
                    assert torch.equal(got[k], want[0])


def test_equals_the_plain_reading(make_judge: Any) -> None:
    judge, plain = make_judge("llama", batch_invariant=True), make_judge("llama", share_prefixes=False)
    rows = texts(9)
    ours, theirs = (tensors(j.read([Request(WEIGHTED, rows, NEED)])[0]) for j in (judge, plain))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=5e-5)
    once = judge.forward.tokens_run
    judge.read([Request(WEIGHTED, [{**r, "completion": r["completion"] + " so"} for r in rows], NEED)])[0]
    assert judge.forward.tokens_run - once < once, "the head is kept between calls"


def test_without_shared_prefixes_too(make_judge: Any) -> None:
    judge = make_judge("llama", batch_invariant=True, share_prefixes=False)
    rows = texts(6)
    together = tensors(judge.read([Request(WEIGHTED, rows, NEED)])[0])
    for i, row in enumerate(rows):
        for got, want in zip(together, tensors(judge.read([Request(WEIGHTED, [row], NEED)])[0]), strict=True):
            assert torch.equal(got[i], want[0])


def test_rows_that_do_not_fit_stay_unread(make_judge: Any) -> None:
    judge = make_judge("llama", batch_invariant=True, max_length=620)
    reading = judge.read(
        [Request(WEIGHTED, [{"prompt": "p", "completion": "x " * n} for n in (1, 900)], Need(labels=True))]
    )[0]
    assert reading.reasons[0] is None and reading.reasons[1] and bool(reading.label_logprobs[1].isnan().all())


def test_pieces_by_hand() -> None:
    a, b = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7]
    nodes = pieces([a, b, a], [[5], [4], [2, 5]], [(2, 3, 4, 6), (2, 3, 5, 5), (2, 3, 4, 6)])
    assert [n.tokens for n in nodes] == [[1, 2], [3], [4], [5, 6], [4, 7]]
    assert [n.parent for n in nodes] == [-1, 0, 1, 2, 1]
    assert nodes[3].reads == [(1, 0), (1, 3)] and nodes[1].reads == [(0, 2)] and nodes[4].reads == [(1, 1)]
    assert nodes[0].key and nodes[1].key and not any(n.key for n in nodes[2:])
    with pytest.raises(ValueError, match="do not increase"):
        pieces([a], [[0]], [(3, 2)])


def test_it_travels(folder: str) -> None:
    import pickle

    judge = HFJudge(folder, batch_invariant=True)
    again = pickle.loads(pickle.dumps(judge))
    rows = texts(3)
    assert torch.equal(
        *(j.read([Request(WEIGHTED, rows, Need(labels=True))])[0].label_logprobs for j in (judge, again))
    )
