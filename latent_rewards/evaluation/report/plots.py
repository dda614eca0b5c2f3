"""The pictures of a report as PNG, for papers and READMEs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latent_rewards.evaluation.report.charts import colours

COLOURS = ["#2a78d6", "#1baf7a", "#eda100", "#008300", "#4a3aa7", "#e34948", "#e87ba4", "#eb6834"]
PALETTE = [*COLOURS, "#888888"]


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """One PNG each: the comparing metric by benchmark, score histograms, mode agreement."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    made = []
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.axisbelow": True}):
        for name, picture in (("metrics", _metrics), ("histograms", _histograms), ("mode_agreement", _agreement)):
            figure = picture(results, plt)
            if figure is not None:
                path = folder / f"{name}.png"
                figure.savefig(path, dpi=150, bbox_inches="tight")
                plt.close(figure)
                made.append(path)
    return made


def _panels(plt: Any, n: int, most: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of n panels in rows of at most so many."""
    columns = min(n, most)
    rows = -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:n])


def _metrics(results: Mapping[str, Any], plt: Any) -> Any:
    sets = results["benchmarks"]
    figure, axes = _panels(plt, len(sets), 3, 4.2, 0.6 + 0.24 * len(sets[0]["scorers"]))
    for ax, b in zip(axes, sets, strict=True):
        tint = colours(b["scorers"], PALETTE)
        for i, (name, s) in enumerate(b["scorers"].items()):
            f = s["metrics"][b["primary"]]
            if f["value"] is None:
                continue
            if f["low"] is not None:
                ax.plot([f["low"], f["high"]], [i, i], color=tint[name], lw=2)
            ax.plot(f["value"], i, "o", color=tint[name], ms=5)
            if name == "length":
                ax.axvline(f["value"], color="#888888", ls="--", lw=1)
        ax.set_yticks(range(len(b["scorers"])), list(b["scorers"]))
        ax.invert_yaxis()
        ax.grid(axis="x", color="#dddddd", lw=0.6)
        ax.set_title(f"{b['name']}: {b['primary']}", loc="left", fontsize=9)
    figure.tight_layout()
    return figure


def _histograms(results: Mapping[str, Any], plt: Any) -> Any:
    pooled = pool_histograms(results)
    figure, axes = _panels(plt, len(pooled), 4, 2.6, 1.7)
    tint = colours(pooled, PALETTE)
    for ax, (name, h) in zip(axes, pooled.items(), strict=True):
        edges = np.linspace(h["range"][0], h["range"][1], len(h["counts"]) + 1)
        ax.bar(edges[:-1], h["counts"], np.diff(edges) * 0.9, align="edge", color=tint[name])
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_yticks([])
    figure.tight_layout()
    return figure


def _agreement(results: Mapping[str, Any], plt: Any) -> Any:
    found = pool_agreement(results)
    if not found:
        return None
    figure, ax = plt.subplots(figsize=(5, 0.5 + 0.4 * len(found)))
    values = [f["value"] for f in found.values()]
    tint = colours(results["benchmarks"][0]["scorers"], PALETTE)
    ax.barh(list(found), values, color=[tint[n] for n in found], height=0.6)
    for i, v in enumerate(values):
        ax.text(v + 0.01, i, f"{v:.0%}", va="center")
    ax.set_xlim(0, 1.1)
    ax.invert_yaxis()
    ax.set_title("Share of sampled ratings that equal their mode", loc="left", fontsize=9)
    return figure


def pool_histograms(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scorer -> counts over all benchmarks with the scale of the first one (scales without bounds differ)."""
    out: dict[str, dict[str, Any]] = {}
    for b in results["benchmarks"]:
        for name, s in b["scorers"].items():
            h = s["compression"]["histogram"]
            if name not in out:
                out[name] = {"range": h["range"], "counts": list(h["counts"])}
            elif out[name]["range"] == h["range"]:
                out[name]["counts"] = [a + c for a, c in zip(out[name]["counts"], h["counts"], strict=True)]
    return {n: h for n, h in out.items() if n != "length" and sum(h["counts"])}


def pool_agreement(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Likert scorer -> mode agreement, mean over benchmarks weighted by their rows."""
    out: dict[str, dict[str, Any]] = {}
    for b in results["benchmarks"]:
        for name, s in b["scorers"].items():
            f = s.get("mode_agreement")
            if f and f["n"]:
                e = out.setdefault(name, {"value": 0.0, "low": None, "high": None, "n": 0})
                e["value"] = (e["value"] * e["n"] + f["value"] * f["n"]) / (e["n"] + f["n"])
                e["n"] += f["n"]
                if len(results["benchmarks"]) == 1:
                    e.update(low=f["low"], high=f["high"])
    return out
