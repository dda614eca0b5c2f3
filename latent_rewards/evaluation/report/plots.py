"""The pictures of a report: as PNG for papers and READMEs, and as SVG in the page, whose colours they take there."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from latent_rewards.evaluation.results import Figure, Histogram, Results

if TYPE_CHECKING:
    from matplotlib import figure
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

COLOURS = ["#2a78d6", "#1baf7a", "#eda100", "#008300", "#4a3aa7", "#e34948", "#e87ba4", "#eb6834"]
INK, _MUTED, _RULE = "#1b1c1e", "#888888", "#dddddd"
# What a colour is called in the page, where it is another one in the dark.
_OF_PAGE = {c: f"var(--s{i})" for i, c in enumerate(COLOURS, 1)} | {
    INK: "var(--ink)", _MUTED: "var(--muted)", _RULE: "var(--rule)",
}  # fmt: skip
_STYLE = {
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.axisbelow": True, "text.color": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": _MUTED,
    "axes.facecolor": "none", "text.parse_math": False, "svg.fonttype": "none",
}  # fmt: skip

Bar = tuple[str, Figure, str]  # scorer, figure, colour


def colours(names: Iterable[str]) -> dict[str, str]:
    """Colour of each scorer, in a fixed order: one for all columns of a reward, grey for length."""
    names = list(names)
    families = list(dict.fromkeys(split(n)[0] for n in names))
    found = {f: COLOURS[i % len(COLOURS)] for i, f in enumerate(families)} | {"length": _MUTED}
    return {n: found[split(n)[0]] for n in names}


def of_page(colour: str) -> str:
    """A colour as the page calls it."""
    return _OF_PAGE.get(colour, colour)


def split(name: str) -> tuple[str, str]:
    """Reward and column of a scorer's name: "likert5/mean" is ("likert5", "mean"), "probe:a/b" ("probe:a/b", "")."""
    reward, _, column = name.rpartition("/")
    return (reward, column) if column in ("one", "mean", "mode", "greedy", "argmax") else (name, "")


def intervals(ax: Axes, rows: Sequence[Bar], baseline: float | None) -> None:
    """Dots with whiskers, one row per scorer; the dashed line is what length alone gets."""
    for i, (name, f, colour) in enumerate(rows):
        if f["value"] is None:
            continue
        if f["low"] is not None and f["high"] is not None:
            ax.plot([f["low"], f["high"]], [i, i], color=colour, lw=2)
        (dot,) = ax.plot(f["value"], i, "o", color=colour, ms=5)
        _tip(dot, f"{name}: {told(f)}, n = {f['n']}")
        ax.text(1.02, i, f"{f['value']:.3f}", va="center", transform=ax.get_yaxis_transform())
    if baseline is not None:
        ax.axvline(baseline, color=_MUTED, ls="--", lw=1)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.invert_yaxis()
    ax.grid(axis="x", color=_RULE, lw=0.6)


def bars(ax: Axes, rows: Sequence[Bar]) -> None:
    """Horizontal bars from 0 to 1 with their value."""
    values = [f["value"] or 0.0 for _, f, _ in rows]
    drawn = ax.barh([name for name, *_ in rows], values, color=[colour for *_, colour in rows], height=0.6)
    for i, (bar, (name, f, _)) in enumerate(zip(drawn, rows, strict=True)):
        _tip(bar, f"{name}: {told(f)}, n = {f['n']}")
        ax.text(values[i] + 0.01, i, f"{values[i]:.0%}", va="center")
    ax.set_xlim(0, 1.1)
    ax.invert_yaxis()


def histogram(ax: Axes, h: Histogram, colour: str) -> None:
    """Columns of one histogram, the highest as high as the panel."""
    edges = np.linspace(h["range"][0], h["range"][1], len(h["counts"]) + 1)
    drawn = ax.bar(edges[:-1], h["counts"], np.diff(edges) * 0.9, align="edge", color=colour)
    total = sum(h["counts"]) or 1
    for i, (bar, n) in enumerate(zip(drawn, h["counts"], strict=True)):
        _tip(bar, f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {n / total:.1%}")
    ax.set_yticks([])


def reliability(ax: Axes, curve: Sequence[tuple[float, float, float]], colour: str) -> None:
    """Share of positives against probability, with the diagonal; dots grow with their count."""
    total = sum(n for *_, n in curve) or 1
    ax.plot([0, 1], [0, 1], color=_MUTED, ls="--", lw=1)
    ax.plot([p for p, *_ in curve], [y for _, y, _ in curve], color=colour)
    for p, y, n in curve:
        (dot,) = ax.plot(p, y, "o", color=colour, ms=4 + 7 * (n / total) ** 0.5)
        _tip(dot, f"said {p:.2f}, was {y:.2f}, n = {n:.0f}")
    ax.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 1), yticks=(0, 1), aspect="equal")


