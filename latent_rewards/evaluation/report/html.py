"""The page of a report: everything in one file, opens offline, light and dark, phone and desk."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from latent_rewards.evaluation.report import plots
from latent_rewards.evaluation.results import BenchmarkResult, Difference, Results
from latent_rewards.evaluation.verdict import verdict
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.prompts import to_text
from latent_rewards.stats.bootstrap import Figure

Titled = list[tuple[str, Markup]]  # a picture and what stands over it

_TITLES = {
    "pair": ("Pairs", "which of two responses is better"),
    "rating": ("Ratings", "agreement with reference ratings"),
    "list": ("Lists", "the order of many responses to one prompt"),
}


def page(results: Results) -> str:
    """The HTML page; every text from data is escaped."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {"figure": _figure, "text": to_text}
    names = list(results["benchmarks"][0]["scorers"])
    tint = plots.colours(names)
    return env.get_template("page.html.j2").render(
        r=results, verdict=verdict(results),
        run=results["run"], titles=_TITLES, headlines=_headlines(results), table=_table(results, names),
        kinds=list(results["summary"]), tint={name: plots.of_page(c) for name, c in tint.items()},
        by_benchmark=[(b, _intervals(b, tint)) for b in results["benchmarks"]],
        histograms=_histograms(results, tint), agreement=_agreement(results, tint),
        reliability=_reliability(results, tint), best_of_n=_best_of_n(results, tint),
        differences=[(b["name"], _across(b["differences"])) for b in results["benchmarks"]],
    )  # fmt: skip


def _headlines(results: Results) -> list[JsonObject]:
    """Per kind the best of the scorers that have all items, its figure, and what length alone gets."""
    out: list[JsonObject] = []
    for kind, s in results["summary"].items():
        metric = s["metrics"][0]
        rated = {n: f[metric] for n, f in s["scorers"].items() if n != "length" and f[metric]["value"] is not None}
        most = max((f["n"] for f in rated.values()), default=0)
        rated = {n: f for n, f in rated.items() if f["n"] >= 0.9 * most}
        if rated:
            best = max(rated, key=lambda n: rated[n]["value"] or 0.0)
            length = s["scorers"]["length"][metric]
            out.append({"kind": kind, "metric": metric, "best": best, "figure": rated[best], "length": length})
    return out


def _table(results: Results, names: list[str]) -> list[JsonObject]:
    """One row per scorer: a summary of every kind, and what all benchmarks together say of its scale."""
    rows: list[JsonObject] = []
    agreement = plots.pool_agreement(results)
    for name in names:
        scorers = [b["scorers"][name] for b in results["benchmarks"]]
        rows.append(
            {
                "name": name, "kinds": {k: s["scorers"][name] for k, s in results["summary"].items()},
                "items": sum(s["scorers"][name][s["metrics"][0]]["n"] for s in results["summary"].values()),
                "modal": _mean([s["compression"]["modal_share"] for s in scorers]),
                "agreement": agreement[name]["value"] if name in agreement else None,
                "ece": _mean([s["calibration"]["ece"]["value"] for s in scorers if s.get("calibration")]),
                "mass": _mean([s["facts"].get("label_mass") for s in scorers]),
                "parsed": _mean([s["facts"].get("parsed") for s in scorers]),
                "missing": sum(s["missing"] for s in scorers),
            }
        )  # fmt: skip
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _intervals(b: BenchmarkResult, tint: Mapping[str, str]) -> Markup:
    rows = [(n, s["metrics"][b["primary"]], tint[n]) for n, s in b["scorers"].items()]
    if all(f["value"] is None for _, f, _ in rows):
        return Markup("<p class=note>No figure could be computed.</p>")
    baseline = b["scorers"]["length"]["metrics"][b["primary"]]["value"]
    size = (4.2, 0.6 + 0.24 * len(rows))
    return plots.svg(lambda ax: plots.intervals(ax, rows, baseline), f"{b['name']}: {b['primary']}", size=size)


def _histograms(results: Results, tint: Mapping[str, str]) -> Titled:
    return [
        (n, plots.svg(functools.partial(plots.histogram, h=h, colour=tint[n]), f"histogram of {n}", size=(2.6, 1.4)))
        for n, h in plots.pool_histograms(results).items()
    ]


def _agreement(results: Results, tint: Mapping[str, str]) -> Markup:
    rows = [(n, f, tint[n]) for n, f in plots.pool_agreement(results).items()]
    size = (4.2, 0.5 + 0.35 * len(rows))
    return plots.svg(lambda ax: plots.bars(ax, rows), "mode agreement", size=size) if rows else Markup("")


def _reliability(results: Results, tint: Mapping[str, str]) -> Titled:
    """One panel per scorer, bins of all benchmarks of pairs and ratings together."""
    pooled: dict[str, dict[int, list[float]]] = {}
    for b in results["benchmarks"]:
        for name, s in b["scorers"].items():
            for p, y, n in s["calibration"]["curve"] if "calibration" in s else []:
                bin_ = pooled.setdefault(name, {}).setdefault(min(int(p * 10), 9), [0.0, 0.0, 0.0])
                for i, v in enumerate((p * n, y * n, n)):
                    bin_[i] += v
    out = []
    for name, bins in pooled.items():
        curve = [(p / n, y / n, n) for _, (p, y, n) in sorted(bins.items())]
        picture = functools.partial(plots.reliability, curve=curve, colour=tint[name])
        out.append((name, plots.svg(picture, f"reliability of {name}", size=(2.2, 2.2))))
    return out


def _best_of_n(results: Results, tint: Mapping[str, str]) -> Titled:
    out = []
    for b in results["benchmarks"]:
        if b["kind"] == "list":
            shown = {n: s["best_of_n"] for n, s in b["scorers"].items() if plots.split(n)[1] in ("", "one", "mean")}
            perfect = max((s["best_of_n"]["oracle"] for s in b["scorers"].values()), key=len)
            curves = [*((n, found["gold"], tint[n]) for n, found in shown.items()), ("oracle", perfect, plots.INK)]
            curves = [c for c in curves if len(c[1]) > 1]
            picture = functools.partial(plots.lines, curves=curves)
            none = Markup("<p class=note>No list is scored throughout.</p>")
            label = f"best of n: {b['name']}"
            out.append((b["name"], plots.svg(picture, label, size=(3.4, 2.6)) if curves else none))
    return out


def _across(differences: list[Difference]) -> list[Difference]:
    """Differences between a latent scorer and a Likert judge or the length baseline."""
    return [
        d
        for d in differences
        if not plots.split(d["first"])[1]
        and d["value"] is not None
        and (plots.split(d["second"])[1] or d["second"] == "length")
    ]


def _figure(f: Figure | None) -> Markup:
    if not f or f["value"] is None:
        return Markup('<td data-v="-9">&ndash;</td>')
    spread = "" if f["low"] is None else f"<small>{f['low']:.3f} to {f['high']:.3f}</small>"
    return Markup(f'<td data-v="{f["value"]:.6f}" title="n = {f["n"]}">{f["value"]:.3f}{spread}</td>')
