"""The page of a report: everything in one file, opens offline, light and dark, phone and desk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from latent_rewards.evaluation.report import charts
from latent_rewards.evaluation.report.plots import pool_agreement, pool_histograms
from latent_rewards.judge.prompts import to_text

_TITLES = {
    "pair": ("Pairs", "which of two responses is better"),
    "rating": ("Ratings", "agreement with reference ratings"),
    "list": ("Lists", "the order of many responses to one prompt"),
}


def page(results: Mapping[str, Any]) -> str:
    """The HTML page; every text from data is escaped."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {"figure": _figure, "text": to_text}
    names = list(results["benchmarks"][0]["scorers"])
    tint = charts.colours(names)
    return env.get_template("page.html.j2").render(
        r=results,
        run=results["run"],
        titles=_TITLES,
        headlines=_headlines(results),
        table=_table(results, names),
        kinds=list(results["summary"]),
        tint=tint,
        by_benchmark=[(b, _intervals(b, tint)) for b in results["benchmarks"]],
        histograms=[
            (n, charts.histogram(h["counts"], h["range"], tint[n], f"histogram of {n}"))
            for n, h in pool_histograms(results).items()
        ],
        agreement=_agreement(results, tint),
        reliability=_reliability(results, tint),
        best_of_n=_best_of_n(results, tint),
        differences=[(b["name"], _across(b["differences"])) for b in results["benchmarks"]],
    )


def _headlines(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per kind the best of the scorers that have all items, its figure, and what length alone gets."""
    out = []
    for kind, s in results["summary"].items():
        metric = s["metrics"][0]
        rated = {n: f[metric] for n, f in s["scorers"].items() if n != "length" and f[metric]["value"] is not None}
        most = max((f["n"] for f in rated.values()), default=0)
        rated = {n: f for n, f in rated.items() if f["n"] >= 0.9 * most}
        if rated:
            best = max(rated, key=lambda n: rated[n]["value"])
            length = s["scorers"]["length"][metric]
            out.append({"kind": kind, "metric": metric, "best": best, "figure": rated[best], "length": length})
    return out


def _table(results: Mapping[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """One row per scorer: a summary of every kind, and what all benchmarks together say of its scale."""
    rows = []
    agreement = pool_agreement(results)
    for name in names:
        scorers = [b["scorers"][name] for b in results["benchmarks"]]
        eces = [s["calibration"]["ece"]["value"] for s in scorers if s.get("calibration")]
        parsed = [s["facts"]["parsed"] for s in scorers if "parsed" in s["facts"]]
        modal = [s["compression"]["modal_share"] for s in scorers if s["compression"]["modal_share"] is not None]
        rows.append(
            {
                "name": name,
                "kinds": {k: s["scorers"][name] for k, s in results["summary"].items()},
                "items": sum(s["scorers"][name][s["metrics"][0]]["n"] for s in results["summary"].values()),
                "modal": sum(modal) / len(modal) if modal else None,
                "agreement": agreement.get(name, {}).get("value"),
                "ece": sum(eces) / len(eces) if eces else None,
                "parsed": sum(parsed) / len(parsed) if parsed else None,
                "missing": sum(s["missing"] for s in scorers),
            }
        )
    return rows


def _intervals(b: Mapping[str, Any], tint: Mapping[str, str]) -> Markup:
    rows = [(n, s["metrics"][b["primary"]], tint[n]) for n, s in b["scorers"].items()]
    baseline = b["scorers"]["length"]["metrics"][b["primary"]]["value"]
    return charts.intervals(rows, baseline=baseline, unit=f"{b['name']}: {b['primary']}")


def _agreement(results: Mapping[str, Any], tint: Mapping[str, str]) -> Markup:
    rows = [(n, f, tint[n]) for n, f in pool_agreement(results).items()]
    return charts.bars(rows, "mode agreement") if rows else Markup("")


def _reliability(results: Mapping[str, Any], tint: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """One panel per scorer, bins of all benchmarks of pairs and ratings together."""
    pooled: dict[str, dict[int, list[float]]] = {}
    for b in results["benchmarks"]:
        for name, s in b["scorers"].items():
            for p, y, n in s.get("calibration", {}).get("curve", []):
                bin_ = pooled.setdefault(name, {}).setdefault(min(int(p * 10), 9), [0.0, 0.0, 0.0])
                for i, v in enumerate((p * n, y * n, n)):
                    bin_[i] += v
    return [
        (
            name,
            charts.reliability(
                [(p / n, y / n, n) for _, (p, y, n) in sorted(bins.items())], tint[name], f"reliability of {name}"
            ),
        )
        for name, bins in pooled.items()
    ]


def _best_of_n(results: Mapping[str, Any], tint: Mapping[str, str]) -> list[tuple[str, Markup]]:
    out = []
    for b in results["benchmarks"]:
        if b["kind"] == "list":
            shown = {n: s for n, s in b["scorers"].items() if charts.split(n)[1] in ("", "one", "mean")}
            curves = [(n, s["best_of_n"]["gold"], tint[n]) for n, s in shown.items()]
            perfect = max((s["best_of_n"]["oracle"] for s in b["scorers"].values()), key=len)
            curves.append(("oracle", perfect, "var(--ink)"))
            out.append((b["name"], charts.lines(curves, f"best of n: {b['name']}")))
    return out


def _across(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences between a latent scorer and a Likert judge or the length baseline."""
    return [
        d
        for d in differences
        if not charts.split(d["first"])[1]
        and d["value"] is not None
        and (charts.split(d["second"])[1] or d["second"] == "length")
    ]


def _figure(f: Mapping[str, Any] | None) -> Markup:
    if not f or f["value"] is None:
        return Markup('<td data-v="-9">&ndash;</td>')
    spread = "" if f["low"] is None else f"<small>{f['low']:.3f} to {f['high']:.3f}</small>"
    return Markup(f'<td data-v="{f["value"]:.6f}" title="n = {f["n"]}">{f["value"]:.3f}{spread}</td>')
