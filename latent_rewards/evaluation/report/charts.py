"""Charts as inline SVG that takes its colours from the page, so that it is right in light and in dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

PALETTE = [*(f"var(--s{i})" for i in range(1, 9)), "var(--muted)"]  # of the page; the last is for length


def colours(names: Iterable[str], palette: Sequence[str] = PALETTE) -> dict[str, str]:
    """Colour of each scorer: those of a palette in a fixed order, one for all columns of a reward, grey for length."""
    *own, grey = palette
    families = list(dict.fromkeys(split(n)[0] for n in names))
    found = {f: own[i % len(own)] for i, f in enumerate(families)} | {"length": grey}
    return {n: found[split(n)[0]] for n in names}


def split(name: str) -> tuple[str, str]:
    """Reward and column of a scorer's name: "likert5/mean" is ("likert5", "mean"), "probe:a/b" ("probe:a/b", "")."""
    reward, _, column = name.rpartition("/")
    return (reward, column) if column in ("one", "mean", "mode", "greedy", "argmax") else (name, "")


def intervals(rows: Sequence[tuple[str, Mapping[str, Any], str]], *, baseline: float | None, unit: str) -> Markup:
    """Dots with whiskers, one row per scorer.

    Args:
        rows: (name, figure with value, low, high and n, colour).
        baseline: where the dashed line of the length baseline goes.
        unit: what the axis shows.
    """
    known = [(n, f, c) for n, f, c in rows if f["value"] is not None]
    if not known:
        return Markup("<p class=note>No figure could be computed.</p>")
    ends = [f[k] for _, f, _ in known for k in ("value", "low", "high") if f[k] is not None]
    ends += [] if baseline is None else [baseline]
    low, high = _nice(min(ends), max(ends))
    left, width, step = 124, 186, 24
    height = step * len(known) + 26

    def x(v: float) -> float:
        return left + (v - low) / (high - low) * width

    parts = [_axis(low, high, x, height - 20)]
    if baseline is not None:
        parts.append(f'<line class=base x1="{x(baseline):.1f}" x2="{x(baseline):.1f}" y1="0" y2="{height - 20}"/>')
    for i, (name, f, c) in enumerate(known):
        y = i * step + 13
        tip = f"{name}: {_figure(f)}, n = {f['n']}"
        parts.append(
            f'<g><title>{escape(tip)}</title><rect x="0" y="{y - 12}" width="360" height="{step}" class=hit />'
        )
        parts.append(f'<text x="{left - 10}" y="{y + 4}" class=name>{escape(name)}</text>')
        if f["low"] is not None:
            parts.append(
                f'<line x1="{x(f["low"]):.1f}" x2="{x(f["high"]):.1f}" y1="{y}" y2="{y}" stroke="{c}" class=w />'
            )
        parts.append(f'<circle cx="{x(f["value"]):.1f}" cy="{y}" r="4.5" fill="{c}"/>')
        parts.append(f'<text x="{left + width + 12}" y="{y + 4}" class=num>{f["value"]:.3f}</text></g>')
    return _svg(360, height, parts, unit)


def bars(rows: Sequence[tuple[str, Mapping[str, Any], str]], label: str) -> Markup:
    """Horizontal bars from 0 to 1 with their value and interval."""
    left, width, step = 124, 124, 28
    parts = []
    for i, (name, f, c) in enumerate(rows):
        y, value = i * step + 4, f["value"] or 0.0
        tip = f"{name}: {_figure(f)}, n = {f['n']}"
        parts.append(f"<g><title>{escape(tip)}</title>")
        parts.append(f'<text x="{left - 10}" y="{y + 14}" class=name>{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{width}" height="18" rx="4" class=track />')
        parts.append(f'<rect x="{left}" y="{y}" width="{max(value * width, 1):.1f}" height="18" rx="4" fill="{c}"/>')
        parts.append(f'<text x="{left + width + 10}" y="{y + 14}" class=num>{_figure(f, short=True)}</text></g>')
    return _svg(360, step * len(rows) + 4, parts, label)


