"""What shared prefixes gain through sliding windows and sinks, beside what they gain for Llama.

    python -m benchmarks.windows [--rounds 3] [--dtype float32]

Random models at a quarter of the width of Llama 3.2 1B, Gemma 3 1B and gpt-oss 20B (heads of their sizes, windows of
their lengths, four experts of eight), in one process of one thread. Random tokens in the three shapes of `workloads`:
16 prompts x 8, 4 long prompts x 16, 96 unrelated texts, all behind one head, most of them longer than the windows. In
each round every model reads every workload with shared prefixes and, an even share of it, in padded batches; the ratio
is of texts per CPU second. Writes `results/windows-<cpu>.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.workloads import spread
from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.tree import TreeForward
from latent_rewards.files.runs import commit, cpu_kind

RESULTS = Path(__file__).parent / "results"
HEAD = 200
_PLAIN: dict[str, Any] = {"vocab_size": 2048, "max_position_embeddings": 4096, "pad_token_id": 0}
SHAPES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(
        **_PLAIN, hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2, head_dim=64,
    ),
    "gemma3, window 512": lambda: transformers.Gemma3TextConfig(
        **_PLAIN, hidden_size=288, intermediate_size=1728, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512,
    ),
    "gpt_oss, window 128": lambda: transformers.GptOssConfig(
        **_PLAIN, hidden_size=720, intermediate_size=720, num_hidden_layers=6, num_attention_heads=16,
        num_key_value_heads=2, head_dim=64, sliding_window=128, num_local_experts=8, num_experts_per_tok=4,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
    ),
}  # fmt: skip


def workloads() -> dict[str, list[list[int]]]:
    """Token ids: the same head, prompt, completion, the same question."""
    rng = random.Random(0)

    def draw(n: int) -> list[int]:
        return [rng.randrange(1, 2048) for _ in range(n)]

    def texts(prompts: int, completions: int, prompt: int, completion: int) -> list[list[int]]:
        out = []
        for _ in range(prompts):
            begin = [*head, *draw(rng.randint(prompt // 2, 3 * prompt // 2))]
            out += [
                [*begin, *draw(rng.randint(completion // 2, 3 * completion // 2)), *question]
                for _ in range(completions)
            ]
        return out

    head, question = draw(HEAD), draw(40)
    return {
        "16 prompts x 8": texts(16, 8, 220, 120),
        "4 long prompts x 16": texts(4, 16, 1000, 25),
        "96 unrelated": texts(96, 1, 250, 200),
    }


@torch.no_grad()
def measure(rounds: int, dtype: torch.dtype, plain_share: float) -> dict[str, Any]:
    """Seconds of CPU time a text, by shape, workload and way; and how far the two ways' states lie apart."""
    forwards: dict[str, TreeForward] = {}
    for name, config in SHAPES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(), dtype=dtype).eval()
        for key, p in model.named_parameters():
            if "sinks" in key:
                p.normal_(0, 1)
        forwards[name] = TreeForward(Blocks(model))
        assert forwards[name].usable, forwards[name].sharing
    out: dict[str, Any] = {name: {} for name in forwards}
    for _ in range(rounds):
        for work, sequences in workloads().items():
            for name, forward in forwards.items():
                some = spread(len(sequences), round(plain_share * len(sequences)))
                at = [[len(s) - 1] for s in sequences]
                forward.cache.clear()
                began = time.process_time()
                ours = forward.read(sequences, at, head=HEAD).final
                middle = time.process_time()
                plain = read_states(forward.blocks, [sequences[i] for i in some], [at[i] for i in some]).final
                ended = time.process_time()
                assert ours is not None and plain is not None and forward.usable
                cell = out[name].setdefault(work, {"shared": [], "padded": [], "difference": 0.0})
                cell["shared"].append((middle - began) / len(sequences))
                cell["padded"].append((ended - middle) / len(some))
                apart = (ours[some].float() - plain.float()).norm() / plain.float().norm()
                cell["difference"] = max(cell["difference"], float(apart))
                print(work, name, {k: v[-1] for k, v in cell.items() if isinstance(v, list)}, flush=True)
    return out


def table(report: dict[str, Any]) -> str:
    """The Markdown page."""
    works = list(workloads())
    lines = [
        "# Windows and sinks",
        "",
        f"`{report['command']}`, commit {report['commit']}, {report['cpu']}, {report['dtype']}, one thread. Texts per "
        "CPU second with shared prefixes, as a multiple of the model's own padded forward (median over the rounds), "
        "and the largest relative difference between the two ways' states.",
        "",
        f"| shape | {' | '.join(works)} | difference |",
        "|---|" + "---|" * (len(works) + 1),
    ]
    ratio = {
        name: {w: statistics.median(c["padded"]) / statistics.median(c["shared"]) for w, c in cells.items()}
        for name, cells in report["cells"].items()
    }
    for name, cells in report["cells"].items():
        numbers = [f"{ratio[name][w]:.2f} ({ratio[name][w] / ratio['llama'][w]:.0%} of Llama's)" for w in works]
        lines.append(f"| {name} | {' | '.join(numbers)} | {max(c['difference'] for c in cells.values()):.1e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--plain-share", type=float, default=0.125, help="of each workload that is read padded, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "command": f"python -m benchmarks.windows --rounds {args.rounds} --dtype {args.dtype}",
        "commit": commit(),
        "cpu": cpu_kind(),
        "dtype": args.dtype,
        "cells": measure(args.rounds, getattr(torch, args.dtype), args.plain_share),
    }
    path = RESULTS / f"windows-{cpu_kind()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
