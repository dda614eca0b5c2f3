"""Pairs per second on an accelerator, random weights at real shapes; nothing is downloaded.

python -m benchmarks.gpu                       # all shapes in bf16; fp8 where torchao is installed
python -m benchmarks.gpu --tiny                # CPU, toy shapes: tries the script, measures nothing

One step of GRPO: 16 completions of 256 tokens on each prompt of 512 tokens (Gemma 3: 1,536, beyond its windows), behind
the judge's 96-token head. Contestants: generate(max_new_tokens=1) and the plain forward (padded batches, last logits),
ours at full and at half depth, each compiled too with --compile; then ours again with half of the memory that it took
beside the weights. The share of the matrix-product rate counts the FLOPs of the unique tokens: two per weight of the
decoder's linears that a token uses, and the attended positions. `error` holds the states of eight texts, ours and
padded, against the same model in float32 (relative norm). Writes benchmarks/results/gpu-<device>.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.throughput import Shape, floor_flops
from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.tree import TreeForward
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import command, commit


class Model(NamedTuple):
    """A published shape."""

    kind: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv: int
    head_dim: int = 128
    vocab: int = 151_936
    window: int = 0
    windowed: int = 0  # layers with the window
    experts: int = 0
    active: int = 1  # experts that a token uses
    prompt_tokens: int = 512

    def floor(self) -> Shape:
        """Sizes that the floor needs."""
        width = self.heads * self.head_dim
        attention = 2 * self.hidden * width + 2 * self.hidden * self.kv * self.head_dim
        linear = attention + self.hidden * (3 * self.intermediate * self.active + self.experts)
        return Shape(self.layers * linear, self.layers, width, (self.window,) * self.windowed)

    def config(self) -> Any:
        """The configuration, with windows where the published ones lie."""
        sizes = {
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": 0, "tie_word_embeddings": self.hidden < 2048,
        }  # fmt: skip
        if self.kind == "gemma3":
            config: Any = transformers.Gemma3TextConfig(**sizes, sliding_window=self.window)
        elif self.kind == "gpt_oss":
            config = transformers.GptOssConfig(
                **sizes, sliding_window=self.window, num_local_experts=self.experts, num_experts_per_tok=self.active,
                rope_parameters={"rope_type": "default", "rope_theta": 150_000.0},
            )  # fmt: skip
        else:
            config = transformers.Qwen3Config(**sizes)
        assert (getattr(config, "layer_types", None) or []).count("sliding_attention") == self.windowed
        return config


SHAPES = {
    "Qwen3-0.6B": Model("qwen3", 1024, 3072, 28, 16, 8),
    "Qwen3-8B": Model("qwen3", 4096, 12288, 36, 32, 8),
    "Qwen3-14B": Model("qwen3", 5120, 17408, 40, 40, 8),
    "Gemma-3-12B": Model("gemma3", 3840, 15360, 48, 16, 8, 256, 262_208, 1024, 40, prompt_tokens=1536),
    "gpt-oss-20B": Model("gpt_oss", 2880, 2880, 24, 64, 8, 64, 201_088, 128, 12, 32, 4),
}
TOYS = {
    "toy": Model("qwen3", 64, 128, 4, 4, 2, 16, 512, prompt_tokens=24),
    "toy with windows": Model("gemma3", 64, 128, 6, 4, 2, 16, 512, 64, 5, prompt_tokens=24),
    "toy with sinks and experts": Model("gpt_oss", 64, 64, 4, 4, 2, 16, 512, 64, 2, 4, 2, prompt_tokens=24),
}
HEAD = 96
LABELS = list(range(15, 26))


def build(shape: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """A random model of that shape, made on the device; sinks as large as learned ones are."""
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
    for name, p in model.named_parameters():
        if "sinks" in name:
            torch.nn.init.normal_(p)
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


def measure(name: str, precision: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All contestants at one shape and precision."""
    shape, dtype = (TOYS if args.tiny else SHAPES)[name], torch.float32 if args.tiny else torch.bfloat16
    model = build(shape, device, dtype)
    rate = gemm_rate(device, dtype, shape.hidden, shape.intermediate)
    prompt = args.prompt_tokens or shape.prompt_tokens
    sequences = texts(args.prompts, args.completions, prompt, args.completion_tokens, shape.vocab)
    flops, unique = floor_flops(sequences, [[]], shape.floor())
    if precision == "fp8":
        to_fp8(model)
    out: dict[str, Any] = {
        "shape": name, "precision": "fp32" if args.tiny else precision, "pairs": len(sequences),
        "prompt_tokens": prompt, "tokens": sum(map(len, sequences)), "unique_tokens": unique,
        "gemm_flops_per_second": rate, "contestants": {},
    }  # fmt: skip
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "generate": lambda: generate(model, sequences, args.batch),
        "forward": lambda: forward(model, sequences, args.batch),
    }  # fmt: skip
    for kind in ("eager", "compiled") if args.compile else ("eager",):
        tree = TreeForward(Blocks(model), batch_tokens=args.batch_tokens, compile=kind == "compiled")
        suffix = "" if kind == "eager" else ", compiled"
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
    if device.type == "cuda":
        out["memory_short"] = short_of_memory(tree, sequences, mine, out["contestants"]["ours"]["peak_gib"])
    out["error"] = error(tree, sequences[: 4 * args.completions : args.completions // 2 or 1])
    return out


def short_of_memory(tree: TreeForward, sequences: list[list[int]], want: torch.Tensor, peak: float) -> dict[str, Any]:
    """The same work with half of the memory that it took beside the weights: it must halve its batches and go on."""
    tree.cache.clear()
    torch.cuda.empty_cache()
    weights, total, before = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1], tree.batch_tokens
    allowed = weights + (int(peak * 2**30) - weights) // 2
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        began = time.perf_counter()
        got = ours(tree, sequences)
        took = time.perf_counter() - began
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "allowed_gib": allowed / 2**30, "weights_gib": weights / 2**30, "batch_tokens": [before, tree.batch_tokens],
        "seconds_with_retries": took, "largest_logit_difference": float((got - want).abs().max()),
    }  # fmt: skip


