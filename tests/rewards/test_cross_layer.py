"""Layer weights: the loss by hand, tuning finds the layer that knows, files that do not fit are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latent_rewards import CrossLayerReward, HFJudge, JudgePrompt
from latent_rewards.probes.layer_weights import TuneOptions, lager_loss, tune_layers
from latent_rewards.rewards.layer_weights import LayerWeights

VALUES = (1.0, 2.0, 3.0)


def toy(n=400, layers=5, knows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(1, 4, (n,), generator=generator).float()
    x = torch.randn(n, layers, 3, generator=generator)
    x[torch.arange(n), knows, (y - 1).long()] += 6
    return x, y


def test_loss_by_hand():
    # logits (0, ln 2): p = (1/3, 2/3), values (1, 4): S = 3; y = 4, class 1. CE = -ln 2/3, error (1/2) 1^2.
    loss = lager_loss(
        torch.tensor([[0.0, math.log(2)]]), torch.tensor([1]), torch.tensor([4.0]), torch.tensor([1.0, 4.0]), alpha=0.25
    )
    assert float(loss) == pytest.approx(0.25 * math.log(1.5) + 0.75 * 0.5, abs=1e-6)


@pytest.mark.parametrize("parameters", ["softmax", "free"])
def test_tuning_finds_the_layer_that_knows(parameters):
    x, y = toy()
    weights, facts = tune_layers(x, y, VALUES, TuneOptions(epochs=3, parameters=parameters))
    assert int(weights.argmax()) == 3 and not facts["uniform"]
    assert facts["mse_tuned"] < facts["mse_uniform"]
    if parameters == "softmax":
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    again, _ = tune_layers(x, y, VALUES, TuneOptions(epochs=3, parameters=parameters))
    assert torch.equal(weights, again)


def test_one_adam_step_by_hand():
    """The first Adam step moves every parameter by lr against the sign of its gradient."""
    x, y = toy(12)
    weights, _ = tune_layers(x, y, VALUES, TuneOptions(batch=99, alpha=0.5, parameters="free", held_out=0.1, lr=0.01))
    assert torch.allclose((weights - 0.2).abs(), torch.full((5,), 0.01), atol=1e-4)
    assert weights[3] > 0.2


def test_uniform_when_tuning_does_not_help():
    x, _ = toy()
    noise = torch.randint(1, 4, (400,), generator=torch.Generator().manual_seed(5)).float()
    x = x[:, :1].repeat(1, 5, 1)  # all layers alike: no weights can beat uniform ones
    weights, facts = tune_layers(x, noise, VALUES, TuneOptions(drop_last=True))
    assert facts["uniform"] and torch.allclose(weights, torch.full((4,), 0.25))


def test_bad_data_is_refused():
    x, y = toy()
    broken = x.clone()
    broken[0, 0, 0] = torch.nan
    for logits, ratings, message in (
        (broken, y, "NaN"),
        (x, y + 5, "outside the labels"),
        (x[:5], y[:5], "too few"),
        (x[:, :, :2], y, "do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_layers(logits, ratings, VALUES)


def test_saved_weights_make_a_reward(folder, make_judge, tmp_path):
    judge = HFJudge(folder, dtype="float32", device="cpu")
    prompt = JudgePrompt.load("weighted")
    kept = LayerWeights(torch.tensor([0.0, 1.0, 0.0, 0.0]), judge.name, judge.revision, prompt.hash, "raw")
    again = LayerWeights.load(kept.save(tmp_path))
    assert torch.equal(again.weights, kept.weights) and again.lens == "raw"
    expected = CrossLayerReward(judge, lens="raw", weights=[0, 1, 0, 0]).score(["a"], ["b"])
    np.testing.assert_allclose(again.reward(judge).score(["a"], ["b"]), expected)
    with pytest.raises(ValueError, match="tuned for prompt"):
        again.reward(judge, prompt="four_rubric")
    with pytest.raises(ValueError, match=r"tuned with their own \['lens'\]"):
        again.reward(judge, lens="normed")
    with pytest.raises(ValueError, match=judge.revision):
        again.reward(make_judge("qwen2", "digits"))
    (tmp_path / "layers.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not layer weights"):
        LayerWeights.load(tmp_path)
    (tmp_path / "layers.json").write_text("[]")
    with pytest.raises(ValueError, match="not layer weights"):
        LayerWeights.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no layer weights"):
        LayerWeights.load(tmp_path / "none")
