"""Pairs per second on an accelerator, random weights at real shapes; nothing is downloaded.

python -m benchmarks.gpu                       # Qwen3-0.6B, 8B and 14B shapes in bf16; fp8 where torchao is installed
python -m benchmarks.gpu --tiny                # CPU, a toy shape: tries the script, measures nothing

One step of GRPO: 16 completions of 256 tokens on each 512-token prompt, behind the judge's 96-token head. Contestants:
generate(max_new_tokens=1) and the plain forward (padded batches, last logits), ours at full and at half depth, each
compiled too with --compile. The share of the matrix-product rate counts the FLOPs of the unique tokens: two per weight
of the decoder's linears and the attended positions. Writes benchmarks/results/gpu-<device>.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.throughput import Shape, command, commit, floor_flops
from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.tree import TreeForward
from latent_rewards.files.outputs import to_json

# hidden, intermediate, layers, heads, key-value heads; head width 128 and vocabulary as published.
SHAPES = {
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8),
    "Qwen3-8B": (4096, 12288, 36, 32, 8),
    "Qwen3-14B": (5120, 17408, 40, 40, 8),
    "tiny": (64, 128, 4, 4, 2),
}
HEAD = 96
LABELS = list(range(15, 26))


def build(shape: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A random Qwen3 of that shape, made on the device."""
    hidden, intermediate, layers, heads, kv = SHAPES[shape]
    tiny = shape == "tiny"
    config = transformers.Qwen3Config(
        vocab_size=512 if tiny else 151_936, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv, head_dim=16 if tiny else 128,
        max_position_embeddings=4096, tie_word_embeddings=shape in ("Qwen3-0.6B", "tiny"), bos_token_id=None,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def to_fp8(model: Any) -> None:
    """Dynamic float8 activations and weights in the decoder's linears, by torchao."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

    quantize_(model.model, Float8DynamicActivationFloat8WeightConfig())


def texts(prompts: int, g: int, prompt: int, completion: int, vocab: int) -> list[list[int]]:
    """Random head -> prompt -> completion."""
    rng = random.Random(0)
    draw: Callable[[int], list[int]] = lambda n: [rng.randrange(1, vocab) for _ in range(n)]  # noqa: E731
    head = draw(HEAD)
    shared = [[*head, *draw(prompt)] for _ in range(prompts)]
    return [[*s, *draw(completion)] for s in shared for _ in range(g)]


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median wall time after one warm-up run."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_rate(device: torch.device, dtype: torch.dtype, hidden: int, intermediate: int) -> float:
    """FLOP/s of the best of two matrix products: the judge's own shape, and a large square one."""
    side = 8192 if device.type == "cuda" else 256
    rates = []
    for t, a, b in ((side, hidden, intermediate), (side, side, side)):
        x, w = (torch.randn(n, a, device=device, dtype=dtype) for n in (t, b))
        rates.append(2.0 * t * a * b / seconds(lambda x=x, w=w: [x @ w.T for _ in range(10)], device, 5) * 10)
    return max(rates)


def batches(sequences: list[list[int]], size: int) -> list[list[list[int]]]:
    """Rows in order; all have one length here, so nothing is padded."""
    return [sequences[i : i + size] for i in range(0, len(sequences), size)]


@torch.no_grad()
def generate(model: Any, sequences: list[list[int]], size: int) -> torch.Tensor:
    """What most people run: generate one token and look at its logits."""
    out = []
    for rows in batches(sequences, size):
        ids = torch.tensor(rows, device=model.device)
        got = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        out.append(got.logits[0][:, LABELS].float())
    return torch.cat(out)


@torch.no_grad()
def forward(model: Any, sequences: list[list[int]], size: int) -> torch.Tensor:
    """One forward per batch, logits of the last position only."""
    return torch.cat([
        model(torch.tensor(rows, device=model.device), use_cache=False, logits_to_keep=1).logits[:, -1, LABELS].float()
        for rows in batches(sequences, size)
    ])  # fmt: skip


def ours(tree: TreeForward, sequences: list[list[int]]) -> torch.Tensor:
    """Full depth: label logits of each last position; nothing is kept from the run before."""
    tree.cache.clear()
    states = tree.read(sequences, [[len(s) - 1] for s in sequences]).final
    assert states is not None
    return tree.blocks.head_logits(states, LABELS)


def half(tree: TreeForward, sequences: list[list[int]]) -> torch.Tensor:
    """Half depth: the hidden state that a probe reads."""
    tree.cache.clear()
    layer = tree.blocks.n_layers // 2
    return tree.read(sequences, [[len(s) - 1] for s in sequences], layers=(layer,), final=False).inner[layer]


def measure(shape: str, precision: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All contestants at one shape and precision."""
    dtype = torch.float32 if args.tiny else torch.bfloat16
    hidden, intermediate, layers, heads, kv = SHAPES[shape]
    model = build(shape, device, dtype)
    rate = gemm_rate(device, dtype, hidden, intermediate)
    sequences = texts(
        args.prompts, args.completions, args.prompt_tokens, args.completion_tokens, model.config.vocab_size
    )
    width = heads * model.config.head_dim
    linear = layers * (2 * hidden * width + 2 * hidden * kv * model.config.head_dim + 3 * hidden * intermediate)
    flops, unique = floor_flops(sequences, [[]], Shape(linear, layers, width))
    if precision == "fp8":
        to_fp8(model)
    out: dict[str, Any] = {
        "shape": shape, "precision": "fp32" if args.tiny else precision, "pairs": len(sequences),
        "tokens": sum(map(len, sequences)),
        "unique_tokens": unique, "gemm_flops_per_second": rate, "contestants": {},
    }  # fmt: skip
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "generate": lambda: generate(model, sequences, args.batch),
        "forward": lambda: forward(model, sequences, args.batch),
    }  # fmt: skip
    for name in ("eager", "compiled") if args.compile else ("eager",):
        tree = TreeForward(Blocks(model), batch_tokens=args.batch_tokens, compile=name == "compiled")
        suffix = "" if name == "eager" else ", compiled"
        runs |= {
            f"ours{suffix}": lambda t=tree: ours(t, sequences),
            f"ours, half depth{suffix}": lambda t=tree: half(t, sequences),
        }
        for label in list(runs):
            if label not in out["contestants"]:
                out["contestants"][label] = contest(runs[label], device, args.repeats, len(sequences), flops, rate)
        out["shared"] = tree.usable
    plain, mine = forward(model, sequences, args.batch), ours(tree, sequences)
    out["largest_logit_difference_to_plain"] = float((plain - mine.to(plain.device)).abs().max())
    return out


def contest(
    run: Callable[[], Any], device: torch.device, repeats: int, pairs: int, flops: float, rate: float
) -> dict[str, float | None]:
    """Rate of one contestant; the share is of the work that full depth needs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    took = seconds(run, device, repeats)
    return {
        "seconds": took, "pairs_per_second": pairs / took, "share_of_gemm_rate": flops / took / rate,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Every shape and precision that fits; what is unmeasured, and why, is in the report."""
    args = arguments(argv)
    cuda = torch.cuda.is_available() and not args.tiny
    if not cuda and not args.tiny:
        print("no GPU here: every figure of this benchmark is unmeasured; --tiny tries the script on the CPU")
        return {"unmeasured": {"all": "no GPU"}}
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name(device) if cuda else "cpu-tiny"
    report: dict[str, Any] = {
        "command": command("gpu", argv),
        "commit": commit(), "device": name, "torch": torch.__version__, "transformers": transformers.__version__,
        "results": [], "unmeasured": {} if cuda else {"all": "no GPU: toy shapes on the CPU, the figures mean nothing"},
    }  # fmt: skip
    for shape in ["tiny"] if args.tiny else args.shapes:
        for precision in ("bf16", "fp8"):
            why = _missing(precision, args.tiny)
            try:
                if why is None:
                    report["results"].append(measure(shape, precision, args, device))
            except torch.OutOfMemoryError as err:
                why = f"out of memory: {err}".splitlines()[0]
            except (RuntimeError, ImportError) as err:  # NotImplementedError is a RuntimeError
                if precision == "bf16":
                    raise
                why = f"{type(err).__name__}: {err}".splitlines()[0]
            if why is not None:
                report["unmeasured"][f"{shape} {precision}"] = why
            if cuda:
                torch.cuda.empty_cache()
            write(report, args.out)
    for r in report["results"]:
        for label, c in r["contestants"].items():
            rate, share = c["pairs_per_second"], c["share_of_gemm_rate"]
            print(f"{r['shape']} {r['precision']} {label}: {rate:.1f} pairs/s, {share:.0%} of the matrix-product rate")
    print("unmeasured:", report["unmeasured"] or "nothing")
    return report


def _missing(precision: str, tiny: bool) -> str | None:
    if precision == "fp8" and tiny:
        return "needs a GPU"
    return None if precision == "bf16" or importlib.util.find_spec("torchao") else "torchao is not installed"


def write(report: dict[str, Any], folder: Path) -> None:
    """benchmarks/results/gpu-<device>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in report["device"].lower())
    (folder / f"gpu-{name}.json").write_text(to_json(report, indent=1) + "\n")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", default=[s for s in SHAPES if s != "tiny"], choices=list(SHAPES))
    p.add_argument("--prompts", type=int, default=8, help="prompts of one step")
    p.add_argument("--completions", type=int, default=16, help="completions of a prompt (G)")
    p.add_argument("--prompt-tokens", type=int, default=512)
    p.add_argument("--completion-tokens", type=int, default=256)
    p.add_argument("--batch", type=int, default=32, help="rows in a batch of generate and the plain forward")
    p.add_argument("--batch-tokens", type=int, help="our batch budget; default from the free memory")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--compile", action="store_true", help="also compiled decoder blocks")
    p.add_argument("--tiny", action="store_true", help="toy shape on the CPU")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = p.parse_args(argv)
    if args.tiny:
        args.prompts, args.completions, args.prompt_tokens, args.completion_tokens = 2, 3, 24, 10
        args.batch, args.repeats = 2, 1
    return args


if __name__ == "__main__":
    main()
