"""Would eight-bit linears make a judge faster on this processor, and what would they do to its scores?

    python -m benchmarks.int8 --judge Qwen/Qwen2.5-Coder-1.5B-Instruct [--texts 8] [--scored 0] [--threads 1]

Rates of the judge's own linears, per CPU second, in float32, bfloat16 and int8: the bare integer product; with the
activations quantised by token, as eager operations; and compiled into one. Then what share of a judge's reading the
linears are, in bfloat16, and how much faster the whole could be if they ran at those rates and nothing else changed.
`--scored` texts are also scored with every linear of the blocks in int8 (weights by channel, activations by token,
nothing kept in float) and in bfloat16, against float32. Writes `results/int8-<judge>-<cpu>.json`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.throughput import judge_shape
from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.data import open_ended
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import commit, cpu_kind

RESULTS = Path(__file__).parent / "results"


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """(T, n) int8 values and (T, 1) scales, one a row."""
    scale = x.abs().amax(-1, keepdim=True).clamp_(min=1e-6) / 127
    return (x / scale).round_().to(torch.int8), scale


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (T, n) with an (n, m) int8 weight of one scale a column, (1, m)."""
    values, own = quantised(x.float())
    return (torch._int_mm(values, weight).float() * own * scale).to(x.dtype)


class Int8Linear(torch.nn.Module):
    """A linear in eight bits."""

    def __init__(self, linear: torch.nn.Linear, product: Callable[..., Tensor]) -> None:
        super().__init__()
        values, scale = quantised(linear.weight.detach().float())
        self.weight, self.scale, self.bias, self.product = values.t().contiguous(), scale.t(), linear.bias, product

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if missing := max(0, 17 - len(rows)):  # the integer product takes 17 rows or more
            rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
        out = self.product(rows, self.weight, self.scale)[: x.numel() // x.shape[-1]]
        out = out.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def rate(run: Callable[[], object], flops: float, seconds: float = 0.5) -> float:
    """FLOP per CPU second."""
    run()
    run()
    n, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        run()
        n += 1
    return flops * n / (time.process_time() - began)


def linears(model: Any) -> dict[tuple[int, int], int]:
    """How many linears of the blocks have each shape (in, out)."""
    out: dict[tuple[int, int], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            shape = (module.in_features, module.out_features)
            out[shape] = out.get(shape, 0) + 1
    return out


def rates(shapes: dict[tuple[int, int], int], tokens: int) -> dict[str, float]:
    """FLOP per CPU second over all linears of a judge, by way."""
    seconds: dict[str, float] = {}
    compiled = torch.compile(int8_linear)
    for (n, m), count in shapes.items():
        x, w = torch.randn(tokens, n), torch.randn(m, n)
        (values, _), (weight, scale) = quantised(x), quantised(w)
        weight, scale, xb, wb = weight.t().contiguous(), scale.t(), x.bfloat16(), w.bfloat16()
        runs: dict[str, Callable[[], object]] = {
            "float32": lambda x=x, w=w: torch.nn.functional.linear(x, w),
            "bfloat16": lambda x=xb, w=wb: torch.nn.functional.linear(x, w),
            "int8, product alone": lambda x=values, w=weight: torch._int_mm(x, w),
            "int8, eager": lambda x=xb, w=weight, s=scale: int8_linear(x, w, s),
            "int8, compiled": lambda x=xb, w=weight, s=scale: compiled(x, w, s),
        }
        flops = 2.0 * tokens * n * m
        for name, run in runs.items():
            seconds[name] = seconds.get(name, 0.0) + count * flops / rate(run, flops)
    total = sum(2.0 * tokens * n * m * count for (n, m), count in shapes.items())
    return {name: total / s for name, s in seconds.items()}


def scores(judge: HFJudge, asked: Sequence[str], said: Sequence[str]) -> tuple[np.ndarray, float, int]:
    """Expected ratings, CPU seconds and tokens run."""
    reward = ProbabilityWeightedReward(judge)
    judge.forget()
    judge.forward.cache.clear()
    before, began = judge.forward.tokens_run, time.process_time()
    found = reward.score(list(asked), list(said))
    return np.array(found, dtype=float), time.process_time() - began, judge.forward.tokens_run - before


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, help="folder of a dense judge")
    parser.add_argument("--texts", type=int, default=8, help="read to see what share the linears are")
    parser.add_argument("--scored", type=int, default=0, help="texts scored in each arithmetic")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="rows of the products")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = open_ended()
    asked = [row["prompt"] for row in rows]
    said = [f"Here is what I think of it. {text}" for text in asked]
    judge = HFJudge(args.judge, dtype="bfloat16", device="cpu")
    scores(judge, asked[:2], said[:2])
    _, seconds, tokens = scores(judge, asked[: args.texts], said[: args.texts])
    found = {n: rates(linears(judge.blocks.model), n) for n in args.tokens}
    best = {way: max(by_way[way] for by_way in found.values()) for way in found[args.tokens[0]]}
    share = 2.0 * judge_shape(args.judge).linear * tokens / best["bfloat16"] / seconds
    gain = {way: best[way] / best["bfloat16"] for way in best}
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.int8 --judge <{Path(args.judge).name}> --texts {args.texts} "
        f"--scored {args.scored} --threads {args.threads}",
        "commit": commit(), "cpu": cpu_kind(), "torch": torch.__version__, "judge": Path(args.judge).name,
        "gflops_per_cpu_second": {n: {w: v / 1e9 for w, v in by_way.items()} for n, by_way in found.items()},
        "linears_over_bfloat16": gain, "share_of_linears_in_bfloat16": share,
        "whole_over_bfloat16_at_most": {w: 1 / (1 - share + share / g) for w, g in gain.items() if w != "float32"},
    }  # fmt: skip
    if args.scored:
        report["scores"] = compared(judge, args.judge, asked[: args.scored], said[: args.scored])
    path = RESULTS / f"int8-{Path(args.judge).name}-{cpu_kind()}.json"
    path.write_text(to_json(report, indent=1) + "\n")
    print(to_json(report, indent=1))


def compared(judge: HFJudge, name: str, asked: Sequence[str], said: Sequence[str]) -> dict[str, Any]:
    """Agreement with float32, and CPU seconds, of the judge in bfloat16 and with int8 linears."""
    got = {"bfloat16": scores(judge, asked, said)[:2]}
    del judge
    exact = HFJudge(name, dtype="float32", device="cpu")
    want, exact_seconds, _ = scores(exact, asked, said)
    compiled = torch.compile(int8_linear, dynamic=True)
    for layer in exact.blocks.layers:
        for path, module in list(layer.named_modules()):
            if isinstance(module, torch.nn.Linear):
                parent, _, child = path.rpartition(".")
                setattr(layer.get_submodule(parent), child, Int8Linear(module, compiled))
    scores(exact, asked[:2], said[:2])
    got["int8"] = scores(exact, asked, said)[:2]
    upper = np.triu_indices(len(want), 1)
    order = np.sign(want[:, None] - want)[upper]
    return {"texts": len(want), "float32_cpu_seconds": exact_seconds} | {
        way: {
            "spearman": float(spearmanr(want, found).statistic),
            "pairs_flipped": float((np.sign(found[:, None] - found)[upper] != order).mean()), "cpu_seconds": seconds,
        }
        for way, (found, seconds) in got.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