def lines(ax: Axes, curves: Sequence[tuple[str, Sequence[float], str]]) -> None:
    """Gold of the best of n against n, one line per scorer, which the legend names."""
    from matplotlib.ticker import MaxNLocator

    for name, values, colour in curves:
        style = "--" if name in ("length", "oracle") or split(name)[1] == "one" else "-"
        (line,) = ax.plot(range(1, len(values) + 1), values, style, color=colour, label=name)
        _tip(line, f"{name}: {values[0]:.3f} to {values[-1]:.3f}")
    ax.set_xlabel("n")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", color=_RULE, lw=0.6)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def svg(picture: Callable[[Axes], None], label: str, *, size: tuple[float, float]) -> Markup:
    """One picture for the page, in the page's colours, its parts told by a hand held over them.

    Args:
        picture: draws it.
        label: for those who do not see it.
        size: width and height, inches.
    """
    from matplotlib import style

    out = io.StringIO()
    with style.context(_STYLE):
        figure, (ax,) = _panels(1, 1, *size)
        picture(ax)
        figure.savefig(out, format="svg", bbox_inches="tight", transparent=True)
    text = re.sub(r'.*?<svg .*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">',
                  out.getvalue(), count=1, flags=re.S)  # fmt: skip
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r' id="[a-z0-9]+_\d+"', "", text)  # of no use, and the same in every picture
    for colour, name in _OF_PAGE.items():
        text = text.replace(colour, name)
    return Markup(text)


def draw(results: Results, folder: Path) -> list[Path]:
    """One PNG each: the comparing metric by benchmark, score histograms, mode agreement."""
    from matplotlib import style

    made = []
    with style.context(_STYLE):
        for name, picture in (("metrics", _metrics), ("histograms", _histograms), ("mode_agreement", _agreement)):
            figure = picture(results)
            if figure is not None:
                made.append(folder / f"{name}.png")
                figure.savefig(made[-1], dpi=150, bbox_inches="tight", facecolor="white")
    return made


def _metrics(results: Results) -> figure.Figure:
    sets = results["benchmarks"]
    figure, axes = _panels(len(sets), 3, 4.2, 0.6 + 0.24 * len(sets[0]["scorers"]))
    for ax, b in zip(axes, sets, strict=True):
        tint, primary = colours(b["scorers"]), b["primary"]
        rows = [(name, s["metrics"][primary], tint[name]) for name, s in b["scorers"].items()]
        intervals(ax, rows, b["scorers"]["length"]["metrics"][primary]["value"])
        ax.set_title(f"{b['name']}: {primary}", loc="left", fontsize=9)
    figure.tight_layout()
    return figure


def _histograms(results: Results) -> figure.Figure | None:
    pooled = pool_histograms(results)
    if not pooled:  # nothing was read
        return None
    figure, axes = _panels(len(pooled), 4, 2.6, 1.7)
    tint = colours(pooled)
    for ax, (name, h) in zip(axes, pooled.items(), strict=True):
        histogram(ax, h, tint[name])
        ax.set_title(name, loc="left", fontsize=9)
    figure.tight_layout()
    return figure


def _agreement(results: Results) -> figure.Figure | None:
    found = pool_agreement(results)
    if not found:
        return None
    figure, (ax,) = _panels(1, 1, 5, 0.5 + 0.4 * len(found))
    tint = colours(results["benchmarks"][0]["scorers"])
    bars(ax, [(n, f, tint[n]) for n, f in found.items()])
    ax.set_title("Share of sampled ratings that equal their mode", loc="left", fontsize=9)
    return figure


def _panels(n: int, most: int, width: float, height: float) -> tuple[figure.Figure, list[Axes]]:
    """A figure of n panels in rows of at most so many."""
    from matplotlib.figure import Figure

    columns = min(n, most)
    rows = -(-n // columns)
    figure = Figure(figsize=(width * columns, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:n])


def _tip(artist: Artist, text: str) -> None:
    """What is told where the hand is over a part of a picture in the page."""
    artist.set_gid(f"tip:{text}")


def told(f: Figure) -> str:
    """A figure with its interval, in words."""
    if f["value"] is None:
        return "none"
    return f"{f['value']:.3f}" + ("" if f["low"] is None else f" (95 % {f['low']:.3f} to {f['high']:.3f})")


def pool_histograms(results: Results) -> dict[str, Histogram]:
    """Scorer -> counts over all benchmarks with the scale of the first one (scales without bounds differ)."""
    out: dict[str, Histogram] = {}
    for b in results["benchmarks"]:
        for name, s in b["scorers"].items():
            h = s["compression"]["histogram"]
            if name not in out:
                out[name] = {"range": h["range"], "counts": list(h["counts"])}
            elif out[name]["range"] == h["range"]:
                out[name]["counts"] = [a + c for a, c in zip(out[name]["counts"], h["counts"], strict=True)]
    return {n: h for n, h in out.items() if n != "length" and any(h["counts"])}


def pool_agreement(results: Results) -> dict[str, Figure]:
    """Likert scorer -> mode agreement, mean over benchmarks weighted by their rows."""
    out: dict[str, Figure] = {}
    for b in results["benchmarks"]:
        for name, s in b["scorers"].items():
            f = s.get("mode_agreement")
            if f and f["n"]:
                e = out.setdefault(name, {"value": 0.0, "low": None, "high": None, "n": 0})
                e["value"] = ((e["value"] or 0.0) * e["n"] + (f["value"] or 0.0) * f["n"]) / (e["n"] + f["n"])
                e["n"] += f["n"]
                if len(results["benchmarks"]) == 1:
                    e["low"], e["high"] = f["low"], f["high"]
    return out
