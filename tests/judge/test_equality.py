"""The packed forward against the plain one-by-one forward on 500 real texts: 50 of each of ten public sets.

Where the two differ by more than float32 should, double precision says which of them is off.

LATENT_REWARDS_DATA=<folder> python -m pytest tests/judge/test_equality.py -m slow -s     # some 20 minutes on one core
"""

from __future__ import annotations

import gzip
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_rewards import HFJudge, JudgePrompt, Need, Request

DATA = os.environ.get("LATENT_REWARDS_DATA")
FILES = (
    "autoj", "faireval", "hh_harmless", "hhh_alignment", "llmbar", "llmbar_casestudy", "llmeval2", "qa_feedback",
    "rm_bench", "rmb",
)  # fmt: skip
EVERYTHING = Need(
    labels=True, hidden=frozenset({1, 10, 15, 29, 30}), hidden_lens="raw", layer_logits=frozenset({"raw", "normed"})
)
PLAIN: dict[str, Any] = {"share_prefixes": False, "batch_tokens": 1}  # every text alone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(not DATA, reason="needs LATENT_REWARDS_DATA"),
]


@cache
def judge(dtype: str, plain: bool) -> HFJudge:
    torch.set_num_threads(1)
    out = HFJudge("embedded", dtype=dtype, **(PLAIN if plain else {}))
    assert out.forward.usable != plain
    return out


@cache
def float64_judge() -> HFJudge:
    """The plain forward in double precision."""
    out = HFJudge("embedded", dtype="float32", **PLAIN)
    out.forward.blocks.model.double()
    return out


def rows_of(name: str, n: int = 50) -> list[dict[str, Any]]:
    """The two answers of n / 2 prompts, drawn with a fixed seed from those of up to 6,000 characters in all."""
    with gzip.open(Path(str(DATA), "pairwise", f"{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    fits = [r for r in rows if len(str(r["prompt"])) + max(len(r["chosen"]), len(r["rejected"])) < 6000]
    drawn = random.Random(0).sample(fits, n // 2)
    return [{"prompt": r["prompt"], "completion": r[k]} for r in drawn for k in ("chosen", "rejected")]


@pytest.mark.parametrize("name", FILES)
def test_float32_gives_what_the_plain_forward_gives(name: str) -> None:
    prompt, rows = JudgePrompt.load("weighted"), rows_of(name)
    plain, ours = (judge("float32", p).read([Request(prompt, rows, EVERYTHING)])[0] for p in (True, False))
    assert not any(ours.reasons) and not any(plain.reasons)
    pairs = {
        "label_logprobs": (ours.label_logprobs, plain.label_logprobs), "label_mass": (ours.label_mass, plain.label_mass)
    }  # fmt: skip
    pairs |= {f"hidden {k}": (v, plain.hidden[k]) for k, v in ours.hidden.items()}
    pairs |= {f"layer logits {k}": (v, plain.layer_label_logits[k]) for k, v in ours.layer_label_logits.items()}
    errors = {k: float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for k, (a, b) in pairs.items()}  # type: ignore[union-attr, operator]
    assert ours.label_logprobs is not None and plain.label_logprobs is not None
    apart = (ours.label_logprobs - plain.label_logprobs).abs().amax(1)
    nats = float(apart.max())
    worst = max(errors.values())
    print(f"\n{name}: {len(rows)} texts, label log-probs within {nats:.1e} nats, all within {worst:.1e} of its size")
    far = torch.nonzero(apart >= 5e-5)[:, 0].tolist()
    if far:  # the plain forward rounds, too: which of the two is it?
        exact = float64_judge().read([Request(prompt, [rows[i] for i in far], Need(labels=True))])[0].label_logprobs
        assert exact is not None
        ours_off, plain_off = (float((x[far] - exact).abs().max()) for x in (ours.label_logprobs, plain.label_logprobs))
        print(f"{len(far)} over 5e-5: from float64 ours is {ours_off:.1e} nats away, the plain forward {plain_off:.1e}")
        assert ours_off < 5e-5
    assert worst < 5e-5, errors


@pytest.mark.parametrize("name", ["llmbar", "hhh_alignment"])
def test_bfloat16_is_no_further_from_float32_than_the_plain_forward(name: str) -> None:
    prompt, rows = JudgePrompt.load("weighted"), rows_of(name)
    exact, plain, ours = (
        judge(dtype, p).read([Request(prompt, rows, Need(labels=True))])[0].label_logprobs
        for dtype, p in (("float32", False), ("bfloat16", True), ("bfloat16", False))
    )
    assert exact is not None and plain is not None and ours is not None
    rms = [float((x - exact).square().mean().sqrt()) for x in (ours, plain)]
    print(f"\n{name}: {len(rows)} texts, RMS distance to float32 in nats: ours {rms[0]:.4f}, plain {rms[1]:.4f}")
    assert rms[0] <= 1.1 * rms[1]
