"""Windows, chunks and sinks in the tree: every token sees of its own path what the plain forward shows it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import masking_utils

from latent_rewards.engine import attention, attention_cpu
from latent_rewards.engine import local as local_module
from latent_rewards.engine.attention_kernels import FlashCPU, FlashCUDA, Kernel
from latent_rewards.engine.blocks import Blocks, States, reference_states
from latent_rewards.engine.invariant import InvariantForward
from latent_rewards.engine.local import Local, from_marker, is_marker, paths_of, wanted_local
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.tree import TreeForward
from latent_rewards.engine.tree_plan import CannotShareError, Span, TreePlan, following

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXED = ["sliding_attention", "full_attention"] * 2
SOME: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 2}
FAMILIES: dict[str, Callable[[int], Any]] = {
    "mistral": lambda n: transformers.MistralConfig(**SIZES, sliding_window=n),
    "phi3": lambda n: transformers.Phi3Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}, sliding_window=n),
    "qwen2": lambda n: transformers.Qwen2Config(**SIZES, **SOME, sliding_window=n),
    "qwen3": lambda n: transformers.Qwen3Config(**SIZES, **SOME, sliding_window=n),
    "qwen2_moe": lambda n: transformers.Qwen2MoeConfig(
        **SIZES, use_sliding_window=True, sliding_window=n, max_window_layers=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "phimoe": lambda n: transformers.PhimoeConfig(**SIZES, **MOE, sliding_window=n),
    "gemma2": lambda n: transformers.Gemma2Config(
        **SIZES, sliding_window=n, attn_logit_softcapping=3.0, query_pre_attn_scalar=8, layer_types=MIXED
    ),
    "gemma3": lambda n: transformers.Gemma3TextConfig(**SIZES, sliding_window=n, layer_types=MIXED),
    "gpt_oss": lambda n: transformers.GptOssConfig(**SIZES, **MOE, sliding_window=n, layer_types=MIXED),
    "gpt_oss ends in a window": lambda n: transformers.GptOssConfig(
        **SIZES, **MOE, sliding_window=n, layer_types=MIXED[1:] + MIXED[:1]
    ),
    "llama4": lambda n: transformers.Llama4TextConfig(
        **SIZES, **MOE, intermediate_size_mlp=48, attention_chunk_size=n, floor_scale=n + 3, attn_scale=0.5,
        no_rope_layers=[1, 0, 1, 0], interleave_moe_layer_step=2,
    ),
    "llama4 ends in a chunk": lambda n: transformers.Llama4TextConfig(
        **SIZES, **MOE, intermediate_size_mlp=48, attention_chunk_size=n, floor_scale=n + 3, attn_scale=0.5,
        no_rope_layers=[1, 0, 0, 1], interleave_moe_layer_step=2,
    ),
}  # fmt: skip
LAYERS = (0, 1, 3, 4)


def make_blocks(family: str, size: int) -> Blocks:
    torch.manual_seed(5)
    config = FAMILIES[family](size)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if "sinks" in name:
            p.copy_(torch.randn(p.shape) * 2)
    return Blocks(model)


def random_text(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(n)]


def texts(seed: int, *, prompts: int = 3, completions: int = 3, longest: int = 80) -> list[list[int]]:
    """Head -> prompt -> completion, and a text that is a prefix of the others."""
    rng = random.Random(seed)
    head = random_text(rng, rng.randrange(1, longest))
    out = [head]
    for _ in range(prompts):
        prompt = [*head, *random_text(rng, rng.randrange(longest))]
        out += [[*prompt, *random_text(rng, rng.randrange(1, longest))] for _ in range(completions)]
    return out


def reads(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[len(s) // 2, len(s) - 1] for s in sequences]


def close(ours: States, plain: States, atol: float = 5e-5) -> None:
    assert ours.final is not None
    torch.testing.assert_close(ours.final, plain.final, rtol=1e-5, atol=atol)
    for layer, rows in ours.inner.items():
        torch.testing.assert_close(rows, plain.inner[layer], rtol=1e-5, atol=atol)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("size", [17, 60])
def test_families_share_beyond_their_windows_and_equal_both_references(
    family: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = make_blocks(family, size)
    forward = TreeForward(blocks, batch_tokens=100_000 if size == 17 else 90, min_saving=4)
    assert forward.few_rows
    sequences = texts(2)
    assert max(map(len, sequences)) > 2 * size
    ours = forward.read(sequences, reads(sequences), layers=LAYERS)
    assert forward.usable and forward.sharing.startswith("shared prefixes")
    assert not [r for r in caplog.records if r.name.startswith("latent_rewards")]
    assert forward.tokens_run < 0.7 * sum(map(len, sequences))
    close(ours, read_states(blocks, sequences, reads(sequences), layers=LAYERS))
    _, one_by_one = reference_states(blocks, sequences, reads(sequences), layers=LAYERS)
    close(States(ours.final, {k: v for k, v in ours.inner.items() if k < blocks.n_layers}), one_by_one)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt_oss", "llama4"])
@pytest.mark.parametrize("size", [60, 5000])
def test_long_nodes_with_all_above_them_beside_short_ones_that_are_merged(
    monkeypatch: pytest.MonkeyPatch, family: str, size: int
) -> None:
    long, short, whole = [], [], attention_cpu.path_attention
    monkeypatch.setattr(attention_cpu, "path_attention", lambda q, *rest: (long.append(q.shape[1]), whole(q, *rest)))
    merge = attention._merge
    monkeypatch.setattr(attention, "_merge", lambda *args: (short.append(args[2]), merge(*args)))
    blocks, rng = make_blocks(family, size), random.Random(4)
    head = random_text(rng, 90)
    sequences = [[*head, *random_text(rng, n)] for n in (20, 80, 130, 47, 210)]
    forward = TreeForward(blocks)
    forward.read(sequences, reads(sequences), head=90, layers=LAYERS)  # with the checks of a first reading
    long.clear()
    ours = forward.read(sequences, reads(sequences), head=90, layers=LAYERS)
    close(ours, read_states(blocks, sequences, reads(sequences), layers=LAYERS))
    assert {80, 130, 210} <= set(long)
    if size > 1000:
        assert 20 not in long and any(isinstance(rows, list) and len(rows) == 20 + 47 for rows in short)


@pytest.fixture(scope="module", params=["gemma2", "gpt_oss ends in a window", "llama4 ends in a chunk"])
def made(request: pytest.FixtureRequest) -> Blocks:
    return make_blocks(request.param, 1)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30), size=st.integers(1, 90), batch_tokens=st.integers(5, 300), layer=st.integers(1, 4))
def test_random_trees_and_sizes(made: Blocks, seed: int, size: int, batch_tokens: int, layer: int) -> None:
    """Any size, also one that ends where a node does; few rows and all; what is kept from call to call."""
    config = made.decoder.config
    config.sliding_window = config.attention_chunk_size = size
    forward = TreeForward(made, batch_tokens=batch_tokens, min_saving=4)
    for part in (seed, seed + 1, seed):
        sequences = [*texts(seed, longest=40), *texts(part, prompts=1, longest=40)]
        ours = forward.read(sequences, reads(sequences), layers=(layer,))
        close(ours, read_states(made, sequences, reads(sequences), layers=(layer,)))
    assert forward.usable


@pytest.mark.parametrize("family", ["gemma3", "gpt_oss", "llama4"])
def test_a_size_at_every_place_around_a_text(family: str) -> None:
    """Off by one would show where the text is one token longer than what is seen."""
    rng = random.Random(0)
    head = random_text(rng, 30)
    sequences = [[*head, *random_text(rng, 6)] for _ in range(3)]
    blocks = make_blocks(family, 20)
    config, last = blocks.decoder.config, [[len(s) - 1] for s in sequences]
    forward, moved = TreeForward(blocks, min_saving=4), set()
    for size in range(28, 40):
        config.sliding_window = config.attention_chunk_size = size
        forward.cache.clear()
        ours = forward.read(sequences, last).final
        assert ours is not None
        close(States(ours), read_states(blocks, sequences, last))
        moved.add(tuple(ours[0, :3].tolist()))
    assert forward.usable and len(moved) >= 8, "every size up to the text's length reads otherwise"


def test_a_window_of_the_attention_alone_counts_where_no_mask_is_asked_for() -> None:
    q = torch.randn(1, 2, 5, 4)
    module = torch.nn.Module()
    with following(TreePlan([Span(0, 5, -1, end=5)])):
        out, _ = attention.attention_forward(module, q, q, q, None, sliding_window=2)
    want = torch.nn.functional.scaled_dot_product_attention(
        q, q, q, attn_mask=masking_utils.sdpa_mask(
            batch_size=1, q_length=5, kv_length=5, mask_function=masking_utils.sliding_window_causal_mask_function(2),
            allow_is_causal_skip=False,
        ),
    )  # fmt: skip
    torch.testing.assert_close(out, want.transpose(1, 2))
    with following(TreePlan([Span(0, 5, -1, end=5)])), pytest.raises(CannotShareError, match="mask of its own"):
        attention.attention_forward(module, q, q, q, torch.zeros(1, 1, 5, 5))


@pytest.mark.parametrize("size", [1, 2, 5, 8, 30])
@pytest.mark.parametrize("kind", ["window", "chunk"])
def test_what_is_seen_is_what_transformers_masks_show(kind: Any, size: int) -> None:
    made = (
        masking_utils.sliding_window_causal_mask_function(size)
        if kind == "window"
        else masking_utils.chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))
    )
    local = wanted_local(made)
    assert local == Local(kind, size) == from_marker(local.marker()) and is_marker(local.marker())
    q, k = torch.arange(20)[:, None], torch.arange(20)
    want = made(torch.tensor(0), torch.tensor(0), q, k)
    assert torch.equal(local.mask(range(20), range(20), q.device) == 0, want)
    assert torch.equal(local.mask(range(7, 20), range(3, 20), q.device) == 0, want[7:, 3:])
    assert [local.first(p) for p in range(20)] == want.int().argmax(1).tolist()
    pieces = local.pieces(range(3, 20))
    assert [p for piece in pieces for p in piece] == list(range(3, 20))
    assert kind == "window" or all(local.first(p) == local.first(piece.start) for piece in pieces for p in piece)


def test_packs_are_taken_apart_and_what_is_unknown_is_not_shared() -> None:
    at = torch.tensor([[0, 1, 2, 0, 1]])
    packed = masking_utils.packed_sequence_compatibility_function(
        masking_utils.sliding_window_causal_mask_function(3), at, masking_utils.find_packed_sequence_indices(at)
    )
    assert wanted_local(packed) == Local("window", 3)
    assert wanted_local(masking_utils.causal_mask_function) is None
    either = masking_utils.or_masks(masking_utils.causal_mask_function, masking_utils.sliding_window_overlay(3))
    with pytest.raises(CannotShareError, match="a way of its own"):
        wanted_local(masking_utils.and_masks(either, masking_utils.causal_mask_function))
    with pytest.raises(CannotShareError, match="a window and a chunk"):
        both = (masking_utils.sliding_window_overlay(3), masking_utils.chunked_overlay(3, torch.zeros(1)))
        wanted_local(masking_utils.and_masks(*both))


@pytest.mark.parametrize("family", ["gemma3", "llama4"])
def test_one_token_more_or_less_is_found_at_load(
    family: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With true windows far longer than the texts of that check."""
    first, mask = Local.first, Local.mask

    def grown(local: Local) -> Local:
        return Local(local.kind, local.size + 1)

    monkeypatch.setattr(Local, "first", lambda local, p: first(grown(local), p))
    monkeypatch.setattr(Local, "mask", lambda local, *rest: mask(grown(local), *rest))
    blocks = make_blocks(family, 512)
    config = blocks.decoder.config
    before = config.sliding_window if family == "gemma3" else config.attention_chunk_size
    forward = TreeForward(blocks)
    assert not forward.usable and "relative difference" in forward.sharing
    assert len([r for r in caplog.records if "shared prefixes do not work here" in r.message]) == 1
    assert before == (config.sliding_window if family == "gemma3" else config.attention_chunk_size) == 512