@torch.no_grad()
def error(tree: TreeForward, sequences: list[list[int]]) -> dict[str, float | str]:
    """Relative difference of the last states, shared and padded, to the model in float32, which it is turned into."""
    at = [[len(s) - 1] for s in sequences]
    tree.cache.clear()
    found = {"ours": tree.read(sequences, at).final, "padded": read_states(tree.blocks, sequences, at).final}
    try:
        tree.blocks.model.float()
        exact = read_states(tree.blocks, sequences, at).final
    except torch.OutOfMemoryError:
        return {"not measured": "the model in float32 does not fit this device"}
    assert exact is not None
    return {k: float((v.float() - exact).norm() / exact.norm()) for k, v in found.items() if v is not None}


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
        "command": command("benchmarks.gpu", argv),
        "commit": commit(), "device": name, "torch": torch.__version__, "transformers": transformers.__version__,
        "results": [], "unmeasured": {} if cuda else {"all": "no GPU: toy shapes on the CPU, the figures mean nothing"},
    }  # fmt: skip
    for shape in TOYS if args.tiny else args.shapes:
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
    p.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    p.add_argument("--prompts", type=int, default=8, help="prompts of one step")
    p.add_argument("--completions", type=int, default=16, help="completions of a prompt (G)")
    p.add_argument("--prompt-tokens", type=int, help="default 512; 1536 for Gemma 3, beyond its window")
    p.add_argument("--completion-tokens", type=int, default=256)
    p.add_argument("--batch", type=int, default=32, help="rows in a batch of generate and the plain forward")
    p.add_argument("--batch-tokens", type=int, help="our batch budget; default from the free memory")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--compile", action="store_true", help="also compiled decoder blocks")
    p.add_argument("--tiny", action="store_true", help="toy shape on the CPU")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = p.parse_args(argv)
    if args.tiny:
        args.prompts, args.completions, args.completion_tokens = 2, 3, 10
        args.batch, args.repeats = 2, 1
    return args


if __name__ == "__main__":
    main()
