"""The readings that panels, probes and contrasts are measured on: short pairs of public files, every question at once.

    export LATENT_REWARDS_DATA=../shared/data
    python -m benchmarks.panel_sample --judge Qwen/Qwen2.5-Coder-1.5B-Instruct
    python -m benchmarks.panel_sample --judge embedded --layers

reads every completion once under all questions of a panel, and keeps under `runs/panel/` what tables need of it
(`panel_table.py`): label probabilities, label logits of every layer, states of one layer. It goes on where it was
stopped. Rows stand in the order of their text's hash, one pair of each file in turn, so that what is there when it is
stopped is a sample of every file. `--part 0/4` reads a quarter, so that several processes can share an accelerator.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import readings_file
from benchmarks.probe_sample import load
from benchmarks.readings_file import Arrays
from latent_rewards import HFJudge, Need, Reading
from latent_rewards.judge.prompts import to_text
from latent_rewards.probes.examples import Example, fingerprint, prompt_group
from latent_rewards.probes.panel_collect import collect_readings, lengths_of
from latent_rewards.probes.questions import Question, default_questions

FILES = (
    "pairwise/llmbar", "pairwise/hhh_alignment", "pairwise/llmeval2", "pairwise/autoj", "pairwise/rm_bench",
    "pairwise/alpacaeval_lenmatched", "pairwise/rmb", "pairwise/hh_harmless", "pairwise/ultrafeedback_sample",
)  # fmt: skip
LAYERS = (20,)  # whose states are kept, for the probe beside the panel; the recipe's of the 1.5B judge
CONTRASTED = ("weighted", "verifier")  # questions of which the label logits of every layer are kept

logger = logging.getLogger(__name__)


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


def packed(
    questions: Sequence[Question], examples: Sequence[Example], readings: Sequence[Reading], index: np.ndarray
) -> Arrays:
    """Arrays of N rows: the examples without their texts, and what is kept of their readings.

    Of every question `logprobs` (N, K) and `mass` (N,), float32; where label logits of all layers were read, their
    means over the layers by lens (N, K), and of `CONTRASTED` the normed ones `layers` (N, L+1, K), float16, each
    layer's mean over the labels taken off, which no softmax over them sees. Of states `hidden/LAYER` (N, D), float16.
    """
    out: Arrays = {
        "index": index, "label": np.array([e.label for e in examples], dtype=np.float32),
        "pair": np.array([e.pair for e in examples]), "source": np.array([e.source for e in examples]),
        "group": np.array([prompt_group(e.prompt) for e in examples]), "length": lengths_of(questions, examples),
    }  # fmt: skip
    for question, reading in zip(questions, readings, strict=True):
        assert reading.label_logprobs is not None and reading.label_mass is not None
        out[f"{question.name}/logprobs"] = reading.label_logprobs.numpy()
        out[f"{question.name}/mass"] = reading.label_mass.numpy()
        for lens, logits in reading.layer_label_logits.items():
            out[f"{question.name}/{lens}"] = logits.mean(1).numpy()
            if lens == "normed" and question.name in CONTRASTED:
                centred = logits - logits.mean(-1, keepdim=True)
                out[f"{question.name}/layers"] = centred.to(torch.float16).numpy()
        out |= {f"hidden/{layer}": x.to(torch.float16).numpy() for layer, x in reading.hidden.items()}
    return out


def collect(args: argparse.Namespace) -> Path:
    """Read what is missing of the sample, or of a part of it; the file of its readings."""
    torch.set_num_threads(args.threads)
    number, count = readings_file.part_of(args.part)
    judge, questions = HFJudge(args.judge, dtype=args.dtype, batch_tokens=args.batch_tokens), default_questions()
    everything = sample(Path(os.environ["LATENT_REWARDS_DATA"]), args.chars, args.each)[: args.most]
    index = np.array([i for i, e in enumerate(everything) if e.pair % count == number], dtype=np.int64)
    path = args.root / f"panel-{judge.name}-{number}of{count}.npz"
    about = {
        "part": args.part, "chars": args.chars, "each": args.each, "layers": args.layers, "lenses": args.lenses,
        "examples": fingerprint(everything), "questions": [[q.name, q.prompt.hash, q.criterion] for q in questions],
        **readings_file.circumstances(judge),
    }  # fmt: skip
    seconds, parts = _found(path, about)
    done = sum(len(part["index"]) for part in parts)
    for start in range(done, len(index), args.shard):
        rows, began = index[start : start + args.shard], time.perf_counter()
        some = [everything[i] for i in rows]
        also = Need(hidden=frozenset(args.layers)) if args.layers else None
        readings = collect_readings(judge, questions, some, lenses=args.lenses, also=also, shard_rows=len(some))
        seconds += time.perf_counter() - began
        parts.append(packed(questions, some, readings, rows))
        done += len(rows)
        if len(parts) % args.keep_every == 0 or done == len(index):
            parts = [readings_file.join(parts)]
            readings_file.save(path, about | {"seconds": seconds, "rows": done}, parts[0])
            logger.info("%s: %d of %d rows, %.1f s of reading", path.name, done, len(index), seconds)
    return path


def _found(path: Path, about: dict[str, object]) -> tuple[float, list[Arrays]]:
    if not path.is_file():
        return 0.0, []
    found, arrays = readings_file.load(path)
    other = sorted(k for k in about if found.get(k) != about[k])
    if other:
        raise ValueError(f"{path} was read with other {' and '.join(other)}; give another --root")
    return found["seconds"], [arrays]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that say which readings."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--root", type=Path, default=Path("runs/panel"), help="folder of the readings")
    parser.add_argument("--layers", type=int, nargs="*", default=list(LAYERS), help="layers whose states are kept")
    parser.add_argument("--lenses", nargs="*", default=["normed", "raw"], help="of label logits of every layer")
    parser.add_argument("--chars", type=int, default=1000, help="most characters of prompt and completion together")
    parser.add_argument("--each", type=int, default=180, help="most pairs of each file")
    parser.add_argument("--most", type=int, help="take only the first so many completions")
    parser.add_argument("--part", default="0/1", help="which part of the pairs, as in 0/4")
    parser.add_argument("--shard", type=int, default=64, help="completions read at once")
    parser.add_argument("--keep-every", type=int, default=4, help="shards between two writes of the file")
    parser.add_argument("--batch-tokens", type=int, help="most tokens of one forward")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    print(collect(arguments(__doc__).parse_args()))


if __name__ == "__main__":
    main()
