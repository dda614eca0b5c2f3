"""The report of a run: results.json, report.md, pictures, and one page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from latent_rewards.evaluation.report.html import page
from latent_rewards.evaluation.report.plots import draw
from latent_rewards.evaluation.results import (
    BenchmarkResult,
    ConsistencyFigure,
    Difference,
    Pooled,
    Results,
    Scorer,
)
from latent_rewards.evaluation.verdict import reasons, verdict
from latent_rewards.files.markdown import figure, table
from latent_rewards.files.outputs import to_json
from latent_rewards.stats.bootstrap import Figure

NAMES = {
    "accuracy": "Accuracy (ties half)",
    "accuracy_length_balanced": "Accuracy, length-balanced",
    "accuracy_length_matched": "Accuracy, lengths within 10 %",
    "spearman": "Spearman",
    "spearman_length_partial": "Spearman, length partialled out",
    "ties": "Ties",
}
KINDS = {"pair": "Pairs", "rating": "Ratings", "list": "Lists"}


def write(results: Results, folder: str | Path) -> list[Path]:
    """Write all forms of the report.

    Args:
        results: what `latent_rewards.evaluation.run.evaluate` gives.
        folder: made when it is missing.

    Returns:
        The files: results.json, report.md, report.html and PNGs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.json": to_json(results, indent=1),
        "report.md": markdown(results),
        "report.html": page(results),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", errors="replace")
    return [*(folder / name for name in texts), *draw(results, folder)]


def load(folder: str | Path) -> Results:
    """Results written earlier.

    Raises:
        ValueError: the file is of another schema.
    """
    from latent_rewards.evaluation.run import SCHEMA

    path = Path(folder) / "results.json"
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {results.get('schema')!r}, this version reads {SCHEMA!r}")
    return results


def markdown(results: Results) -> str:
    """Tables for a README: one over benchmarks, then one per benchmark, each with the length baseline."""
    run = results["run"]
    out = [f"# {run['judge']}: latent scores and Likert ratings", ""]
    arithmetic = f", in {run['judge_arithmetic']}" if run.get("judge_arithmetic") else ""
    out += [
        f"Judge revision `{run['judge_revision']}`{arithmetic}. Brackets hold 95 % bootstrap intervals over prompts.",
        "",
    ]
    out += [f"- {sentence}" for sentence in verdict(results)] + [""]
    for kind, summary in results["summary"].items():
        out += [f"## {KINDS[kind]}: mean over {', '.join(summary['benchmarks'])}", ""]
        rows = [[name, *(_cell(f[m]) for m in summary["metrics"])] for name, f in summary["scorers"].items()]
        out += _table(["scorer", *(NAMES.get(m, m) for m in summary["metrics"])], rows)
    if pooled := results.get("pooled"):
        out += _pooled(pooled)
    for b in results["benchmarks"]:
        out += [f"## {b['name']}", "", _about(b), ""]
        if b["bad_rows"]:
            out += ["Bad rows:", "", *(f"- {reason}" for reason in reasons(b["bad_rows"], 10)), ""]
        metrics = list(next(iter(b["scorers"].values()))["metrics"])
        rows = [
            [name, *(_cell(s["metrics"][m]) for m in metrics), *_stability(s), str(s["metrics"][b["primary"]]["n"])]
            for name, s in b["scorers"].items()
        ]
        out += _table(["scorer", *metrics, "parsed", "label mass", "modal share", "mode agreement", "ECE", "n"], rows)
    out += _checks(results)
    out += ["## Cost", ""]
    rows = [
        [stage, str(c["texts"]), str(c["tokens"]), f"{c['seconds']:.1f}", f"{c['texts'] / max(c['seconds'], 1e-9):.2f}"]
        for stage, c in results["cost"]["stages"].items()
    ]
    out += _table(["stage", "texts", "tokens", "seconds", "texts/s"], rows)
    return "\n".join(out)


