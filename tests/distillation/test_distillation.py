"""Distillation losses: by hand, against float64 references and TRL, in chunks, with gradients, in memory."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from latent_rewards.distillation.divergences import divergence, entropy
from latent_rewards.distillation.loss import distillation_loss, er_kd_loss
from latent_rewards.distillation.mixture import TeacherStates
from latent_rewards.distillation.options import ER_KD, LossOptions

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 3


def plain(z: torch.Tensor) -> torch.Tensor:
    return z


def teacher(z: torch.Tensor, index: torch.Tensor | None = None, name: str = "t") -> TeacherStates:
    return TeacherStates(z, plain, index, name)


def test_divergences_by_hand() -> None:
    s = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    t = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    forward = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)  # 0.1927
    reverse = 0.5 * math.log(0.625) + 0.5 * math.log(2.5)  # 0.2231
    # beta = 0.5: m = (0.65, 0.35)
    jsd = 0.5 * (0.8 * math.log(0.8 / 0.65) + 0.2 * math.log(0.2 / 0.35))
    jsd += 0.5 * (0.5 * math.log(0.5 / 0.65) + 0.5 * math.log(0.5 / 0.35))
    # beta = 0.25: m = 0.75 s + 0.25 t = (0.575, 0.425)
    skew = 0.25 * (0.8 * math.log(0.8 / 0.575) + 0.2 * math.log(0.2 / 0.425))
    skew += 0.75 * (0.5 * math.log(0.5 / 0.575) + 0.5 * math.log(0.5 / 0.425))
    for beta, expected in ((0.0, forward), (1.0, reverse), (0.5, jsd), (0.25, skew)):
        assert divergence(s, t, beta).item() == pytest.approx(expected, abs=1e-12)
        assert divergence(t, t, beta).item() == pytest.approx(0.0, abs=1e-12)
    assert forward == pytest.approx(0.1927, abs=1e-4) and reverse == pytest.approx(0.2231, abs=1e-4)


def test_ruled_out_tokens_have_a_finite_divergence_and_gradient() -> None:
    z = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    for beta in (0.0, 0.5):
        d = divergence(torch.log_softmax(z, 0), t, beta)
        (grad,) = torch.autograd.grad(d, z)
        assert torch.isfinite(d) and torch.isfinite(grad).all()
    s = torch.softmax(z, 0)
    assert_close(divergence(torch.log_softmax(z, 0), t, 0.0), (0.5 * (0.5 / s[:2]).log()).sum())
    assert divergence(torch.log_softmax(z, 0), t, 1.0).item() == math.inf  # the student is right there


def test_entropy_by_hand() -> None:
    assert entropy(torch.zeros(4)).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([0.0, -math.inf])).item() == 0.0
    z = torch.tensor([0.0, 4 * math.log(3.0)], dtype=torch.float64)  # at t = 4: probabilities 1/4 and 3/4
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(z, 4.0).item() == pytest.approx(expected, abs=1e-12)


def test_er_kd_by_hand() -> None:
    # One sample, two classes, T = t = 4. Teacher at T: (1/4, 3/4); student at T: (1/2, 1/2).
    z_t = torch.tensor([[0.0, 4 * math.log(3.0)]], dtype=torch.float64)
    z_s = torch.zeros(1, 2, dtype=torch.float64)
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert er_kd_loss(z_s, z_t).item() == pytest.approx(16 * kl * h, abs=1e-12)
    assert er_kd_loss(z_s, z_t, normalize="max").item() == pytest.approx(16 * kl * h / math.log(2), abs=1e-12)
    assert er_kd_loss(z_s, z_t, normalize="batch_mean").item() == pytest.approx(16 * kl, abs=1e-12)
    labels = torch.tensor([1])
    whole = distillation_loss(z_s, plain, [teacher(z_t)], labels=labels, options=ER_KD).loss
    assert whole.item() == pytest.approx(0.9 * 16 * kl * h + 0.1 * math.log(2), abs=1e-12)


@pytest.mark.parametrize("normalize", ["none", "max", "batch_mean"])
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_er_kd_equals_the_published_formula(normalize: Any, t: float) -> None:
    z_s, z_t, T = logits(7, 11, seed=1), logits(7, 11, seed=2), 4.0
    p = torch.softmax(z_t / T, -1)
    kl = (p * (p.log() - torch.log_softmax(z_s / T, -1))).sum(-1)
    q = torch.softmax(z_t / t, -1)
    h = -(q * q.clamp(min=1e-10).log()).sum(-1)  # the published clamp
    h = {"none": h, "max": h / math.log(11), "batch_mean": h / h.mean()}[normalize]
    found = er_kd_loss(z_s, z_t, temperature=T, entropy_temperature=t, normalize=normalize)
    assert_close(found, (T**2 * kl * h).mean(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_weight_one_equals_trl(beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    z_s, z_t = logits(2, 9, 13, seed=3), logits(2, 9, 13, seed=4)
    labels = torch.full((2, 9), -100)
    labels[0, 3:], labels[1, 6:] = 5, 2
    keep = labels != -100
    for T, n in ((1.0, None), (0.7, 4.0)):
        theirs = GKDTrainer.generalized_jsd_loss(z_s, z_t, labels, beta, T, num_items_in_batch=n)
        ours = distillation_loss(
            z_s[keep], plain, [teacher(z_t[keep])], options=LossOptions(beta=beta, temperature=T, chunk=4), num_items=n
        )
        assert_close(ours.loss, theirs, rtol=1e-12, atol=1e-14)
        assert ours.tokens == 9 and ours.dropped == 0


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_mixture_of_teachers_by_reference(beta: float) -> None:
    z_s, z_1, z_2 = (logits(6, 5, seed=s) for s in (5, 6, 7))
    w = torch.tensor([[1, 0], [0, 1], [0.5, 0.5], [3, 1], [0.2, 0.8], [1, 1]], dtype=torch.float64)
    share = w / w.sum(1, keepdim=True)
    p = share[:, :1] * torch.softmax(z_1, -1) + share[:, 1:] * torch.softmax(z_2, -1)
    s = torch.softmax(z_s, -1)
    m = (1 - beta) * s + beta * p
    if beta == 0:
        expected = (p * (p / s).log()).sum(-1)
    elif beta == 1:
        expected = (s * (s / p).log()).sum(-1)
    else:
        expected = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (s * (s / m).log()).sum(-1)
    scale = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    found = distillation_loss(
        z_s, plain, [teacher(z_1), teacher(z_2)], teacher_weights=w, position_weights=scale,
        options=LossOptions(beta=beta, chunk=4),
    )  # fmt: skip
    assert_close(found.loss, (scale * expected).sum() / 6)
    assert_close(found.divergence, expected.mean())


def test_routed_teachers_need_only_their_own_positions() -> None:
    z_s, z_1, z_2 = (logits(5, 8, seed=s) for s in (8, 9, 10))
    route = torch.tensor([0, 1, 1, 0, 1])
    w = torch.nn.functional.one_hot(route, 2).double()
    where = [torch.full((5,), -1), torch.full((5,), -1)]
    where[0][route == 0], where[1][route == 1] = torch.arange(2), torch.arange(3)
    packed = [teacher(z_1[route == 0], where[0]), teacher(z_2[route == 1], where[1])]
    mixed = torch.where((route == 0)[:, None], z_1, z_2)
    for options in (LossOptions(chunk=2), LossOptions(beta=1.0, entropy_temperature=2.0, normalize="batch_mean")):
        one = distillation_loss(z_s, plain, packed, teacher_weights=w, options=options).loss
        assert_close(one, distillation_loss(z_s, plain, [teacher(mixed)], options=options).loss, rtol=1e-12, atol=0)


OPTIONS = [
    LossOptions(beta=0.0),
    LossOptions(beta=0.5, temperature=2.0, temperature_squared=True),
    LossOptions(beta=1.0, entropy_temperature=4.0, normalize="batch_mean", ce_weight=0.1),
    LossOptions(beta=0.0, temperature=4.0, entropy_temperature=4.0, normalize="max"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunked_equals_whole(options: LossOptions, dtype: torch.dtype) -> None:
    from dataclasses import replace

    found = []
    for chunk in (1, 7, 1000):
        h_s = logits(50, 16, seed=1, dtype=dtype).requires_grad_()
        w_s = (logits(40, 16, seed=2, dtype=dtype) / 8).requires_grad_()
        w_t, h_t = logits(40, 24, seed=3, dtype=dtype) / 8, logits(50, 24, seed=4, dtype=dtype)
        parts = distillation_loss(
            h_s, lambda h, w=w_s: h @ w.T, [TeacherStates(h_t, lambda h, w=w_t: h @ w.T)],
            options=replace(options, chunk=chunk), position_weights=torch.linspace(0, 2, 50, dtype=dtype),
            labels=torch.arange(50) % 40,
        )  # fmt: skip
        found.append((parts.loss.detach(), *torch.autograd.grad(parts.loss, (h_s, w_s))))
    for some in found[:-1]:
        for a, b in zip(some, found[-1], strict=True):
            limit = 1e-6 if dtype == torch.float32 else 1e-13
            assert (a - b).abs().max() <= limit * b.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_gradient(options: LossOptions) -> None:
    w_s, z_t = logits(6, 3, seed=2) / 3, logits(5, 6, seed=3)

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return distillation_loss(
            h, lambda x: x @ w.T, [teacher(z_t)], options=LossOptions(**{**vars(options), "chunk": 2}),
            labels=torch.arange(5), position_weights=torch.linspace(0.5, 2, 5, dtype=torch.float64),
        ).loss  # fmt: skip

    inputs = (logits(5, 3, seed=4).div_(3).requires_grad_(), w_s.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7)


def test_low_precision_logits_are_compared_in_float32() -> None:
    z_s, z_t = logits(4, 300, seed=1).bfloat16(), logits(4, 300, seed=2).bfloat16()
    wide = distillation_loss(z_s.float(), plain, [teacher(z_t.float())]).loss
    assert_close(distillation_loss(z_s, plain, [teacher(z_t)]).loss, wide, rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_autocast_reaches_the_heads_alone(beta: float) -> None:
    z_s, z_t = logits(4, 300, seed=1, dtype=torch.float32), logits(4, 300, seed=2, dtype=torch.float32)
    options = LossOptions(beta=beta, entropy_temperature=2.0, chunk=3)
    found = []
    for enabled in (False, True):
        z = z_s.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            parts = distillation_loss(z, plain, [teacher(z_t)], options=options)
            parts.loss.backward()
        found.append((parts.loss.detach(), parts.divergence, parts.teacher_entropy, parts.student_entropy, z.grad))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unusable_teacher_logits_are_dropped_and_counted(bad: float) -> None:
    z_s = logits(4, 6, seed=1).requires_grad_()
    broken, fine = logits(4, 6, seed=2), logits(4, 6, seed=3)
    broken[1, 2], broken[3] = bad, bad
    alone = distillation_loss(z_s, plain, [teacher(broken)])
    kept = [0, 2]
    assert_close(alone.loss, distillation_loss(z_s[kept], plain, [teacher(broken[kept])]).loss)
    assert alone.dropped == 2 and alone.tokens == 2
    (grad,) = torch.autograd.grad(alone.loss, z_s)
    assert torch.isfinite(grad).all() and not grad[[1, 3]].any() and grad[kept].any()
    # With a second teacher the broken positions are learnt from it alone.
    both = distillation_loss(z_s, plain, [teacher(broken), teacher(fine)])
    w = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    expected = distillation_loss(z_s, plain, [teacher(broken), teacher(fine)], teacher_weights=w)
    assert_close(both.loss, expected.loss)
    assert both.dropped == 0
    with pytest.raises(ValueError, match=r"2 of 4 positions have no usable logits from any of the teachers"):
        distillation_loss(z_s, plain, [teacher(broken)], options=LossOptions(on_nan="raise"))
    ruled_out = fine.clone()
    ruled_out[:, 0] = -math.inf  # a token that a teacher excludes is no failure
    assert distillation_loss(z_s, plain, [teacher(ruled_out)], options=LossOptions(beta=0.0)).dropped == 0


def test_broken_student_is_not_hidden() -> None:
    z_s = logits(3, 6, seed=1)
    z_s[1, 0] = math.nan
    assert torch.isnan(distillation_loss(z_s, plain, [teacher(logits(3, 6))]).loss)


def test_nothing_left_after_masking() -> None:
    h, w = torch.zeros(0, 4, requires_grad=True), torch.ones(6, 4, requires_grad=True)
    parts = distillation_loss(h, lambda x: x @ w.T, [teacher(torch.zeros(0, 6))])
    assert parts.loss == 0 and parts.tokens == 0
    parts.loss.backward()
    assert torch.equal(w.grad, torch.zeros(6, 4))
    broken = torch.full((2, 6), math.nan)
    h = torch.ones(2, 4, requires_grad=True)
    parts = distillation_loss(h, lambda x: x @ w.T, [teacher(broken)])
    assert parts.loss == 0 and parts.dropped == 2
    parts.loss.backward()
    assert not h.grad.any()


def test_wrong_inputs() -> None:
    z = logits(3, 5)
    with pytest.raises(ValueError, match=r"'big' has 7 logits, the student 5.*GOLDTrainer"):
        distillation_loss(z, plain, [teacher(logits(3, 7), name="big")])
    with pytest.raises(ValueError, match=r"shape \(3, 1\), got \(3, 2\)"):
        distillation_loss(z, plain, [teacher(z)], teacher_weights=torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least 0"):
        distillation_loss(z, plain, [teacher(z)], teacher_weights=-torch.ones(3, 1))
    with pytest.raises(ValueError, match="needs labels"):
        distillation_loss(z, plain, [teacher(z)], options=LossOptions(ce_weight=0.1))
    with pytest.raises(ValueError, match="at least one teacher"):
        distillation_loss(z, plain, [])
    for wrong in ({"beta": 2.0}, {"temperature": 0.0}, {"normalize": "sum"}, {"on_nan": "skip"}, {"chunk": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LossOptions(**wrong)


MEMORY = """
import sys, torch
from latent_rewards.distillation.loss import LossOptions, TeacherStates, distillation_loss
torch.manual_seed(0)
N, beta, D, V, chunk = int(sys.argv[1]), float(sys.argv[2]), 64, 50_000, 256
h_s, w_s = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
h_t, w_t = torch.randn(N, D), torch.randn(V, D)
# not ru_maxrss, which a child inherits from a large parent
peak = lambda: next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith("VmHWM"))
before = peak()
options = LossOptions(beta=beta, entropy_temperature=4.0, normalize="batch_mean", chunk=chunk)
loss = distillation_loss(h_s, lambda h: h @ w_s.T, [TeacherStates(h_t, lambda h: h @ w_t.T)], options=options).loss
loss.backward()
print((peak() - before) / (chunk * V * 4), (peak() - before) / 2**20)
"""


@pytest.mark.parametrize(
    ("tokens", "beta"),
    [(512, 0.5), *(pytest.param(4096, beta, marks=pytest.mark.slow) for beta in (0.0, 0.5, 1.0))],
)
def test_memory_at_50k_vocabulary(tokens: int, beta: float) -> None:
    # The bound that LossOptions.chunk states: 14 chunks of float32 logits, here 684 MiB, whatever the number of tokens.
    # The logits and log-probabilities of two models at 4096 tokens would be 3125 MiB, before any gradient.
    command = [sys.executable, "-c", MEMORY, str(tokens), str(beta)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    chunks, mebibytes = map(float, done.stdout.split())
    print(f"{tokens} tokens, beta {beta}: {chunks:.1f} chunks, {mebibytes:.0f} MiB")
    assert 2 < chunks < 14, done.stdout
