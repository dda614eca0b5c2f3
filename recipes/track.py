"""Draw how far trajectories have come after each step: what the judge says of every beginning, in one forward.

    python -m recipes.track --input trajectories.jsonl --output runs/track

Rows have `prompt` and `steps` (a list of texts or of messages), or `completion` (taken apart by `--split`). Writes
`steps.jsonl` (the rows with their curves) and `curves.png` (the first twelve).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from transformers.hf_argparser import HfArg, HfArgumentParser

from latent_rewards import HFJudge, track
from latent_rewards.files.sources import open_source

SHOWN = 12


@dataclass
class TrackArguments:
    """What to follow, and with which judge."""

    input: str = HfArg(default="trajectories.jsonl", help="JSON Lines, Parquet or a data set.")
    output: str = HfArg(default="runs/track", help="Folder of curves and picture.")
    judge: str = HfArg(default="embedded", help="Hub id, folder or 'embedded'.")
    dtype: str = HfArg(default="auto", help="Of the judge.")
    prompt: str = HfArg(default="progress", help="Judge prompt with labels.")
    split: str = HfArg(default="paragraphs", help="Where steps of a completion end; see docs/steps.md.")
    limit: int = HfArg(default=100, help="Most rows.")


def main(args: TrackArguments) -> None:
    judge, out = HFJudge(args.judge, dtype=args.dtype), Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    curves: list[np.ndarray] = []
    with (out / "steps.jsonl").open("w", encoding="utf-8") as file:
        for chunk in open_source(args.input).chunks(args.limit):
            for row in chunk.rows[: args.limit - len(curves)]:
                steps = row["steps"] if row.get("steps") is not None else row["completion"]
                curve = track(judge, row["prompt"], steps, with_prompt=args.prompt, split=args.split)
                said = [None if np.isnan(x) else float(x) for x in curve]
                file.write(json.dumps({**row, "curve": said}, ensure_ascii=False, default=str) + "\n")
                curves.append(curve)
    draw(curves[:SHOWN], out / "curves.png", args.prompt)
    ends = [c[-1] for c in curves if not np.isnan(c).any()]
    print(f"{len(curves)} trajectories, {sum(map(len, curves))} steps, mean at the end {np.mean(ends):.2f}: {out}")


def draw(curves: list[np.ndarray], path: Path, prompt: str) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for i, curve in enumerate(curves):
        axes.plot(np.arange(1, len(curve) + 1), curve, marker="o", label=f"row {i}")
    axes.set(xlabel="step", ylabel=f"score ({prompt})", title="After each step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(*HfArgumentParser(TrackArguments).parse_args_into_dataclasses(sys.argv[1:]))
