"""The selection table and its picture: accuracy of the pick for every score, with paired intervals, over n."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure as Picture

from latent_rewards.best_of_n.choice_of_n import choose_n, expected_gold
from latent_rewards.evaluation.report.plots import COLOURS
from latent_rewards.files.markdown import figure, table
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import provenance
from latent_rewards.files.types import JsonObject, Row
from latent_rewards.judge.prompts import to_text
from latent_rewards.stats.bootstrap import Estimate, Figure, difference, mean_estimate

Rows = list[Row]
BASELINES = {"random": "#bbbbbb", "longest": "#777777", "oracle": "#000000"}


def write(
    sets: Mapping[str, Rows], columns: list[str], facts: JsonObject, folder: Path, publish: str | None
) -> list[Path]:
    """Results as JSON, Markdown and PNG in `folder`, and again at `publish` plus suffix."""
    results = {
        **provenance("recipes.best_of_n"), **facts,
        "sets": {name: measure(rows, columns) for name, rows in sets.items()},
    }  # fmt: skip
    made = []
    for stem in [folder / "selection", *([Path(publish)] if publish else [])]:
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = [stem.with_suffix(s) for s in (".json", ".md", ".png")]
        write_json(paths[0], results)
        paths[1].write_text(markdown(results), encoding="utf-8")
        draw(results, paths[2])
        made += paths
    return made


def measure(rows: Rows, columns: list[str]) -> JsonObject:
    """Every scorer on the prompts whose completions differ in gold; a completion without a score comes last."""
    scored = [r for r in rows if r["completions"] and len(set(r["gold"])) > 1]
    scores = {name: [_scores(name, r) for r in scored] for name in ("random", "longest", "oracle", *columns)}
    gold = [np.asarray(r["gold"], dtype=float) for r in scored]
    sizes = [len(g) for g in gold]
    out: JsonObject = {
        "prompts": len(rows), "measured": len(scored), "completions": [min(sizes, default=0), max(sizes, default=0)],
        "mean_gold_of_all_prompts": float(np.mean([np.mean(r["gold"]) for r in rows if r["completions"]])),
        "without_score": {c: sum(v is None for r in scored for v in r[c]) for c in columns}, "scorers": {},
    }  # fmt: skip
    if len(scored) < 2:
        return out
    curves = {name: [expected_gold(s, g) for s, g in zip(scores[name], gold, strict=True)] for name in scores}
    last = {name: _estimate(np.array([c[-1] for c in curve])) for name, curve in curves.items()}
    likert = next((c for c in reversed(columns) if c.startswith("likert")), None)
    for name in scores:
        entry: JsonObject = {"gold_of_pick": last[name].to_dict()}
        entry["curve"] = np.mean([c[: min(sizes)] for c in curves[name]], 0).tolist()
        for other in ("random", "longest", likert):
            if other and other != name:
                entry[f"minus_{'likert' if other == likert else other}"] = difference(last[name], last[other]).to_dict()
        if name in columns:
            entry["choice"] = _choice(scores[name], gold)
        out["scorers"][name] = entry
    return out


def _scores(name: str, row: Row) -> np.ndarray:
    texts = row["completions"]
    if name == "random":
        return np.zeros(len(texts))
    if name == "longest":
        return np.array([len(to_text(t)) for t in texts], dtype=float)
    values = np.asarray(row["gold" if name == "oracle" else name], dtype=float)
    lowest = np.nanmin(values) if not np.isnan(values).all() else 0.0
    return np.where(np.isnan(values), lowest - 1.0, values)


def _estimate(values: np.ndarray) -> Estimate:
    return mean_estimate(values, np.arange(len(values)), resamples=2000)


def _choice(scores: list[np.ndarray], gold: list[np.ndarray]) -> JsonObject:
    found = choose_n(scores, gold)
    return {
        "n": found.n, "temperature": found.temperature, "held_out_gold": found.held_out_gold, "oracle": found.oracle,
        "regret": found.regret, "turns_down": found.turns_down, "drop": found.drop.to_dict(),
    }  # fmt: skip


def markdown(results: JsonObject) -> str:
    """One table per set."""
    lines = [
        f"`{results['command']}` at {results['commit']}", "",
        f"Judge {results['judge']}, policy {results['policy']}. Gold of the picked completion, mean over prompts; "
        "differences with paired 95 % bootstrap intervals over prompts; ties count with their mean gold.", "",
    ]  # fmt: skip
    head = ["pick by", "gold", "minus random", "minus longest", "minus Likert mean", "best n, temperature", "regret"]
    for name, s in results["sets"].items():
        low, high = s["completions"]
        missing = "".join(f"; without a score by {c}: {n}" for c, n in s["without_score"].items() if n)
        lines += [
            f"## {name}", "",
            f"{s['measured']} of {s['prompts']} prompts (the others' completions are all of one gold), {low} to {high} "
            f"completions each{missing}.", "", *table(head, [_row(*entry) for entry in s["scorers"].items()]), "",
        ]  # fmt: skip
    return "\n".join(lines)


def _row(scorer: str, e: JsonObject) -> list[str]:
    choice = e.get("choice")
    down = " (turns down)" if choice and choice["turns_down"] else ""
    chosen = [f"{choice['n']}, {choice['temperature']:.2g}{down}", f"{choice['regret']:.3f}"] if choice else ["", ""]
    minus = [_interval(e.get(f"minus_{other}")) for other in ("random", "longest", "likert")]
    return [scorer, f"{e['gold_of_pick']['value']:.3f}", *minus, *chosen]


def _interval(e: Figure | None) -> str:
    return figure(e["value"], e["low"], e["high"], sign="+") if e and e["low"] is not None else ""


def draw(results: JsonObject, path: Path) -> None:
    """Expected gold of the pick over n, one panel per set."""
    shown = {n: s for n, s in results["sets"].items() if s["scorers"]}
    if not shown:
        return
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    with style.context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        picture = Picture(figsize=(4.0 * columns, 3.1 * rows))
        axes = picture.subplots(rows, columns, squeeze=False)
        for ax, (name, s) in zip(axes.flat, shown.items(), strict=False):
            tint = dict(zip([c for c in s["scorers"] if c not in BASELINES], COLOURS, strict=False)) | BASELINES
            for scorer, e in s["scorers"].items():
                look = {"ls": "--" if scorer in BASELINES else "-", "lw": 1.4, "marker": ".", "ms": 4}
                n = range(1, len(e["curve"]) + 1)
                ax.plot(n, e["curve"], color=tint[scorer], label=scorer, **look)
            ax.set_title(f"{name}, {s['measured']} prompts", loc="left", fontsize=9)
            ax.set_xlabel("n")
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes.flat[0].set_ylabel("gold of the pick")
        for ax in axes.flat[len(shown) :]:
            ax.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False)
        picture.tight_layout(rect=(0, 0, 1, 1 - 0.4 / (3.1 * rows) - 0.05))
        picture.savefig(path, dpi=150)
