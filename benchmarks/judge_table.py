"""A committed result from an evaluation: its report with command and commit, and paired differences.

Of pair sets the mean over all of them, else set by set: ratings of one text by two qualities are not independent.

    python -m benchmarks.judge_table runs/eval-qwen2.5-coder-1.5b benchmarks/results/latent-vs-likert \
        --against likert10:guided/mean --command "python -m recipes.evaluate --config FILE"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latent_rewards.evaluation.report import write as report
from latent_rewards.files.markdown import figure, table
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import commit


def paired(results: dict[str, Any], against: str) -> list[list[str]]:
    """Scorer, mean difference of accuracy to `against` over the pair sets, interval, pairs; sets are independent."""
    pairs = [b for b in results["benchmarks"] if b["kind"] == "pair"]
    rows = []
    for name in pairs[0]["scorers"]:
        found = [d for b in pairs if (d := minus(b, name, against))]
        if found:
            value, low, high, n = (np.array(x) for x in zip(*found, strict=True))
            mean, width = value.mean(), np.sqrt((((high - low) / 2) ** 2).sum()) / len(n)
            rows.append([name, f"{mean:+.3f}", f"[{mean - width:+.3f}, {mean + width:+.3f}]", str(int(n.sum()))])
    return rows


def minus(benchmark: dict[str, Any], name: str, against: str) -> tuple[float, float, float, int] | None:
    """A scorer less another one: difference of the set's first figure, lower and upper end, items."""
    for d in benchmark["differences"]:
        if {d["first"], d["second"]} == {name, against} and d["value"] is not None and d["low"] is not None:
            ends = (d["value"], d["low"], d["high"])
            return (*ends, d["n"]) if d["first"] == name else (-ends[0], -ends[2], -ends[1], d["n"])
    return None


def differences(results: dict[str, Any], against: str) -> list[str]:
    """Section of the differences to one scorer."""
    sets = results["benchmarks"]
    if against not in sets[0]["scorers"]:
        raise SystemExit(f"no scorer {against!r}; there are {sorted(sets[0]['scorers'])}")
    if any(b["kind"] == "pair" for b in sets):
        head = f"## Paired difference of accuracy to {against}, mean over the pair sets"
        return [head, "", *table(["scorer", "difference", "95 % interval", "pairs"], paired(results, against)), ""]
    found = {n: [minus(b, n, against) for b in sets] for n in sets[0]["scorers"] if n != against}
    body = [[n, *(figure(*d[:3], sign="+") if d else "-" for d in row)] for n, row in found.items()]
    heads = [f"{b['name'].split('/')[-1]}, n {b['items']}" for b in sets]
    return [
        f"## Paired difference of {sets[0]['primary']} to {against}", "", *table(["scorer", *heads], body), ""
    ]  # fmt: skip


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
    parser.add_argument("--against", nargs="+", default=["likert10:guided/mean"])
    parser.add_argument("--commit", help="of the code that ran; default: what is checked out")
    parser.add_argument("--command", required=True)
    parser.add_argument("--picture", default="metrics.png")
    parser.add_argument("--name", help="name of the judge, where it was loaded from a folder")
    args = parser.parse_args()
    results = report.load(args.run)
    tidy(results, args.name)
    results["command"], results["commit"] = args.command, args.commit or commit()
    wall = results["cost"]["wall_seconds"]
    read = sum(s["seconds"] for s in results["cost"]["stages"].values())
    lines = [
        f"`{args.command}`, then `python -m benchmarks.judge_table`; commit {results['commit']}. "
        f"Reading took {read / 60:.1f} min over all starts; the last start took {wall / 60:.1f} min.", "",
        *(line for against in args.against for line in differences(results, against)),
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
