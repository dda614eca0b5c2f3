"""What only an accelerator shows: CUDA attention against the reference, bit-identity, memory that runs out.

CUDA_VISIBLE_DEVICES=0 python -m pytest -m gpu tests/engine/test_gpu.py
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.engine import tree_run
from latent_rewards.engine.blocks import Blocks, reference_states
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.tree import TreeForward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIZES: dict[str, Any] = {
    "vocab_size": 211, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.1,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=64),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=64, sliding_window=4096, attn_logit_softcapping=5.0, final_logit_softcapping=7.0
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=64),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 6}, head_dim=64, sliding_window=64
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **SIZES, head_dim=64, attention_chunk_size=64, intermediate_size_mlp=512, num_local_experts=2,
        layer_types=["chunked_attention", "full_attention"] * 2,
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES, head_dim=64, sliding_window=64, num_local_experts=2, num_experts_per_tok=2,  # no router ties
        rope_parameters={"rope_type": "default", "rope_theta": 150_000.0},
    ),
}  # fmt: skip
LAYERS = (0, 2, 4)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def blocks_of(family: str, dtype: torch.dtype) -> Blocks:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
    for name, p in model.named_parameters():
        if "sinks" in name:
            torch.nn.init.normal_(p)
    return Blocks(model.to("cuda", dtype).eval().requires_grad_(False))


def texts(seed: int = 0, *, prompts: int = 4, completions: int = 4) -> list[list[int]]:
    """Head, prompts and completions of mixed lengths, up to some 300 tokens."""
    rng = random.Random(seed)
    draw: Callable[[int], list[int]] = lambda n: [rng.randrange(211) for _ in range(n)]  # noqa: E731
    head = draw(40)
    shared = [[*head, *draw(rng.randrange(20, 120))] for _ in range(prompts)]
    return [[*s, *draw(rng.randrange(1, 140))] for s in shared for _ in range(completions)]


def last(sequences: list[list[int]]) -> list[tuple[int, int]]:
    return [(len(s) // 2, len(s) - 1) for s in sequences]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32_equals_the_plain_forward(family: str) -> None:
    blocks, sequences = blocks_of(family, torch.float32), texts()
    tree = TreeForward(blocks)
    got = tree.read(sequences, last(sequences), layers=LAYERS)
    assert tree.usable, tree.sharing
    _, want = reference_states(blocks, sequences, last(sequences), layers=LAYERS)
    assert got.final is not None and want.final is not None
    torch.testing.assert_close(got.final, want.final, atol=1e-4, rtol=1e-4)
    for layer, states in want.inner.items():
        torch.testing.assert_close(got.inner[layer], states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3", "llama4", "gpt_oss"])
def test_half_precision_strays_no_further_than_the_padded_forward(family: str, dtype: torch.dtype) -> None:
    """Against double-checked float32 states: flash attention over a tree rounds as a padded batch does."""
    sequences = texts()
    _, exact = reference_states(blocks_of(family, torch.float32), sequences, last(sequences))
    blocks = blocks_of(family, dtype)
    tree = TreeForward(blocks)
    ours, padded = tree.read(sequences, last(sequences)).final, read_states(blocks, sequences, last(sequences)).final
    assert tree.usable and exact.final is not None and ours is not None and padded is not None
    error = [float((x.float() - exact.final).norm() / exact.final.norm()) for x in (ours, padded)]
    assert error[0] < 1.5 * error[1], error


def test_batch_invariant_readings_are_the_same_bits(tokenizers: dict[str, Any]) -> None:
    tok = tokenizers["digits"]
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": len(tok)})
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda()
    rows = [{"prompt": f"Name {i} primes.", "completion": "7 and 11. " * (1 + i % 5)} for i in range(12)]
    prompt, need = JudgePrompt.load("weighted"), Need(labels=True, hidden=frozenset({2}))
    judge = HFJudge(model, tokenizer=tok, batch_invariant=True)
    together = judge.read([Request(prompt, rows, need)])[0]
    for order in (list(range(12))[::-1], [3], [5, 1, 11]):
        alone = HFJudge(model, tokenizer=tok, batch_invariant=True).read(
            [Request(prompt, [rows[i] for i in order], need)]
        )[0]
        assert torch.equal(alone.label_logprobs, together.label_logprobs[order])
        assert torch.equal(alone.hidden[2], together.hidden[2][order])


def test_the_card_and_the_processor_agree(make_judge: Callable[..., HFJudge], tokenizers: dict[str, Any]) -> None:
    rows = [{"prompt": "Name a prime.", "completion": c} for c in ("7", "Nine, I think.", "2 3 5 7 " * 30)]
    prompt, need = JudgePrompt.load("weighted"), Need(labels=True)
    judge = make_judge("qwen3")
    on_cpu = judge.read([Request(prompt, rows, need)])[0].label_logprobs
    judge.forget()
    moved = judge.to("cuda").read([Request(prompt, rows, need)])[0].label_logprobs
    judge.forget()
    back = judge.to("cpu").read([Request(prompt, rows, need)])[0].label_logprobs
    torch.testing.assert_close(moved, on_cpu, atol=1e-4, rtol=1e-4)
    assert torch.equal(back, on_cpu)


def test_out_of_memory_halves_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    blocks, sequences = blocks_of("llama", torch.bfloat16), texts(prompts=64, completions=16)
    want = TreeForward(blocks, batch_tokens=2048).read(sequences, last(sequences)).final
    torch.cuda.empty_cache()
    total, reserved = torch.cuda.mem_get_info()[1], torch.cuda.memory_reserved()
    tree = TreeForward(blocks, batch_tokens=1 << 20)
    torch.cuda.set_per_process_memory_fraction((reserved + (96 << 20)) / total)
    try:
        got = tree.read(sequences, last(sequences)).final
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tree.batch_tokens < 1 << 20 and "out of memory" in caplog.text
    assert want is not None and got is not None
    assert float((got.float() - want.float()).norm() / want.float().norm()) < 0.02


def test_prompts_are_packed_with_their_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward for the head, which later calls share, and one for all the rest."""
    blocks, sequences = blocks_of("llama", torch.bfloat16), texts(prompts=8, completions=4)
    tree, runs = TreeForward(blocks, batch_tokens=1 << 16), []
    packed = tree_run.packed
    monkeypatch.setattr(tree_run, "packed", lambda *a, **k: runs.append(1) or packed(*a, **k))
    tree.read(sequences, last(sequences), head=40)
    assert tree.usable and len(runs) == 2


def test_a_deep_model_that_rounds_much_still_shares() -> None:
    """At load the difference to a text read alone is held against what the model itself strays by."""
    torch.manual_seed(5)
    config = transformers.Qwen3Config(**{**SIZES, "num_hidden_layers": 48, "hidden_size": 512}, head_dim=64)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda().eval()
    tree = TreeForward(Blocks(model))
    assert tree.usable, tree.sharing
