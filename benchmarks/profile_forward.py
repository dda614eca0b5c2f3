"""Where the time of the forward goes on this CPU, and what its attention costs against PyTorch's own.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.profile_forward      # benchmarks/results/profile-<cpu>.json

One thread, `compile=True`, 32 unrelated pairs; then one node of the embedded judge's shape (9 heads, 3 of keys, 64
wide) at several lengths: PyTorch's flash kernel in bfloat16 and in float32, and `attention_cpu`; and twelve siblings
below a prefix: each with all of it at once, and merged from two parts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.throughput import HERE
from benchmarks.workloads import workloads
from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.engine.attention import _merge
from latent_rewards.engine.attention_cpu import path_attention
from latent_rewards.engine.attention_kernels import FlashCPU
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import command, commit, cpu_kind, machine


def profile(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Share of the time in matrix products and in attention (whole calls), after one call to warm up."""
    judge = HFJudge("embedded", dtype="bfloat16", device="cpu", compile=True)
    reward = ProbabilityWeightedReward(judge)
    for some in (pairs[:8], pairs):
        judge.forget()
        judge.forward.cache.clear()
        with torch.profiler.profile() as prof:
            reward.score([p for p, _ in some], [c for _, c in some])
    events = {e.key: e for e in prof.key_averages()}
    total = sum(e.self_cpu_time_total for e in events.values())
    products, attention = events["aten::mm"], events["latent_rewards::tree_attention"]
    return {
        "matrix_products": products.self_cpu_time_total / total,
        "attention": attention.cpu_time_total / total,
        "seconds": total / 1e6,
    }


def milliseconds(work: Callable[[], Any], times: int = 30) -> float:
    """CPU time of one call, median."""
    work()
    out = []
    for _ in range(times):
        began = time.process_time()
        work()
        out.append(time.process_time() - began)
    return 1e3 * median(out)


def attention(n: int) -> dict[str, float]:
    """One causal node of n tokens."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q, k, v = (torch.randn(1, n, heads, 64).bfloat16().transpose(1, 2) for heads in (9, 3, 3))
    out = torch.empty(n, 9, 64, dtype=torch.bfloat16)
    return {
        "tokens": n,
        "flash_bfloat16_ms": milliseconds(lambda: flash(q, k, v, 0.0, True)),
        "flash_bfloat16_without_mask_ms": milliseconds(lambda: flash(q, k, v, 0.0, False)),
        "flash_float32_ms": milliseconds(lambda: flash(q.float(), k.float(), v.float(), 0.0, True)),
        "attention_cpu_ms": milliseconds(lambda: path_attention(q[0], k[0], v[0], 0.125, None, range(n), out, None)),
    }


def siblings(n: int, above: int, count: int = 12) -> dict[str, float]:
    """Nodes of n tokens below a prefix of `above` tokens."""
    q, k, v = (torch.randn(1, count * n, heads, 64).bfloat16().transpose(1, 2) for heads in (9, 3, 3))
    keys, values = (torch.randn(above, 3, 64).bfloat16().transpose(0, 1) for _ in range(2))
    out, lse = torch.empty(1, count * n, 9, 64, dtype=torch.bfloat16), torch.empty(9, count * n)
    spans, kernel = [slice(i * n, (i + 1) * n) for i in range(count)], FlashCPU()

    def merged() -> None:
        for at in spans:
            out[0, at], lse[:, at] = kernel.attend(q[:, :, at], k[0, :, at], v[0, :, at], 0.125, causal=True)
        _merge(out, lse, slice(None), *kernel.attend(q, keys, values, 0.125))

    def at_once() -> None:
        for at in spans:
            path = torch.cat([keys, k[0, :, at]], 1), torch.cat([values, v[0, :, at]], 1)
            path_attention(q[0, :, at], *path, 0.125, None, range(above, above + n), out[0, at], None)

    return {"tokens": n, "above": above, "merged_ms": milliseconds(merged), "at_once_ms": milliseconds(at_once)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 200, 300, 450, 700])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        report = {
            "command": command("benchmarks.profile_forward"), "commit": commit(), "machine": machine(),
            "forward": profile(workloads()["unrelated"][: args.pairs]),
            "attention": [attention(n) for n in args.lengths],
            "siblings": [siblings(n, above) for above in (75, 300, 1000) for n in (30, 60, 120, 300)],
        }  # fmt: skip
    text = to_json(report, indent=1)
    (args.out / f"profile-{cpu_kind()}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
