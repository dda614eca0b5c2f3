"""The rows of public benchmarks that probes are trained and measured on, and their features.

    LATENT_REWARDS_DATA=../shared/data python -m benchmarks.probe_sample --judge embedded

reads every row once and keeps the features under `runs/probe_table/<judge>/`; it goes on where it was stopped.

Of each pairwise file the sample has the first `random` rows in the order of their id's hash (accuracy is measured on
those), then further pairs of matched length (length-matched accuracy is measured on all of them). A prompt is "dev" or
"unseen" by its hash, in whatever file it stands: settings are chosen on dev prompts, figures are of unseen ones.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latent_rewards import HFJudge, JudgePrompt
from latent_rewards.data import open_ended
from latent_rewards.evaluation.kept import KeptJudge
from latent_rewards.judge.hf import Judge, Lens
from latent_rewards.judge.prompts import to_text
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.examples import Example, list_examples, pair_examples, prompt_group, rating_examples
from latent_rewards.probes.features import Features

DEV_SHARE = 0.4


class File(NamedTuple):
    """How much of a file is sampled.

    Attributes:
        family: files of one family never stand on both sides.
        licence: of the data, as read at its origin.
        random: rows in the order of the id's hash.
        matched: pairs of matched length in all, those among the random ones included.
        chars: most characters of prompt and completion together.
    """

    family: str
    licence: str
    random: int
    matched: int
    chars: int = 3500


FILES: dict[str, File] = {
    "pairwise/alpacaeval_lenmatched": File("alpacaeval", "Apache-2.0", 800, 800),
    "pairwise/autoj": File("autoj", "none found", 1000, 1000),
    "pairwise/faireval": File("llmeval", "MIT", 64, 64, 4000),
    "pairwise/hh_harmless": File("hh", "MIT", 2400, 2400, 2000),
    "pairwise/hhh_alignment": File("hhh", "Apache-2.0", 221, 221),
    "pairwise/llmbar": File("llmbar", "MIT", 417, 417),
    "pairwise/llmbar_casestudy": File("llmbar", "MIT", 312, 312),
    "pairwise/llmeval2": File("llmeval", "MIT", 198, 198),
    "pairwise/qa_feedback": File("qa_feedback", "Apache-2.0", 1400, 1400),
    "pairwise/rm_bench": File("rm_bench", "none found", 500, 200, 2500),
    "pairwise/rmb": File("rmb", "none found", 1700, 1700),
    "listwise/alpacaeval": File("alpacaeval", "Apache-2.0", 150, 0, 2500),
    "listwise/gsm8k_solutions": File("gsm8k", "MIT", 300, 0),
    "listwise/rmb_bon": File("rmb", "none found", 200, 0, 2500),
    "listwise/topical_chat": File("topical_chat", "MIT", 60, 0),
}
# Rated answers: layer weights are tuned on them.
RATED: dict[str, File] = {
    "single/autoj_single": File("autoj", "none found", 500, 0, 2000),
    "single/qags": File("qags", "MIT", 200, 0, 2000),
    "single/halueval_general": File("halueval", "MIT", 500, 0, 2000),
}
# More training rows: length-matched pairs of lists, a few answers of many prompts; no figure is taken from them.
EXTRA: dict[str, File] = {
    "extra/alpacaeval": File("alpacaeval", "Apache-2.0", 2600, 0, 2500),
    "extra/open_ended": File("open_ended", "Apache-2.0", 96, 0, 4000),
}
# For panels alone.
PANEL: dict[str, File] = {"pairwise/ultrafeedback_sample": File("ultrafeedback", "none found", 1000, 0)}
EVERY = FILES | RATED | EXTRA | PANEL


@dataclass
class Sample:
    """One file's sample, in the order in which it is read.

    Attributes:
        examples: N completions.
        dev: (N,) whether the prompt is one that settings may be chosen on.
        random: (N,) whether it belongs to the random rows.
        subset: (N,) the file's own subset.
    """

    examples: list[Example]
    dev: np.ndarray
    random: np.ndarray
    subset: np.ndarray


def load(name: str, folder: Path, most_chars: int = 4000, rows_each: int | None = None) -> Sample:
    """The sample of one file; prompts that stand in several rows are adjacent, so that they are read once.

    Args:
        name: see `EVERY`.
        folder: of the data.
        most_chars: of prompt and completion together.
        rows_each: take that many random rows and no others.
    """
    file = EVERY[name] if rows_each is None else EVERY[name]._replace(random=rows_each, matched=0)
    rows = [r for r in _origin(name, folder) if _chars(r) <= min(file.chars, most_chars)]
    if not rows:
        raise ValueError(
            f"{name} has no row of at most {min(file.chars, most_chars)} characters; leave it out of --files"
        )
    rows.sort(key=lambda r: hashlib.sha256(str(r["id"]).encode()).hexdigest())
    if name.endswith("rm_bench"):  # nine style combinations of one item: keep one, of matched length if there is one
        items: dict[str, dict] = {}
        for row in sorted(rows, key=lambda r: not is_matched(r)):
            items.setdefault(re.sub(r"[_-]?c\dr\d$", "", row["id"]), row)
        rows = sorted(items.values(), key=lambda r: hashlib.sha256(str(r["id"]).encode()).hexdigest())
    first = rows[: file.random]
    have = sum(is_matched(r) for r in first)
    more = [r for r in rows[file.random :] if is_matched(r)][: max(0, file.matched - have)]
    chosen = [(r, True) for r in first] + [(r, False) for r in more]
    chosen.sort(key=lambda c: prompt_group(c[0]["prompt"]))
    kind = next(k for k in ("chosen", "responses", "response") if k in rows[0])
    make: Callable[..., list[Example]] = {"chosen": pair_examples, "responses": list_examples}.get(
        kind, rating_examples
    )
    examples, of = [], []
    for i, (row, _) in enumerate(chosen):
        made = [e._replace(pair=i if e.pair >= 0 else -1) for e in make([row], name)]
        examples += made
        of += [i] * len(made)
    dev = np.array([is_dev(e.prompt) for e in examples])
    subset = np.array([str(chosen[i][0].get("subset", "")) for i in of])
    return Sample(examples, dev, np.array([chosen[i][1] for i in of]), subset)


def is_dev(prompt: object) -> bool:
    """Whether settings may be chosen on this prompt."""
    return prompt_group(prompt) // 7 % 1000 < 1000 * DEV_SHARE


def is_matched(row: dict) -> bool:
    """Whether a pair's lengths differ by at most a fifth of the longer one."""
    if "chosen" not in row:
        return False
    a, b = len(row["chosen"]), len(row["rejected"])
    return abs(a - b) <= 0.2 * max(a, b)