def histogram(counts: Sequence[float], bounds: Sequence[float], c: str, label: str) -> Markup:
    """Columns of one histogram, the highest as high as the panel."""
    width, height, top = 220, 92, max([*counts, 1])
    total, w = sum(counts) or 1, width / max(len(counts), 1)
    parts = [f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" class=axis />']
    for i, n in enumerate(counts):
        h = n / top * (height - 6)
        low = bounds[0] + (bounds[1] - bounds[0]) * i / len(counts)
        high = bounds[0] + (bounds[1] - bounds[0]) * (i + 1) / len(counts)
        tip = f"{low:.3g} to {high:.3g}: {n / total:.1%}"
        parts.append(
            f"<g><title>{escape(tip)}</title>"
            f'<rect x="{i * w:.1f}" y="0" width="{w:.1f}" height="{height}" class=hit />'
            f'<rect x="{i * w + 1:.1f}" y="{height - h:.1f}" width="{w - 2:.1f}" height="{h:.1f}" fill="{c}"/></g>'
        )
    parts.append(f'<text x="0" y="{height + 14}" class=tick>{bounds[0]:.3g}</text>')
    parts.append(f'<text x="{width}" y="{height + 14}" class="tick end">{bounds[1]:.3g}</text>')
    return _svg(width, height + 18, parts, label)


def reliability(curve: Sequence[Sequence[float]], c: str, label: str) -> Markup:
    """Share of positives against probability, with the diagonal; dots grow with their count."""
    size = 180
    total = sum(row[2] for row in curve) or 1
    parts = [f'<line x1="0" y1="{size}" x2="{size}" y2="0" class=base />']
    parts.append(f'<path d="M0 0V{size}H{size}" class=axis fill="none"/>')
    points = " ".join(f"{p * size:.1f},{size - y * size:.1f}" for p, y, _ in curve)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{c}" stroke-width="2"/>')
    for p, y, n in curve:
        tip = f"said {p:.2f}, was {y:.2f}, n = {n:.0f}"
        parts.append(
            f'<circle cx="{p * size:.1f}" cy="{size - y * size:.1f}" r="{3 + 5 * (n / total) ** 0.5:.1f}" '
            f'fill="{c}"><title>{escape(tip)}</title></circle>'
        )
    parts.append(
        f'<text x="0" y="{size + 14}" class=tick>0</text><text x="{size}" y="{size + 14}" class="tick end">1</text>'
    )
    return _svg(size, size + 18, parts, label)


def lines(curves: Sequence[tuple[str, Sequence[float], str]], label: str) -> Markup:
    """Gold of the best of n against n, one line per scorer with its name at the end."""
    curves = [c for c in curves if len(c[1]) > 1]
    if not curves:
        return Markup("<p class=note>No list is scored throughout.</p>")
    flat = [v for _, values, _ in curves for v in values]
    low, high = _nice(min(flat), max(flat))
    n, width, height, left = len(curves[0][1]), 206, 220, 38

    def at(i: int, v: float) -> tuple[float, float]:
        return left + i / (n - 1) * width, height - (v - low) / (high - low) * height

    parts = []
    for v in (low, (low + high) / 2, high):
        y = at(0, v)[1]
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" class=grid />')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" class="tick end">{v:.3g}</text>')
    for i in sorted({0, (n - 1) // 2, n - 1}):
        parts.append(f'<text x="{at(i, low)[0]:.1f}" y="{height + 16}" class="tick mid">n = {i + 1}</text>')
    ends = _spread([at(n - 1, values[-1])[1] for _, values, _ in curves], 13)
    for (name, values, c), y in zip(curves, ends, strict=True):
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(i, v) for i, v in enumerate(values)))
        dash = ' stroke-dasharray="4 4"' if name in ("length", "oracle") or split(name)[1] == "one" else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{c}" stroke-width="2"{dash}>')
        parts.append(f"<title>{escape(name)}: {values[0]:.3f} to {values[-1]:.3f}</title></polyline>")
        parts.append(
            f'<line x1="{left + width + 4}" x2="{left + width + 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="{c}" class=w />'
        )
        parts.append(f'<text x="{left + width + 16}" y="{y + 4:.1f}" class=tick>{escape(name)}</text>')
    return _svg(360, max(height, *ends) + 22, parts, label)


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {width} {height:.0f}" style="max-width:{width * 1.3:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def _axis(low: float, high: float, x: Any, y: float) -> str:
    out = []
    for i in range(5):
        v = low + (high - low) * i / 4
        out.append(f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="0" y2="{y}" class=grid />')
        out.append(f'<text x="{x(v):.1f}" y="{y + 16}" class="tick mid">{v:.2f}</text>')
    return "".join(out)


def _nice(low: float, high: float) -> tuple[float, float]:
    pad = max((high - low) * 0.08, 0.01)
    return low - pad, high + pad


def _spread(ys: Sequence[float], gap: float) -> list[float]:
    """Positions moved down as little as keeps labels apart."""
    out, last = [0.0] * len(ys), -gap
    for i in sorted(range(len(ys)), key=lambda k: ys[k]):
        last = max(ys[i], last + gap)
        out[i] = last
    return out


def _figure(f: Mapping[str, Any], *, short: bool = False) -> str:
    if f["value"] is None:
        return "none"
    if f["low"] is None:
        return f"{f['value']:.3f}"
    return f"{f['value']:.2f} ({f['low']:.2f}-{f['high']:.2f})" if short else (
        f"{f['value']:.3f} (95 % {f['low']:.3f} to {f['high']:.3f})"
    )  # fmt: skip
