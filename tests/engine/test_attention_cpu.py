from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latent_rewards.engine import attention_cpu
from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.local import Local
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.tree import TreeForward


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Written out, float64: (n, H, e) and (H, n); `shown` is (n, P)."""
    k, v = (x.repeat_interleave(len(q) // len(k), 0).double() for x in (k, v))
    scores = (q.double() @ k.transpose(1, 2) * scale).masked_fill(~shown, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1), scores.logsumexp(-1)


def causal(n: int, above: int = 0) -> Tensor:
    return torch.ones(n, above + n, dtype=torch.bool).tril(above)


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, local: Local | None = None, before: int = 0
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exps; `before` positions of the path have no key here."""
    n, path = q.shape[1], range(before + k.shape[1] - q.shape[1], before + k.shape[1])
    out, lse = torch.empty(n, len(q), v.shape[-1], dtype=q.dtype), torch.empty(len(q), n)
    attention_cpu.path_attention(q, k, v, scale, local, path, out, lse)
    return out, lse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "groups"), [(9, 3), (4, 4), (4, 1)])
@pytest.mark.parametrize(("n", "above"), [(1, 0), (17, 40), (95, 1), (97, 0), (191, 30), (300, 300)])
def test_blocks_equal_the_equation(heads: int, groups: int, n: int, above: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n)
    q, k, v = (
        torch.randn(m, h, d).to(dtype).transpose(0, 1)
        for m, h, d in ((n, heads, 16), (above + n, groups, 16), (above + n, groups, 24))
    )
    before = q.clone()
    out, lse = attend(3 * q, k, v, 0.3)
    want, want_lse = reference(3 * q, k, v, 0.3, causal(n, above))
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-4, rtol=1e-5)
    atol = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), want, atol=atol, rtol=atol)
    assert torch.equal(q, before), "queries are left as they are"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("local", "n", "above", "before"),
    [
        *((local, 70, above, 0) for local in (Local("window", 30), Local("chunk", 50)) for above in (0, 45)),
        (Local("window", 1000), 70, 45, 0), (Local("window", 30), 150, 29, 300), (Local("chunk", 50), 150, 29, 300),
    ],
)  # fmt: skip
def test_windows_and_chunks_equal_the_equation(
    local: Local, n: int, above: int, before: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(n)
    q, k, v = (
        torch.randn(m, h, d).to(dtype).transpose(0, 1)
        for m, h, d in ((n, 6, 16), (above + n, 2, 16), (above + n, 2, 24))
    )
    at = before + above + torch.arange(n)
    first = torch.tensor([local.first(int(p)) for p in at]) - before
    shown = causal(n, above) & (torch.arange(above + n) >= first[:, None])
    out, lse = attend(q, k, v, 0.3, local, before)
    want, want_lse = reference(q, k, v, 0.3, shown)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-4, rtol=1e-5)
    atol = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), want, atol=atol, rtol=atol)


def test_no_further_from_the_equation_than_the_flash_kernel() -> None:
    torch.manual_seed(0)
    q, k, v = (4 * torch.randn(250, h, 32).bfloat16().transpose(0, 1) for h in (6, 2, 2))
    out, lse = attend(q, k, v, 0.2)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    theirs, their_lse = flash(q[None], k[None], v[None], 0.0, True, scale=0.2)
    want, want_lse = reference(q, k, v, 0.2, causal(250))
    assert (out - want).norm() < 1.25 * (theirs[0].transpose(0, 1) - want).norm()
    assert (lse - want_lse).abs().max() < 1e-3 > (their_lse[0] - want_lse).abs().max()


def test_scores_far_apart_stay_finite() -> None:
    q = torch.full((1, 200, 4), 100.0).bfloat16()
    k = torch.linspace(-100, 100, 200)[None, :, None].expand(1, 200, 4).bfloat16()
    out, lse = attend(q, k, k, 1.0)
    assert out.isfinite().all() and lse.isfinite().all()
    assert torch.equal(out[:, 0], k[0]), "the last key takes all"


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "_amx", lambda: False)
    assert attention_cpu.float32_pays(torch.bfloat16) and not attention_cpu.float32_pays(torch.float32)
    assert attention_cpu.takes(torch.bfloat16) and attention_cpu.takes(torch.float32)
    monkeypatch.setattr(attention_cpu, "_amx", lambda: True)
    assert not attention_cpu.takes(torch.bfloat16) and attention_cpu.takes(torch.float32)
    assert not attention_cpu.takes(torch.float16)


@pytest.mark.parametrize("amx", [True, False])
def test_a_tree_in_bfloat16_on_either_kind_of_cpu(monkeypatch: pytest.MonkeyPatch, make_model: Any, amx: bool) -> None:
    monkeypatch.setattr(attention_cpu, "_amx", lambda: amx)
    lengths, joined = set(), attention_cpu.path_attention
    monkeypatch.setattr(attention_cpu, "path_attention", lambda q, *rest: (lengths.add(q.shape[1]), joined(q, *rest)))
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
    assert (min(lengths, default=0) >= 48) != amx, "long nodes alone, where there is no AMX"
