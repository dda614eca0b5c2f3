"""What differs between versions of transformers and TRL, where the installed ones do not show it by themselves."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import transformers
from contracts import FakeJudge

from latent_rewards import ProbabilityWeightedReward, compat

TINY: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


def test_a_soft_capped_model_does_not_run_sdpa() -> None:
    model: Any = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**TINY))
    model.config._attn_implementation_internal = "sdpa"  # what older versions choose by themselves
    compat.keep_softcap(model)
    assert model.config._attn_implementation == "eager"
    plain: Any = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**TINY))
    compat.keep_softcap(plain)
    assert plain.config._attn_implementation == "sdpa"


def test_an_async_twin_is_a_coroutine_function_to_every_trl() -> None:
    twin = ProbabilityWeightedReward(FakeJudge(), name="mine").to_async()
    for one in (twin, copy.copy(twin), pickle.loads(pickle.dumps(twin))):
        assert inspect.iscoroutinefunction(one), "asked by TRL < 1.15"
        assert inspect.iscoroutinefunction(one.__call__) and one.__name__ == "mine", "asked by later ones"


@pytest.mark.parametrize(("version", "left"), [((2, 10), True), ((2, 11), False), ((2, 13), False)])
def test_training_keeps_off_the_attention_whose_backward_gives_nan(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], left: bool
) -> None:
    monkeypatch.setattr(compat, "release", lambda name: version if name == "torch" else None)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        compat.keep_gradients_finite()
        assert torch.backends.cuda.cudnn_sdp_enabled() is left
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