def test_a_sink_left_out_is_found_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = make_blocks("gpt_oss", 512)
    assert TreeForward(blocks).usable
    shared = attention.tree_attention
    monkeypatch.setattr(attention, "tree_attention", lambda *args: shared(*args[:-2], None, args[-1]))
    assert not TreeForward(blocks).usable


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "llama4"])
def test_the_same_bits_alone_and_in_any_order(family: str) -> None:
    blocks = Blocks(make_blocks(family, 40).model.to(torch.bfloat16))
    sequences = [s for s in texts(3, longest=60) if len(s) > 40]
    cuts = [[20, min(70, len(s) - 1), len(s)] for s in sequences]
    forward = InvariantForward(blocks)
    assert forward.usable

    def read(which: list[int]) -> Tensor:
        some = [sequences[i] for i in which]
        out = forward.read(some, [[len(s) - 1] for s in some], cuts=[cuts[i] for i in which]).final
        assert out is not None
        return out

    together = read(list(range(len(sequences))))
    for i in range(len(sequences)):
        assert torch.equal(read([i])[0], together[i])
    order = list(range(len(sequences)))[::-1]
    assert torch.equal(read(order), together[order])


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "llama4"])
def test_a_reading_does_not_depend_on_what_was_read_before(family: str) -> None:
    blocks = Blocks(make_blocks(family, 40).model.to(torch.bfloat16))
    rng = random.Random(10)
    head, prompts = random_text(rng, 40), [random_text(rng, n) for n in (20, 80, 130)]
    batches = [
        [[*head, *prompts[p], c, *random_text(rng, 5 + 3 * c)] for p in which for c in range(3)]
        for which in ((0, 1), (1, 2), (2,))
    ]
    forwards = [TreeForward(blocks) for _ in batches]
    fresh = [f.read(b, [[len(s) - 1] for s in b], head=40).final for f, b in zip(forwards, batches, strict=True)]
    # A random model with few experts may be refused in bfloat16 for one text: where one expert turns into another.
    assert all(f.usable for f in forwards)
    used = TreeForward(blocks)
    for i in (0, 1, 2, 2, 1, 0):
        again = used.read(batches[i], [[len(s) - 1] for s in batches[i]], head=40).final
        assert again is not None and fresh[i] is not None and torch.equal(again, fresh[i])


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("family", ["mistral", "gpt_oss", "llama4"])
def test_bfloat16_strays_no_further_than_the_padded_forward(
    family: str, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_rewards.engine.attention_cpu._amx", lambda: amx)
    exact_blocks = make_blocks(family, 100)
    blocks = Blocks(copy.deepcopy(exact_blocks.model).to(torch.bfloat16))
    sequences = texts(2, prompts=4, completions=4, longest=160)
    exact = read_states(exact_blocks, sequences, reads(sequences)).final
    padded, ours = (
        read(sequences, reads(sequences)).final
        for read in (lambda *a: read_states(blocks, *a), TreeForward(blocks).read)
    )
    assert exact is not None and padded is not None and ours is not None
    assert (ours.float() - exact).norm() < 1.25 * (padded.float() - exact).norm()


def varlen(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, *_: Any, scale: float, **windows: Any) -> Any:
    """What torch's variable-length flash attention is documented to do: causal, aligned at the last query and key."""
    outs, lses = [], []
    for (a, b), (c, d) in zip(
        *(list(zip(e.tolist(), e.tolist()[1:], strict=False)) for e in (ends_q, ends_k)), strict=True
    ):
        place = torch.arange(d - c - (b - a), d - c)[:, None]
        j = torch.arange(d - c)
        left = windows.get("window_size_left")
        hidden = (j > place) | (j < place - (1 << 30 if left is None else left))
        mask = torch.zeros(b - a, d - c).masked_fill_(hidden, -torch.inf)
        out, lse = Kernel().attend(
            q[a:b].transpose(0, 1)[None], k[c:d].transpose(0, 1), v[c:d].transpose(0, 1), scale, mask=mask
        )
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, 1)


