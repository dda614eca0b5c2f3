"""Length guards under every head and loss, and several labels."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.probes.card import model_card
from latent_rewards.probes.fit import Data, FitOptions, fit_head
from latent_rewards.probes.guards import across, label_weights
from latent_rewards.probes.networks import kto_loss, ordinal_loss, state_scores
from latent_rewards.probes.probe import Probe, ProbeConfig
from latent_rewards.stats.pairs import length_correlation

QUICK = {"strength": 10.0, "lr": 2e-2, "epochs": 25, "hidden": 8, "heads": 3}
HEADS = {
    "mlp": {"architecture": "mlp"}, "orthogonal": {"architecture": "orthogonal"},
    "kto": {"objective": "kto", "lr": 5e-2, "epochs": 60, "patience": 60}, "ordinal": {"objective": "ordinal"},
    "mixture": {"mix_layers": True},
    "mlp pairs": {"architecture": "mlp", "objective": "bradley_terry"},
    "orthogonal pairs": {"architecture": "orthogonal", "objective": "bradley_terry"},
    "mlp ratings": {"architecture": "mlp", "objective": "regression"},
    "mlp mixture": {"architecture": "mlp", "mix_layers": True},
}  # fmt: skip
LINEAR = ("kto", "ordinal", "mixture")


def toy(n: int = 600) -> Data:
    """Pairs whose longer completion wins four times of five; one input tells quality, another length."""
    rng = np.random.default_rng(0)
    good = np.tile([1.0, 0.0], n // 2)
    log = 5 + 0.8 * np.where(rng.random(n // 2) < 0.8, 1, -1).repeat(2) * (good - 0.5) + 0.1 * rng.normal(size=n)
    x = rng.normal(size=(n, 8))
    x[:, 0] += 0.5 * (good - 0.5)
    x[:, 1] += 3 * (log - 5)
    pair = np.arange(n) // 2
    return Data(x.astype(np.float32), good, pair, pair, np.exp(log), np.zeros(n, dtype=int))


@functools.cache
def fitted(head: str, *guards: str, **more: object) -> tuple[FitOptions, dict[str, torch.Tensor], np.ndarray, Data]:
    options = FitOptions(guards=guards, **{**QUICK, **HEADS[head], **more})  # type: ignore[arg-type]
    data = toy()
    tensors = fit_head(data, options, n_layers=2 if options.mix_layers else 1)
    return options, tensors, state_scores(data.x, tensors, options.architecture)[:, 0], data


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("guard", ["erase", "nuisance", "balance"])
def test_a_guard_takes_length_out_of_every_head(head: str, guard: str) -> None:
    _, _, plain, data = fitted(head)
    _, _, guarded, _ = fitted(head, guard)
    before, after = (abs(length_correlation(s, data.length, data.group)) for s in (plain, guarded))
    assert before > 0.5 and after < 0.6 * before


@pytest.mark.parametrize("head", LINEAR)
def test_erase_leaves_a_linear_head_no_covariance_within_prompts(head: str) -> None:
    _, _, score, data = fitted(head, "erase", held_out=0.0)
    log = np.log(data.length)
    within = (score[::2] - score[1::2]) @ (log[::2] - log[1::2]) / len(score)
    assert abs(within) < 0.02 * score.std() * log.std()


def test_erase_keeps_orthogonal_heads_orthogonal() -> None:
    weight = fitted("orthogonal", "erase")[1]["weight"].double()
    unit = weight / weight.norm(dim=1, keepdim=True)
    assert weight.shape == (3, 8) and (unit @ unit.T - torch.eye(3)).abs().max() < 1e-5


@pytest.mark.parametrize("c", [[1.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [3.0, -1.0, 2.0]])
def test_rows_across_a_direction(c: list[float]) -> None:
    rows, direction = torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor(c)
    wide = across(rows, direction)
    torch.testing.assert_close(wide @ direction, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(wide @ wide.T, rows @ rows.T)


def test_losses_weigh_their_rows_by_hand() -> None:
    score, label, weight = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])
    single = [float(kto_loss(score[i : i + 1], label[i : i + 1])) for i in (0, 1)]
    assert float(kto_loss(score, label, weight=weight)) == pytest.approx((3 * single[0] + single[1]) / 2)
    cuts, classes = torch.tensor([0.0, 1.0]), torch.tensor([0, 2])
    single = [float(ordinal_loss(score[i : i + 1], classes[i : i + 1], cuts)) for i in (0, 1)]
    assert float(ordinal_loss(score, classes, cuts, weight=weight)) == pytest.approx((3 * single[0] + single[1]) / 2)


def test_what_cannot_be_guarded_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"unknown guards \['erasure'\]; known are \['erase', 'nuisance', 'balance'\]"):
        FitOptions(guards=("erasure",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'orthogonal' layer mixture"):
        FitOptions(architecture="orthogonal", mix_layers=True, guards=("erase",))
    with pytest.raises(ValueError, match="architecture must be one of"):
        FitOptions(architecture="tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="objective must be one of"):
        FitOptions(objective="logistic")  # type: ignore[arg-type]
    several = dataclasses.replace(toy(), label=np.stack([toy().label] * 2, 1))
    for options, message in (
        (FitOptions(guards=("balance",)), "guard 'balance' takes one label, these rows have 2"),
        (FitOptions(objective="kto"), "objective 'kto' takes one label"),
        (FitOptions(architecture="orthogonal"), "an orthogonal head takes one label"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_head(several, options)


@pytest.mark.parametrize("guards", [(), ("erase", "nuisance")])
def test_an_mlp_learns_several_labels_with_the_default_class_weights(guards: tuple[str, ...]) -> None:
    data = toy()
    rare = np.where(np.arange(len(data)) % 10 == 0, data.label, 0.0)
    both = dataclasses.replace(data, label=np.stack([data.label, rare], 1))
    options = FitOptions(architecture="mlp", guards=guards, **QUICK)  # type: ignore[arg-type]
    score = state_scores(both.x, fit_head(both, options), "mlp")
    assert score.shape == (len(data), 2) and np.corrcoef(score[:, 0], data.label)[0, 1] > 0.15
    weight = label_weights(both, options)
    for k, label in enumerate(both.label.T):
        assert weight[label > 0.5, k].sum() == pytest.approx(len(data) / 2) == weight[label < 0.5, k].sum()


def test_the_card_records_what_was_used() -> None:
    options, tensors, _, _ = fitted("mlp", "erase")
    used = options.applied()
    assert used["guards"] == ("erase",) and "heads" not in used and "beta" not in used and used["hidden"] == 8
    assert "lr" not in FitOptions().applied() and "class_weight" not in FitOptions(objective="kto").applied()
    prompt = JudgePrompt.load("weighted")
    config = ProbeConfig("j", "r", prompt.hash, (1,), 8, architecture="mlp", training={"settings": used})
    assert '"guards": ["erase"]' in model_card(Probe(config, tensors, prompt))
