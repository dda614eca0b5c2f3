"""README's figure, out of a committed table of facts: how often each reading puts the right answer first, and ties.

    python -m benchmarks.facts_picture benchmarks/results/facts-1.5b.json

Intervals are those of the table: bootstrap over questions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.ties_picture import colour

NAMES = {
    "verifier less no task": "verifier less no task",
    "weighted": "weighted",
    "weighted, hardened prompt": "weighted, hardened prompt",
    "weighted less no task": "weighted less no task",
    "pairwise": "pairwise",
    "letters": "weighted, letters A to T",
    "verifier": "verifier",
    "Likert-10, mean of ten": "Likert-10, mean of ten ratings",
    "Likert-10, one rating": "Likert-10, one rating",
    "Likert-10, greedy": "Likert-10, greedy",
    "Likert-5, mean of ten": "Likert-5, mean of ten ratings",
    "Likert-5, one rating": "Likert-5, one rating",
    "Likert-5, greedy": "Likert-5, greedy",
}


def draw(table: dict[str, Any], path: Path) -> None:
    """Share of questions whose right answer is first of five, with 95 % intervals, beside the share of ties."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    scores = table["scores"]
    names = [name for name in NAMES if name in scores]
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.axisbelow": True}):
        picture, (right, ties) = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, width_ratios=(3, 2))
        for i, name in enumerate(names):
            first, tied = scores[name]["first"], 100 * scores[name]["tied"]
            fill = colour(name.lower())
            right.barh(i, 100 * first["value"], color=fill, height=0.62)
            right.plot([100 * first["low"], 100 * first["high"]], [i, i], color="#222222", lw=1.2)
            right.text(100 * first["high"] + 1.2, i, f"{100 * first['value']:.0f} %", va="center")
            ties.barh(i, tied, color=fill, height=0.62)
            ties.text(tied + 1.2, i, f"{tied:.0f} %", va="center")
        right.axvline(20, color="#222222", ls=":", lw=1)
        right.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
        right.set_xlabel("questions whose right answer is first of five, % (dotted: chance)")
        ties.set(xlim=(0, 100), xlabel="questions with a tie for the first place, %")
        right.set_yticks(range(len(names)), [NAMES[name] for name in names])
        picture.suptitle(f"{table['judge']}, {table['questions']} questions; lines: 95 % intervals", y=0.96)
        picture.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the table; the picture lies beside it")
    args = parser.parse_args()
    draw(json.loads(args.results.read_text(encoding="utf-8")), args.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
