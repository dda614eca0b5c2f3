"""The readings that panels, probes and contrasts are measured on: short pairs of public files, every question at once.

    LATENT_REWARDS_DATA=../shared/data python -m benchmarks.panel_sample --judge Qwen/Qwen2.5-Coder-1.5B-Instruct

reads every completion once under all questions of a panel, and keeps the readings under `runs/panel/<judge>/`; it
goes on where it was stopped. Rows stand in the order of their id's hash, one of each file in turn, so that what is
there when it is stopped is a sample of every file.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.probe_sample import load
from latent_rewards import HFJudge, Need, Reading
from latent_rewards.judge.prompts import to_text
from latent_rewards.probes.examples import Example
from latent_rewards.probes.panel_collect import collect_readings
from latent_rewards.probes.questions import default_questions

FILES = (
    "pairwise/llmbar", "pairwise/hhh_alignment", "pairwise/llmeval2", "pairwise/autoj", "pairwise/rm_bench",
    "pairwise/alpacaeval_lenmatched",
)  # fmt: skip
LAYERS = (14, 18, 21, 24)  # whose states are kept, for the probe beside the panel


def sample(folder: Path, chars: int, each: int, files: Iterable[str] = FILES) -> list[Example]:
    """Pairs of every file in turn, both completions side by side; at most so many of a file, short ones only."""
    parts: list[list[list[Example]]] = []
    for name in files:
        examples = load(name, folder, chars).examples
        pairs = [list(some) for _, some in itertools.groupby(examples, key=lambda e: e.pair)]
        short = [p for p in pairs if len(p) == 2 and max(_chars(e) for e in p) <= chars]
        parts.append(sorted(short, key=_order)[:each])
    turns = [pair for turn in itertools.zip_longest(*parts) for pair in turn if pair is not None]
    return [e._replace(pair=i) for i, pair in enumerate(turns) for e in pair]


def _chars(example: Example) -> int:
    return len(to_text(example.prompt)) + len(to_text(example.completion))


def _order(pair: list[Example]) -> str:
    return hashlib.sha256((to_text(pair[0].prompt) + to_text(pair[0].completion)).encode()).hexdigest()


def collect(args: argparse.Namespace) -> tuple[list[Example], list[Reading], HFJudge]:
    """The sample, and its readings: those that are there, and those that are missing."""
    torch.set_num_threads(args.threads)
    judge = HFJudge(args.judge, dtype=args.dtype, device="cpu")
    examples = sample(Path(os.environ["LATENT_REWARDS_DATA"]), args.chars, args.each)[: args.most]
    readings = collect_readings(
        judge, default_questions(), examples, folder=args.root / judge.name, lenses=("normed", "raw"),
        also=Need(hidden=frozenset(args.layers)), shard_rows=args.shard,
    )  # fmt: skip
    return examples, readings, judge


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that say which readings."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--root", type=Path, default=Path("runs/panel"), help="folder of the readings")
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS), help="layers whose states are kept")
    parser.add_argument("--chars", type=int, default=700, help="most characters of prompt and completion together")
    parser.add_argument("--each", type=int, default=70, help="most pairs of each file")
    parser.add_argument("--most", type=int, help="take only the first so many completions")
    parser.add_argument("--shard", type=int, default=24, help="completions read at once, and kept in one shard")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    examples, _, judge = collect(arguments(__doc__).parse_args())
    print(f"{len(examples)} completions read by {judge.name}")


if __name__ == "__main__":
    main()