def _pooled(pooled: Pooled) -> list[str]:
    """All pairs as one, with paired differences to ratings: to one, and to the mean of several."""
    metrics = ("accuracy", "accuracy_length_balanced", "accuracy_length_matched", "ties")
    rows = [[name, *(_cell(f[m]) for m in metrics), str(f["accuracy"]["n"])] for name, f in pooled["scorers"].items()]
    out = [f"## Pairs: all {pooled['items']} of {len(pooled['benchmarks'])} benchmarks as one", ""]
    out += _table(["scorer", *(NAMES.get(m, m) for m in metrics), "n"], rows)
    ratings = [n for n in pooled["scorers"] if n.rpartition("/")[2] in ("one", "mean")]
    for metric in ("accuracy", "accuracy_length_balanced") if ratings else ():
        found = gaps(pooled["differences"], metric)
        rows = [[n, *(_signed(found.get((n, r))) for r in ratings)] for n in pooled["scorers"] if n not in ratings]
        out += [f"Paired differences of {NAMES[metric].lower()}:", ""]
        out += _table(["scorer minus", *ratings], rows)
    return out


def gaps(differences: Iterable[Difference], metric: str) -> dict[tuple[str, str], Figure]:
    """(first, second) -> first minus second of a metric, either way round."""
    out: dict[tuple[str, str], Figure] = {}
    for d in differences:
        if d["metric"] == metric:
            value, low, high = (x and -x for x in (d["value"], d["high"], d["low"]))
            out[d["first"], d["second"]] = {"value": d["value"], "low": d["low"], "high": d["high"], "n": d["n"]}
            out[d["second"], d["first"]] = {"value": value, "low": low, "high": high, "n": d["n"]}
    return out


def _signed(f: Figure | None) -> str:
    return "-" if f is None else figure(f["value"], f["low"], f["high"], sign="+")


def _checks(results: Results) -> list[str]:
    """Attacks and consistency, where they were asked for."""
    out: list[str] = []
    if results["robustness"]:
        out += ["## Share of attack strings that score at least as high as the best response", ""]
        attacked = {n: x["attacks"] for n, x in results["robustness"].items() if "attacks" in x}
        kinds = list(next(iter(attacked.values()), {}))
        out += _table(["scorer", *kinds], [[n, *(_cell(x[k]) for k in kinds)] for n, x in attacked.items()])
    if results["consistency"]:
        keys: tuple[ConsistencyFigure, ...] = get_args(ConsistencyFigure)
        out += ["## Comparisons in both orders", ""]
        rows = [[n, *(_cell(x[k]) if k in x else "-" for k in keys)] for n, x in results["consistency"].items()]
        out += _table(["benchmark", *keys], rows)
        scored = {n: (x["conflict_one_order"], x["conflict"]) for n, x in results["consistency"].items()}
        out += ["", "Share of pairs that are scored one way and compared the other way, one order and both:", ""]
        out += _table(
            ["benchmark", "scorer", "conflict_one_order", "conflict_aware"],
            [[n, name, _cell(one[name]), _cell(both[name])] for n, (one, both) in scored.items() for name in both],
        )
    return out


def _about(b: BenchmarkResult) -> str:
    left_out = "".join(f", {n} left out ({reason})" for reason, n in b["left_out"].items())
    return (
        f"{b['items']} items, {b['texts']} texts, {len(b['bad_rows'])} bad rows, {b['over_limit']} over the limit"
        f"{left_out}. Source: {b['source']}"
    )


def _stability(s: Scorer) -> list[str]:
    agreement, calibration = s.get("mode_agreement"), s.get("calibration")
    modal = s["compression"]["modal_share"]
    return [
        *(f"{s['facts'][key]:.2f}" if key in s["facts"] else "" for key in ("parsed", "label_mass")),
        "" if modal is None else f"{modal:.2f}",
        _cell(agreement) if agreement else "",
        _cell(calibration["ece"]) if calibration else "",
    ]


def _cell(f: Figure) -> str:
    return figure(f["value"], f["low"], f["high"])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [*table(head, rows), ""]