def _origin(name: str, folder: Path) -> Iterable[dict]:
    if name == "extra/open_ended":
        return [dict(r) for r in open_ended()]
    if name == "extra/alpacaeval":
        lists = read_jsonl(folder / "listwise/alpacaeval.jsonl.gz")
        return [pair for row in lists for pair in _matched_pairs(row, EVERY[name].chars)]
    rows = read_jsonl(folder / f"{name}.jsonl.gz")
    return [_first(r, 8 if name.endswith("alpacaeval") else 6) for r in rows]


def read_jsonl(path: Path) -> list[dict]:
    """All rows of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _first(row: dict, most: int) -> dict:
    """The first few responses of a list."""
    return row | {k: row[k][:most] for k in ("responses", "gold") if k in row}


def _matched_pairs(row: dict, chars: int, most: int = 12, uses: int = 3, gap: float = 0.1) -> list[dict]:
    """A list's pairs whose lengths differ by at most a fifth, those first whose grades differ most.

    Args:
        row: a list.
        chars: most characters of prompt and response together.
        most: pairs of the list.
        uses: of one response.
        gap: smallest difference of grades.
    """
    gold, room = row["gold"], chars - len(to_text(row["prompt"]))
    short = [i for i, r in enumerate(row["responses"]) if len(r) <= room]
    pairs = sorted(
        ((i, j) for i in short for j in short if gold[i] - gold[j] >= gap), key=lambda p: gold[p[1]] - gold[p[0]]
    )
    used: Counter[int] = Counter()
    out: list[dict] = []
    for i, j in pairs:
        made = {"id": f"{row['id']}-{i}v{j}", "prompt": row["prompt"]}
        made |= {"chosen": row["responses"][i], "rejected": row["responses"][j]}
        if len(out) < most and is_matched(made) and max(used[i], used[j]) < uses:
            used.update((i, j))
            out.append(made)
    return out


def _chars(row: dict) -> int:
    texts = row.get("responses") or [row[k] for k in ("chosen", "rejected", "response") if k in row]
    return len(to_text(row["prompt"])) + max(map(len, texts))


def features_of(
    judge: Judge, prompt: JudgePrompt, name: str, sample: Sample, root: Path, layers: Sequence[int]
) -> Features:
    """Features of one sample, collected or found under `root`."""
    folder = root / judge.name / f"{name.replace('/', '-')}-{prompt.name}"
    lenses: tuple[Lens, ...] = ("raw", "normed") if name not in EXTRA and isinstance(judge, HFJudge) else ()
    return collect_features(
        judge, prompt, sample.examples, layers, folder=folder, dtype="float16", shard_rows=128, layer_logits=lenses
    )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that say which features: of which judge, files, layers and rows, and where they are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--root", type=Path, default=Path("runs/probe_table"), help="folder of the features")
    parser.add_argument("--layers", type=int, nargs="+", default=list(range(1, 31)), help="layers to collect")
    parser.add_argument("--chars", type=int, default=4000, help="most characters of prompt and completion together")
    parser.add_argument("--rows", type=int, help="random rows of each file; default as listed in the code")
    parser.add_argument(
        "--cache", type=Path, help="cache of an evaluation with keep_layers, instead of the judge itself"
    )
    parser.add_argument("--files", nargs="+", default=[*FILES, *RATED, *EXTRA])
    return parser


def collect(args: argparse.Namespace, prompt: JudgePrompt) -> Iterator[tuple[str, Sample, Features]]:
    """Every file's sample and features, collected where they are missing."""
    judge: Judge = HFJudge(args.judge)
    if args.cache is not None:
        judge = KeptJudge(judge, args.cache)  # type: ignore[arg-type]
    for name in args.files:
        sample = load(name, Path(os.environ["LATENT_REWARDS_DATA"]), args.chars, args.rows)
        yield name, sample, features_of(judge, prompt, name, sample, args.root, args.layers)


def main() -> None:
    for name, sample, _ in collect(arguments(__doc__).parse_args(), JudgePrompt.load("weighted")):
        print(name, len(sample.examples), flush=True)


if __name__ == "__main__":
    main()
