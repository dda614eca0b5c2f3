"""README's figure, out of a committed evaluation: what latent scores and sampled ratings tie, and what they get right.

    python -m benchmarks.ties_picture benchmarks/results/latent-vs-likert-1.5b

The intervals are those of the evaluation: bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SCORERS = {
    "verifier": "verifier",
    "weighted": "weighted",
    "cross_layer": "cross_layer",
    "likert10:guided/mean": "Likert-10, mean of ten ratings",
    "likert10:guided/one": "Likert-10, one rating",
    "likert10:guided/greedy": "Likert-10, greedy",
    "likert5:guided/one": "Likert-5, one rating",
    "likert5:guided/greedy": "Likert-5, greedy",
    "length": "longer wins",
}


def colour(scorer: str) -> str:
    """Blue for latent scores, orange for ratings, grey for length."""
    return "#888888" if scorer == "length" else "#e07b00" if scorer.startswith("likert") else "#2a78d6"


def draw(results: dict[str, Any], path: Path) -> None:
    """Share of tied pairs beside the accuracy of each scorer, means over the pair sets with their 95 % intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    found = results["summary"]["pair"]["scorers"]
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.axisbelow": True}):
        figure, (ties, accuracy) = plt.subplots(1, 2, figsize=(9.6, 3.0), sharey=True)
        for i, name in enumerate(SCORERS):
            share, right = found[name]["ties"], found[name]["accuracy"]
            ties.barh(i, 100 * share["value"], color=colour(name), height=0.6)
            ties.text(100 * share["value"] + 1, i, f"{100 * share['value']:.0f} %", va="center")
            accuracy.plot([right["low"], right["high"]], [i, i], color=colour(name), lw=2)
            accuracy.plot(right["value"], i, "o", color=colour(name), ms=5)
        ties.set(xlim=(0, 70), xlabel="pairs whose two answers get the same score, %")
        accuracy.set(xlabel="accuracy, ties counting half, with 95 % intervals", xticks=[0.5, 0.55, 0.6, 0.65, 0.7])
        accuracy.axvline(0.5, color="#888888", ls="--", lw=1)
        ties.set_yticks(range(len(SCORERS)), list(SCORERS.values()))
        ties.invert_yaxis()
        accuracy.grid(axis="x", alpha=0.3)
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="path without ending; the picture gets it with -ties.png")
    args = parser.parse_args()
    draw(json.loads(Path(f"{args.results}.json").read_text(encoding="utf-8")), Path(f"{args.results}-ties.png"))


if __name__ == "__main__":
    main()