@pytest.mark.parametrize("family", ["gemma3", "qwen3", "gpt_oss", "llama4"])
def test_one_launch_for_all_paths_equals_the_loop(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that the accelerator's path gathers, with the kernel written out."""

    class Written(FlashCUDA):
        attend, own = FlashCPU.attend, Kernel.own

    launched: list[int] = []

    def flash(*args: Any, **kwargs: Any) -> Any:
        launched.append(len(args[3]) - 1)
        return varlen(*args, **kwargs)

    monkeypatch.setattr(attention, "kernel_for", lambda *_: Written())
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    blocks = make_blocks(family, 50)
    forward = TreeForward(blocks, batch_tokens=300, min_saving=4)
    assert forward.usable
    sequences = texts(4, prompts=4)
    close(forward.read(sequences, reads(sequences)), read_states(blocks, sequences, reads(sequences)))
    assert max(launched) > 3


def test_paths_by_hand() -> None:
    past: Any = [[(torch.zeros(1, 2, 4),) * 2], [(torch.zeros(1, 1, 4),) * 2]]  # positions 0..2
    spans = [Span(0, 2, -1, past, end=5), Span(2, 5, 0, end=8), Span(5, 6, 0, end=6)]
    window = paths_of(spans, Local("window", 3), torch.device("cpu"))
    #         node 0 at 3, 4   node 1 at 5..7      node 2 at 5
    assert window.rows.tolist() == [1, 2, 3, 4, 3, 4, 5, 6, 7, 3, 4, 8]
    assert window.query_ends.tolist() == [0, 2, 5, 6] and window.key_ends.tolist() == [0, 4, 9, 12]
    chunk = paths_of(spans, Local("chunk", 4), torch.device("cpu"))
    assert chunk.rows.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7, 4, 8]
    assert chunk.query_ends.tolist() == [0, 1, 2, 5, 6] and (chunk.most_queries, chunk.most_keys) == (3, 4)
    assert local_module.from_marker(Local("chunk", 4).marker()).first(7) == 4


@pytest.mark.parametrize(
    "family", [pytest.param("gemma3"), *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_oss", "llama4"))]
)
def test_compiled_blocks_equal_eager_ones(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: original(self, backend="aot_eager", **kw))
    torch._dynamo.reset()
    blocks, plain = make_blocks(family, 40), make_blocks(family, 40)
    forward = TreeForward(blocks, compile=True, min_saving=4)
    for seed in range(2):
        sequences = texts(seed)
        close(forward.read(sequences, reads(sequences)), read_states(plain, sequences, reads(sequences)))
    assert forward.usable
