"""In coarse types, the check at load holds a difference against the own rounding of the model; no excuse for faults."""

import pytest
import torch
import transformers

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.read_check import ReadCheck
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
