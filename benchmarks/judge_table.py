"""A committed result from an evaluation: its report with command and commit, and paired differences over all pair sets.

    python -m benchmarks.judge_table runs/eval-qwen2.5-coder-1.5b benchmarks/results/latent-vs-likert \
        --against likert10:guided/mean --command "python -m recipes.evaluate --config FILE"
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latent_rewards.evaluation.report import write as report
from latent_rewards.files.outputs import to_json


def paired(results: dict[str, Any], against: str) -> list[list[str]]:
    """Scorer, mean difference of accuracy to `against` over the pair sets, interval, pairs; sets are independent."""
    pairs = [b for b in results["benchmarks"] if b["kind"] == "pair"]
    if against not in pairs[0]["scorers"]:
        raise SystemExit(f"no scorer {against!r}; there are {sorted(pairs[0]['scorers'])}")
    rows = []
    for name in pairs[0]["scorers"]:
        found = []
        for b in pairs:
            for d in b["differences"]:
                if {d["first"], d["second"]} == {name, against} and d["value"] is not None and d["low"] is not None:
                    sign = 1 if d["first"] == name else -1
                    found.append((sign * d["value"], (d["high"] - d["low"]) / 2, d["n"]))
        if found:
            value, half, n = (np.array(x) for x in zip(*found, strict=True))
            mean, width = value.mean(), np.sqrt((half**2).sum()) / len(half)
            rows.append([name, f"{mean:+.3f}", f"[{mean - width:+.3f}, {mean + width:+.3f}]", str(int(n.sum()))])
    return rows


def tidy(results: dict[str, Any], name: str | None) -> None:
    """Take out what belongs to one machine: folders of data, judge and output."""
    run = results["run"]
    run["judge"] = name or run["judge"]
    run["config"] |= {"judge": run["judge"], "output": None, "cache": None}
    for b in results["benchmarks"]:
        b["source"] = "/".join(Path(b["source"]).parts[-2:]) if Path(b["source"]).is_absolute() else b["source"]
        b["bad_rows"] = [{**r, "file": Path(r["file"]).name} for r in b["bad_rows"]]
        b.pop("disagreements", None)  # texts of the data sets are not ours to commit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, help="path without ending")
    parser.add_argument("--against", default="likert10:guided/mean")
    parser.add_argument("--command", required=True)
    parser.add_argument("--picture", default="metrics.png")
    parser.add_argument("--name", help="name of the judge, where it was loaded from a folder")
    args = parser.parse_args()
    results = report.load(args.run)
    tidy(results, args.name)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    wall = results["cost"]["wall_seconds"]
    read = sum(s["seconds"] for s in results["cost"]["stages"].values())
    lines = [
        f"`{args.command}`, then `python -m benchmarks.judge_table`; commit {commit}. "
        f"Judge time {read / 60:.0f} min over all starts; the last start took {wall / 60:.1f} min.", "",
        f"## Paired difference of accuracy to {args.against}, mean over the pair sets", "",
        "| scorer | difference | 95 % interval | pairs |", "| --- | --- | --- | --- |",
        *("| " + " | ".join(row) + " |" for row in paired(results, args.against)), "",
    ]  # fmt: skip
    body = report.markdown(results).split("\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.md").write_text("\n".join([body[0], "", *lines, *body[1:]]), encoding="utf-8")
    Path(f"{args.out}.json").write_text(to_json(results), encoding="utf-8")
    if (args.run / args.picture).is_file():
        with Image.open(args.run / args.picture) as picture:  # of few colours: a third of the size in the repository
            picture.convert("RGB").quantize(128).save(f"{args.out}.png", optimize=True)


if __name__ == "__main__":
    main()
