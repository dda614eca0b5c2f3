"""Tables and pictures of the routing recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from matplotlib.figure import Figure

from latent_rewards.files.markdown import figure, table
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import provenance
from latent_rewards.files.types import JsonObject
from latent_rewards.stats.bootstrap import Estimate

if TYPE_CHECKING:
    from recipes.route import RouteArguments

LABELS = {"knn": "nearest neighbours", "ridge": "linear", "boosted": "boosted trees", "mean": "training mean"}
COLOURS = {"knn": "#2a78d6", "ridge": "#e34948", "boosted": "#1baf7a", "mean": "#888888"}


class Signal(TypedDict):
    """What routers trained on one signal are worth; `r2` by predictor and model, `policies` by name and figure."""

    r2: dict[str, dict[str, Estimate]]
    policies: dict[str, dict[str, Estimate]]
    predicted: dict[str, np.ndarray]
    prompts: int
    models: list[str]


class Costs(TypedDict):
    """Curves by predictor, and (price, quality) of each single model."""

    curves: dict[str, list[dict[str, float]]]
    single: dict[str, tuple[float, float]]


def cell(e: Estimate, sign: str = "") -> str:
    """An estimate with its interval."""
    return figure(*e[:3], sign=sign)


def policy_table(policies: dict[str, dict[str, Estimate]], signal: str) -> list[str]:
    """Gold quality of each policy, best last but for the oracle."""
    names = {"signal itself": f"best response by {signal} (needs every response)", "oracle": "oracle (best by gold)"}
    rows = [
        [names.get(name, LABELS.get(name, name)), cell(row["quality"]), cell(row["gain"], "+")]
        for name, row in policies.items()
        if name != "signal itself" or not signal.startswith("gold")
    ]
    return table(["policy", "gold quality [95 %]", "gain over the best single model [95 %]"], rows)


def r2_table(signal: Signal) -> list[str]:
    """R2 of each model and predictor, out of fold."""
    kinds = signal["r2"]
    rows = [[m, str(signal["r2"]["mean"][m].n), *(cell(row[m]) for row in kinds.values())] for m in signal["models"]]
    return table(["model", "n", *(LABELS[k] for k in kinds)], rows)


def write_markdown(
    out: Path, args: RouteArguments, signals: dict[str, Signal], facts: JsonObject, costs: Costs | None
) -> str:
    """report.md and results.json; returns the tables of policies as text."""
    made = provenance("recipes.route")
    head = [
        "# Routing",
        "",
        f"`{made['command']}`, commit {made['commit']}, on `{Path(args.data).name}`: k = {args.k}, {args.folds} folds "
        f"over prompts, seed {args.seed}, {args.resamples} bootstrap draws over prompts. Every prediction is "
        "out of fold; a model is chosen only where it has a response. `training mean` knows the model but not the "
        "prompt.",
        "",
    ]
    if facts:
        head += [
            f"Judge: {facts['judge']}, revision {facts['revision']}; responses without a score: {facts['missing']}.",
            "",
        ]
    policies: list[str] = []
    for name, s in signals.items():
        policies += [f"## Signal: {name} ({s['prompts']} prompts, {len(s['models'])} models)", ""]
        policies += [*policy_table(s["policies"], name), ""]
    tables = [line for n, s in signals.items() for line in (f"## R2 per model, signal: {n}", "", *r2_table(s), "")]
    (out / "report.md").write_text("\n".join([*head, *policies, *tables]), encoding="utf-8")
    plain = {
        name: {
            "r2": {k: {m: e.to_dict() for m, e in row.items()} for k, row in s["r2"].items()},
            "policies": {n: {k: e.to_dict() for k, e in row.items()} for n, row in s["policies"].items()},
            "prompts": s["prompts"],
        }
        for name, s in signals.items()
    }
    write_json(out / "results.json", made | {"signals": plain, "costs": costs})
    return "\n".join(policies)


def draw_r2(path: Path, r2: dict[str, dict[str, Estimate]]) -> None:
    """R2 per model with its 95 % interval, one colour per predictor."""
    kinds = [k for k in r2 if k != "mean"]
    models = sorted(r2[kinds[0]], key=lambda m: r2[kinds[0]][m].value)
    figure = Figure(figsize=(7.5, 1.2 + 0.3 * len(models)), layout="constrained")
    ax = figure.subplots()
    for i, kind in enumerate(kinds):
        y = np.arange(len(models)) + 0.22 * (i - (len(kinds) - 1) / 2)
        e = [r2[kind][m] for m in models]
        ax.hlines(y, [x.low for x in e], [x.high for x in e], color=COLOURS[kind], lw=1.5, alpha=0.7)
        ax.plot([x.value for x in e], y, "o", ms=3.5, color=COLOURS[kind], label=LABELS[kind])
    ax.axvline(0, color="0.3", lw=1)
    ax.set_yticks(range(len(models)), models, fontsize=8)
    ax.set(xlabel="R2 of the predicted score, out of fold (0: no better than the mean)")
    ax.set_xlim(max(-0.6, min(x.low for k in kinds for x in r2[k].values())), None)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle("How well the prompt alone predicts each model's gold score, 95 % intervals")
    figure.savefig(path, dpi=150)


def draw_quality_cost(path: Path, costs: Costs) -> None:
    """Gold quality against mean price: routers at all price weights, single models, and their upper hull."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    ax = figure.subplots()
    points = sorted(costs["single"].values())
    ax.plot(*zip(*points, strict=True), "x", color="0.5", ms=5, label="one model for all prompts")
    hull = upper_hull(points)
    price = np.geomspace(hull[0][0], hull[-1][0], 200)  # a mixture is a straight line in price, a curve on this axis
    mixed = np.interp(price, *zip(*hull, strict=True))
    ax.plot(price, mixed, "--", color="0.5", lw=1, label="random mixtures of single models")
    for name, (price, quality) in costs["single"].items():
        if (price, quality) in hull:
            ax.annotate(name, (price, quality), (4, -9), textcoords="offset points", fontsize=7, color="0.35")
    for kind, curve in costs["curves"].items():
        x, y = [c["price"] for c in curve], [c["quality"] for c in curve]
        ax.plot(x, y, ".-", color=COLOURS[kind], ms=4, lw=1.2, label=f"routed: {LABELS[kind]}")
        ax.fill_between(x, [c["low"] for c in curve], [c["high"] for c in curve], color=COLOURS[kind], alpha=0.1, lw=0)
    ax.set(xlabel="mean price of a response", ylabel="mean gold score of the responses", xscale="log")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.grid(alpha=0.25)
    figure.suptitle("Quality and price, with 95 % intervals over prompts")
    figure.savefig(path, dpi=150)


def upper_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """What mixtures of (price, quality) points can reach at best: their increasing concave hull, by price."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if best and y <= best[-1][1]:
            continue
        while len(best) > 1 and (best[-1][1] - best[-2][1]) * (x - best[-2][0]) <= (y - best[-2][1]) * (
            best[-1][0] - best[-2][0]
        ):
            best.pop()
        best.append((x, y))
    return best
