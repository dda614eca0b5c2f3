"""In coarse types, the check at load holds a difference against the own rounding of the model; no excuse for faults."""

import pytest
import torch
import transformers

from latent_rewards import read_check
from latent_rewards.forward import Blocks, States, read_states
from latent_rewards.read_check import ReadCheck


def blocks(dtype):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Blocks(transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval())


def strayed(states, size):
    noise = torch.randn(states.final.shape, generator=torch.Generator().manual_seed(1))
    return States((states.final.float() * (1 + size * noise)).to(states.final.dtype), {})


@pytest.fixture
def model_that_strays(monkeypatch):
    """A model that gives a text slightly other states beside copies of itself."""
    monkeypatch.setattr(
        read_check, "read_states",
        lambda b, s, p, **k: strayed(read_states(b, s, p, **k), 0.06 if len(s) > 3 else 0.0),
    )  # fmt: skip


def reader(judge, size):
    return lambda sequences, positions, head: strayed(read_states(judge, sequences, positions), size)


@pytest.mark.parametrize("size, told", [(0.0, False), (0.08, False), (0.25, True), (2.0, True)])
def test_a_difference_is_held_against_the_models_own(model_that_strays, size, told):
    judge = blocks(torch.bfloat16)
    reason = ReadCheck(judge).difference(reader(judge, size))
    assert bool(reason) is told
    assert not told or "the model itself strays by" in reason


def test_a_model_that_does_not_stray_has_no_excuse():
    judge = blocks(torch.bfloat16)
    assert ReadCheck(judge).difference(reader(judge, 0.08))


def test_float32_has_none_either(model_that_strays):
    judge = blocks(torch.float32)
    assert "relative difference" in ReadCheck(judge).difference(reader(judge, 1e-3))
