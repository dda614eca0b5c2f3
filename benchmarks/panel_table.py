"""Is a panel worth its questions? Against its best member, their mean, a probe on the same rows, and length.

    python -m benchmarks.panel_table --readings runs/panel --out benchmarks/results/panel-1.5b

from the files that `panel_sample` keeps, without the judge. Panels and probes are fitted on 50, 150 and 500 labelled
rows (two of a pair) and on all: of other sets than they are measured on, of the same sets but other prompts, and of the
very set. Each figure is the mean over several draws of those rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import readings_file
from benchmarks.panel_rows import LEFT_OUT, OWN, SEEN, SIZES, Fit, Rows, balanced, estimates, lead, load_rows, wins_of
from benchmarks.probe_fits import DEFAULT, RECIPES
from benchmarks.readings_file import cell
from latent_rewards.files.markdown import table
from latent_rewards.files.runs import command, commit
from latent_rewards.probes.fit import Data, FitOptions, fit_head
from latent_rewards.probes.networks import state_scores
from latent_rewards.probes.panel_fit import Objective, PanelOptions, fit_line

PANEL, RIDGE, BEST, MEAN, LENGTH = "panel", "panel, ridge", "best member", "mean of all questions", "length"
RESIDUAL, PROBE, PLAIN_PROBE = "panel, length residual", "probe", "probe, no guards"
COLOURS = {PANEL: "#2a78d6", BEST: "#e07b00", MEAN: "#2e9e5b", PROBE: "#8a4fc7", LENGTH: "#888888"}


def panel_fit(rows: Rows, objective: Objective, **options: Any) -> Fit:
    """A panel as `latent-rewards panel train` fits it."""

    def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return fit_line(rows.table.take(train), PanelOptions(objective, **options))(rows.table.take(test))

    return fit


def best_member(rows: Rows) -> Fit:
    """The question that is best on the rows that a panel is fitted on."""

    def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        best = max(rows.members.values(), key=lambda s: float(rows.won(s)[train[::2] // 2].mean()))
        return best[test]

    return fit


def mean_member(rows: Rows) -> Fit:
    """All questions, each by its standard deviation over the same rows, whose labels are not looked at."""

    def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return np.mean([s[test] / (s[train].std() or 1.0) for s in rows.members.values()], axis=0)

    return fit


def probe_fit(rows: Rows, options: FitOptions, states: np.ndarray) -> Fit:
    """A linear probe on one layer's states."""
    t = rows.table
    data = Data(states, t.label, t.group, t.pair, t.length, np.unique(t.source, return_inverse=True)[1])

    def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = fit_head(data.take(train), options)
        return state_scores(states[test], tensors, options.architecture)[:, 0]

    return fit


def fits_of(rows: Rows, judge: str) -> dict[str, Fit]:
    """All that is fitted on labelled rows; probes where states were kept."""
    out = {
        PANEL: panel_fit(rows, "logistic"), RIDGE: panel_fit(rows, "ridge"),
        RESIDUAL: panel_fit(rows, "logistic", length="residual"), BEST: best_member(rows), MEAN: mean_member(rows),
    }  # fmt: skip
    if layers := [name for name in rows.arrays if name.startswith("hidden/")]:
        states = rows.arrays[layers[0]].astype(np.float32)
        options = RECIPES.get(judge, DEFAULT).fit
        out[PROBE] = probe_fit(rows, options, states)
        out[PLAIN_PROBE] = probe_fit(rows, dataclasses.replace(options, guards=()), states)
    return out


def measured(rows: Rows, won: dict[str, np.ndarray], **about: Any) -> list[dict[str, Any]]:
    """A row for each scorer, on the pairs that all of them have; and the panel's leads."""
    known = np.isfinite(np.stack(list(won.values()))).all(0)
    out = []
    for name, own in won.items():
        matched = known & rows.matched
        row = {**about, "scorer": name, "n": int(known.sum()), "accuracy": estimates(rows, own, known)[:3]}
        row |= {"n matched": int(matched.sum()), "matched": estimates(rows, own, matched)[:3]}
        row |= {"balanced": balanced(rows, np.where(known, own, np.nan))}
        if name != PANEL:
            row["panel less this"] = lead(rows, won[PANEL], own, known)
            row["the same, matched"] = lead(rows, won[PANEL], own, matched)
        out.append(row)
    return out


