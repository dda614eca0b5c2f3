from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latent_rewards.engine import attention_cpu as cpu_attention
from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.tree import TreeForward


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Written out, float64: (n, H, e) and (H, n)."""
    k, v = (x.repeat_interleave(len(q) // len(k), 0).double() for x in (k, v))
    scores = q.double() @ k.transpose(1, 2) * scale
    scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1), scores.logsumexp(-1)


@pytest.mark.parametrize(("heads", "groups"), [(9, 3), (4, 4), (4, 1)])
@pytest.mark.parametrize("n", [1, 17, 95, 97, 191, 300])
def test_blocks_equal_the_equation(heads: int, groups: int, n: int) -> None:
    torch.manual_seed(n)
    q, k, v = (torch.randn(n, h, d).bfloat16().transpose(0, 1) for h, d in ((heads, 16), (groups, 16), (groups, 24)))
    out, lse = torch.empty(n, heads, 24, dtype=torch.bfloat16), torch.empty(heads, n)
    cpu_attention.causal_attention(3 * q, k, v, 0.3, out, lse)
    want, want_lse = reference(3 * q, k, v, 0.3)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(out.double(), want, atol=0.02, rtol=0.02)


def test_no_further_from_the_equation_than_the_flash_kernel() -> None:
    torch.manual_seed(0)
    q, k, v = (4 * torch.randn(250, h, 32).bfloat16().transpose(0, 1) for h in (6, 2, 2))
    out, lse = torch.empty(250, 6, 32, dtype=torch.bfloat16), torch.empty(6, 250)
    cpu_attention.causal_attention(q, k, v, 0.2, out, lse)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    theirs, their_lse = flash(q[None], k[None], v[None], 0.0, True, scale=0.2)
    want, want_lse = reference(q, k, v, 0.2)
    assert (out - want).norm() < 1.25 * (theirs[0].transpose(0, 1) - want).norm()
    assert (lse - want_lse).abs().max() < 1e-3 > (their_lse[0] - want_lse).abs().max()


def test_scores_far_apart_stay_finite() -> None:
    q = torch.full((1, 200, 4), 100.0).bfloat16()
    k = torch.linspace(-100, 100, 200)[None, :, None].expand(1, 200, 4).bfloat16()
    out, lse = torch.empty(200, 1, 4, dtype=torch.bfloat16), torch.empty(1, 200)
    cpu_attention.causal_attention(q, k, k, 1.0, out, lse)
    assert out.isfinite().all() and lse.isfinite().all()
    assert torch.equal(out[:, 0], k[0]), "the last key takes all"


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 4, 300, 8)
    monkeypatch.setattr(cpu_attention, "_amx", lambda: False)
    assert cpu_attention.float32_pays(x.bfloat16()) and not cpu_attention.float32_pays(x)
    monkeypatch.setattr(cpu_attention, "_amx", lambda: True)
    assert not cpu_attention.float32_pays(x.bfloat16())


@pytest.mark.parametrize("amx", [True, False])
def test_a_tree_in_bfloat16_on_either_kind_of_cpu(monkeypatch: pytest.MonkeyPatch, make_model: Any, amx: bool) -> None:
    monkeypatch.setattr(cpu_attention, "_amx", lambda: amx)
    lengths, blockwise = set(), cpu_attention.causal_attention
    monkeypatch.setattr(
        cpu_attention, "causal_attention", lambda q, *rest: (lengths.add(q.shape[1]), blockwise(q, *rest))
    )
    tokenizer = type("Vocabulary", (), {"__len__": lambda self: 300})()
    model = make_model("llama", tokenizer)
    sequences = [[*range(40, 70), *range(b, 200 + b), *range(c, 20 + 70 * c)] for b in (1, 2) for c in (1, 2, 3)]
    positions = [[len(s) - 1, 35] for s in sequences]
    want = read_states(Blocks(model), sequences, positions).final
    blocks = Blocks(model.bfloat16())
    plain = read_states(blocks, sequences, positions).final
    forward = TreeForward(blocks)
    ours = forward.read(sequences, positions, head=30).final
    assert forward.usable and forward.tokens_run < sum(map(len, sequences))
    assert want is not None and plain is not None and ours is not None
    assert (ours.float() - want).norm() < 1.25 * (plain.float() - want).norm()
    assert (min(lengths, default=0) >= cpu_attention.SHORTEST) != amx, "long nodes alone, where there is no AMX"
