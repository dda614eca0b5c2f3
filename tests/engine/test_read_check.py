"""In coarse types, the check at load holds a difference against the own rounding of the model; no excuse for faults."""

import pytest
import torch
import transformers

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.read_check import ReadCheck, telling_depth
from latent_rewards.engine.tree import TreeForward
from latent_rewards.engine.ways import Ways


def blocks(dtype, layers=2):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Blocks(transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval())


@pytest.fixture(scope="module")
def deep():
    """A model whose layers add up their rounding."""
    return blocks(torch.bfloat16, 64)


def strayed(states, size):
    noise = torch.randn(states.final.shape, generator=torch.Generator().manual_seed(1))
    return States((states.final.float() * (1 + size * noise)).to(states.final.dtype), {})


def reader(judge, size):
    return lambda sequences, positions, head: strayed(read_states(judge, sequences, positions), size)


@pytest.mark.parametrize("size, told", [(0.0, False), (0.06, False), (0.25, True), (2.0, True)])
def test_a_difference_is_held_against_rounding(deep, size, told):
    judge = deep
    reason = ReadCheck(judge).difference(reader(judge, size))
    assert bool(reason) is told
    assert not told or "where rounding explains" in reason


def test_all_layers_are_asked_only_if_the_first_differ(deep, monkeypatch):
    depths = []
    read = reader(deep, 0.0)
    count = lambda *texts: depths.append(len(deep.layers)) or read(*texts)  # noqa: E731
    assert not ReadCheck(deep).difference(count) and depths == [2]
    assert len(deep.layers) == 64
    read = reader(deep, 0.25)
    assert ReadCheck(deep).difference(count) and depths == [2, 2, 64]


def test_what_comes_after_the_layers_is_part_of_the_check():
    """GPT-2 reshapes the last layer's states to all tokens of the text, so that layer cannot run for few rows."""
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=6, n_head=4, bos_token_id=None, eos_token_id=None
    )
    judge = Blocks(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    tree = TreeForward(judge)
    assert tree.usable and not tree.few_rows
    texts = [[*range(60), *[(11 * i + b) % 97 for i in range(30)]] for b in range(4)]
    at = [[len(text) - 1] for text in texts]
    got, want = tree.read(texts, at), read_states(judge, texts, at, batch_tokens=1)
    torch.testing.assert_close(got.final, want.final, atol=1e-4, rtol=1e-4)


SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


@pytest.mark.parametrize("depth, config", [
    (2, transformers.LlamaConfig(**SMALL, num_hidden_layers=7)),
    (12, transformers.Gemma3TextConfig(**SMALL, num_hidden_layers=18, sliding_window=16)),  # every sixth sees all
    (4, transformers.GptOssConfig(**SMALL, num_hidden_layers=8, sliding_window=16, num_local_experts=2)),
    (8, transformers.Llama4TextConfig(  # chunks but for every fourth, experts in every second
        **SMALL, num_hidden_layers=12, num_local_experts=2, interleave_moe_layer_step=2, intermediate_size_mlp=48,
    )),
    (3, transformers.Qwen2MoeConfig(  # the first without experts: there is no second of it
        **SMALL, num_hidden_layers=6, num_experts=2, mlp_only_layers=[0], moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )),
])  # fmt: skip
def test_the_check_at_load_meets_each_kind_of_layer_twice(depth, config):
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert telling_depth(Blocks(model.eval()).layers) == depth


def short_texts():
    """Texts of 60 tokens, hardly longer than those that are read at load."""
    texts = [[*[(7 * i + 3) % 97 for i in range(40)], *[(11 * i + 5 * b) % 97 for i in range(20)]] for b in range(4)]
    return texts, [[len(text) - 1] for text in texts]


@pytest.mark.parametrize("before", ["nothing", "its first layers", "a text alone"])
def test_a_fault_deeper_than_the_check_at_load_shows_with_the_first_texts(before, caplog):
    texts, at = short_texts()
    judge = blocks(torch.float32, 6)
    alone = 60  # packs are of other lengths
    judge.layers[4].register_forward_hook(lambda _m, _a, out: out if out.shape[1] == alone else out * 2)
    tree = TreeForward(judge)
    if before == "its first layers":
        tree.read(texts, at, layers=(2,), final=False)
    if before == "a text alone":
        tree.read(texts[:1], at[:1])
    assert tree.usable
    got = tree.read(texts, at)
    assert not tree.usable and "shared prefixes do not work here" in caplog.text
    want = read_states(judge, texts, at, batch_tokens=1)
    torch.testing.assert_close(got.final, want.final, atol=1e-4, rtol=1e-4)


def test_texts_that_get_neither_longer_nor_deeper_cost_no_check(monkeypatch):
    tree, asked, alone = TreeForward(blocks(torch.float32, 6)), [], ReadCheck._alone
    monkeypatch.setattr(ReadCheck, "_alone", lambda self, *texts: asked.append(1) or alone(self, *texts))
    texts, at = short_texts()
    for _ in range(3):
        tree.read(texts, at)
    assert len(asked) == 1


def test_a_shallow_model_has_no_excuse():
    judge = blocks(torch.bfloat16)
    assert ReadCheck(judge).difference(reader(judge, 0.06))


def test_float32_has_none_either():
    judge = blocks(torch.float32)
    assert "relative difference" in ReadCheck(judge).difference(reader(judge, 1e-3))


def test_padded_batches_are_checked_when_they_come_into_use(monkeypatch):
    """A judge that shares prefixes never reads them, so loading it pays for no check of them; one that stops, does."""
    judge, asked, padded = blocks(torch.float32), [], Ways.check_padded
    monkeypatch.setattr(Ways, "check_padded", lambda self: asked.append(1) or padded(self))
    tree = TreeForward(judge)
    assert tree.usable and not asked
    tree.ways.leave("shared", "a fault")
    assert len(asked) == 1 and tree.ways.pads
    assert not TreeForward(judge, share_prefixes=False).usable and len(asked) == 2


def test_padded_batches_that_stray_are_left_when_sharing_is(monkeypatch):
    judge = blocks(torch.float32)
    tree = TreeForward(judge)
    monkeypatch.setattr(Ways, "_read_padded", lambda self, *texts: reader(judge, 0.5)(*texts))
    tree.ways.leave("shared", "a fault")
    assert not tree.ways.pads and "each alone" in tree.sharing