def by_set(rows: Rows, won: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Accuracy of each scorer on each set, and the panel's lead over its best member there."""
    out = []
    for name in np.unique(rows.source):
        part = rows.source == name
        row: dict[str, Any] = {"set": str(name), "n": int(part.sum())}
        row |= {scorer: estimates(rows, own, part)[:3] for scorer, own in won.items()}
        out.append(row | {f"{PANEL} less {BEST}": lead(rows, won[PANEL], won[BEST], part)})
    return out


def results(rows: Rows, judge: str, draws: int, settings: tuple[str, ...]) -> dict[str, Any]:
    """All figures."""
    fits = fits_of(rows, judge)
    plain = {name: rows.won(score) for name, score in rows.members.items()}
    plain[LENGTH] = rows.won(rows.table.length.astype(float))
    out: dict[str, Any] = {"rows": [], "by_set": []}
    for setting in settings:
        for size in (*SIZES, None):
            began = time.perf_counter()
            won = wins_of(rows, setting, size, fits, draws=draws)
            if not np.isfinite(won[PANEL]).any():
                continue
            size_ = "all" if size is None else size
            out["rows"] += measured(rows, won | plain, setting=setting, fitted_on=size_)
            if setting == LEFT_OUT and size in (150, None):
                out["by_set"].append({"fitted_on": size_, "rows": by_set(rows, won | plain)})
            print(f"{setting}, {size_}: {time.perf_counter() - began:.0f} s", flush=True)
    return out


def weights(rows: Rows) -> list[dict[str, Any]]:
    """What one standard deviation of each feature weighs in a panel that is fitted on everything."""
    from latent_rewards.probes.questions import default_questions, features_of

    line = fit_line(rows.table, PanelOptions())
    names = [f.name for f in features_of(default_questions(), ("mean", "sd"))]
    worth = line.weights * line.scales
    return [{"feature": names[i], "weight of one sd": float(worth[i])} for i in np.argsort(-np.abs(worth))]


def page(result: dict[str, Any]) -> str:
    """The tables."""
    keys = ("scorer", "n", "accuracy", "n matched", "matched", "balanced", "panel less this", "the same, matched")
    said = (
        f"`{result['command']}`; commit {result['commit']}, {result['judge']}, {result['device']}; "
        f"{result['pairs']} pairs of at most {result['chars']} characters of {len(result['sets'])} sets, "
        f"{result['unread']} completions left out as unread. Panels are logistic regressions on mean and spread of "
        f"{len(result['questions'])} questions. The best member is chosen on the rows that the panel is fitted on. "
        f"The probe reads layer {result['layers']} of the same rows. Means over {result['draws']} draws of the "
        "labelled rows; 95 % intervals are bootstrap intervals over prompts, differences paired. Matched: lengths "
        "within a fifth; balanced: mean of where the better one is longer and where it is shorter."
    )
    lines = ["# A panel of questions", "", said, ""]
    for setting in dict.fromkeys(r["setting"] for r in result["rows"]):
        for size in dict.fromkeys(r["fitted_on"] for r in result["rows"] if r["setting"] == setting):
            own = [r for r in result["rows"] if r["setting"] == setting and r["fitted_on"] == size]
            lines += [f"## {setting}, {size} labelled rows", ""]
            lines += [*table(list(keys), [[cell(r.get(k)) for k in keys] for r in own]), ""]
    for part in result["by_set"]:
        keys_ = list(part["rows"][0])
        lines += [f"## Each set, left out, {part['fitted_on']} labelled rows of the others", ""]
        lines += [*table(keys_, [[cell(r[k]) for k in keys_] for r in part["rows"]]), ""]
    lines += ["## What each feature weighs, fitted on all rows", ""]
    lines += [*table(["feature", "weight of one sd"], [[r["feature"], f"{r['weight of one sd']:+.3f}"]
                                                       for r in result["weights"]]), ""]  # fmt: skip
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over the number of labelled rows, a picture for each setting."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    settings = list(dict.fromkeys(r["setting"] for r in rows))
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axes = plt.subplots(1, len(settings), figsize=(3.2 * len(settings), 3.2), sharey=True, squeeze=False)
        for axis, setting in zip(axes[0], settings, strict=True):
            sizes = list(dict.fromkeys(r["fitted_on"] for r in rows if r["setting"] == setting))
            for k, (scorer, colour) in enumerate(COLOURS.items()):
                own = [r["accuracy"] for r in rows if r["setting"] == setting and r["scorer"] == scorer]
                if not own:
                    continue
                value, low, high = np.array(own).T
                at = np.arange(len(own)) + 0.07 * (k - (len(COLOURS) - 1) / 2)
                bars = np.stack([value - low, high - value])
                axis.errorbar(at, value, bars, fmt="o-", color=colour, lw=1.5, ms=4, elinewidth=1, label=scorer)
            axis.axhline(0.5, color="#444444", lw=0.8, ls=":")
            axis.set_xticks(range(len(sizes)), [str(s) for s in sizes])
            axis.set(title=setting, xlabel="labelled rows fitted on")
            axis.grid(axis="y", alpha=0.3)
        axes[0, 0].set_ylabel("better reply scores higher")
        axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=Path, default=Path("runs/panel"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/panel"), help="without ending")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--settings", nargs="+", default=[LEFT_OUT, SEEN, OWN])
    parser.add_argument("--name", help="name of the judge, where it was loaded from a folder")
    args = parser.parse_args()
    rows = load_rows(args.readings)
    name = args.name or rows.about["judge"]
    result = rows.about | {
        "command": command("benchmarks.panel_table"), "commit": commit(), "judge": name, "pairs": len(rows.group),
        "sets": sorted(set(rows.source.tolist())), "draws": args.draws, "weights": weights(rows),
    }  # fmt: skip
    result |= results(rows, name, args.draws, tuple(args.settings))
    readings_file.write(args.out, result, page(result))
    draw(result["rows"], args.out.with_name(f"{args.out.name}.png"))


if __name__ == "__main__":
    main()
