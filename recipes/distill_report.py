"""Tables and the picture of the distillation recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from matplotlib.figure import Figure

from latent_rewards.files import markdown
from latent_rewards.files.markdown import figure
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import provenance
from latent_rewards.files.types import JsonObject, Messages
from latent_rewards.stats.bootstrap import mean_estimate

if TYPE_CHECKING:
    from latent_rewards.distillation.teacher_choice import TeacherChoice
    from recipes.distill import DistillArguments

COLOURS = {"latent": "#2a78d6", "likert": "#e34948", "random": "#888888", "single": "#1baf7a"}

Interval = Sequence[float]  # value, low, high


class Measured(TypedDict, total=False):
    """A student on the held-out prompts; `loss` where it was trained."""

    divergence: dict[str, list[float]]
    scores: dict[str, list[float | None]]
    texts: list[str]
    loss: list[float]


class Both(TypedDict):
    """A difference with two intervals: over seeds, and over prompts."""

    seeds: Interval
    prompts: Interval


class MetricRow(TypedDict):
    """One metric: means by seed before and after, changes, and the first way of choosing against the others."""

    metric: str
    before: list[float]
    after: dict[str, list[float]]
    gain: dict[str, Both]
    versus: dict[str, Both]


Runs = dict[tuple[str, int], Measured]


def metrics(names: list[str], found: Measured) -> dict[str, np.ndarray]:
    """Per held-out prompt: divergence from each teacher, their mean where all responded, and scores."""
    out = {f"KL from {n}": np.array(found["divergence"][n], float) for n in names if n in found["divergence"]}
    if len({len(v) for v in out.values()}) == 1 and len(out) > 1:
        out["KL, mean of teachers"] = np.mean(list(out.values()), 0)
    return out | {f"score {n}": np.array(s, float) for n, s in found["scores"].items()}


def seed_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds with Student's 95 % interval; NaN bounds for one seed."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def table(names: list[str], choices: list[str], before: dict[int, Measured], after: Runs) -> list[MetricRow]:
    """One entry per metric: before, and each way of choosing after, as means over held-out prompts per seed."""
    seeds = list(before)
    rows = []
    start = {seed: metrics(names, before[seed]) for seed in seeds}
    end = {key: metrics(names, found) for key, found in after.items()}
    for name in start[seeds[0]]:
        row: MetricRow = {
            "metric": name, "before": [float(np.nanmean(start[s][name])) for s in seeds],
            "after": {c: [float(np.nanmean(end[c, s][name])) for s in seeds] for c in choices},
            "gain": {}, "versus": {},
        }  # fmt: skip
        for c in choices:
            change = np.stack([end[c, s][name] - start[s][name] for s in seeds])
            row["gain"][c] = _both(change)
            if c != choices[0]:
                row["versus"][c] = _both(np.stack([end[choices[0], s][name] - end[c, s][name] for s in seeds]))
        rows.append(row)
    return rows


def _both(differences_SP: np.ndarray) -> Both:
    """Interval over seeds of the mean over prompts, and over prompts of the mean over seeds."""
    e = mean_estimate(differences_SP.mean(0), np.arange(differences_SP.shape[1]))
    over_seeds = seed_interval(np.nanmean(differences_SP, 1))
    return {"seeds": over_seeds, "prompts": [e.value, e.low, e.high]}


def _cell(values: Interval) -> str:
    return figure(*values, sign="+")


def _figure(found: JsonObject, sign: str = "") -> str:
    return figure(found["value"], found["low"], found["high"], sign=sign)


def examples(
    names: list[str], prompts: list[Messages], responses: list[list[str | None]], scores: dict[str, np.ndarray],
    choices: dict[str, TeacherChoice],
) -> list[JsonObject]:  # fmt: skip
    """Three prompts with all responses, scores and choices."""
    return [
        {
            "prompt": prompts[i][-1]["content"],
            "responses": dict(zip(names, responses[i], strict=True)),
            "scores": {n: [None if np.isnan(x) else round(float(x), 3) for x in s[i]] for n, s in scores.items()},
            "chosen": {n: names[c.index[i]] if c.index[i] >= 0 else None for n, c in choices.items()},
        }
        for i in range(min(3, len(prompts)))
    ]


def _short(text: str | None, most: int = 120) -> str:
    line = " ".join((text or "(none)").split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _example_lines(found: list[JsonObject]) -> list[str]:
    lines = ["", "Examples, with each teacher's scores and who chose it:" if found else ""]
    for e in found:
        lines.append(f"- {_short(e['prompt'])}")
        for m, (teacher, text) in enumerate(e["responses"].items()):
            scores = ", ".join(f"{name} {'-' if s[m] is None else s[m]}" for name, s in e["scores"].items())
            by = [way for way, chosen in e["chosen"].items() if chosen == teacher]
            lines.append(f"  - {teacher} ({scores}{'; ' + ', '.join(by) if by else ''}): {_short(text)}")
    return lines


def _gold_lines(report: JsonObject) -> list[str]:
    """How good the chosen responses are, where gold is known."""
    rows = [
        [way, *(("-", "-") if mean is None else (f"{mean:.3f}", f"{report['gold_best'][way]:.0%}"))]
        for way, mean in report["gold"].items()
    ]
    return ["", *markdown.table(["chosen by", "mean gold score of the chosen", "has the best gold score"], rows)]


def write_report(
    out: Path, args: DistillArguments, names: list[str], before: dict[int, Measured], after: Runs,
    teachers: dict[str, dict[str, float]],
) -> str:  # fmt: skip
    """report.md and results.json; returns the report."""
    rows = table(names, args.choices, before, after)
    report = json.loads((out / "choices.json").read_text(encoding="utf-8"))
    n, first = len(next(iter(before.values()))["texts"]), args.choices[0]
    cells = [
        [row["metric"], f"{np.mean(row['before']):.3f}", c, f"{np.mean(row['after'][c]):.3f}", _cell(g["seeds"]),
         _cell(g["prompts"])]
        for row in rows for c, g in row["gain"].items()
    ]  # fmt: skip
    made = provenance("recipes.distill")
    lines = [
        f"`{made['command']}`, commit {made['commit']}, {made['machine']}.",
        "",
        f"{n} held-out prompts, seeds {args.seeds}. Divergence: KL(teacher || student), nats per token of the "
        "teacher's own held-out responses. Changes: mean [95 % over seeds, Student's t], mean [95 % over prompts].",
        "",
        *markdown.table(["metric", "before", "choice", "after", "change, over seeds", "over prompts"], cells),
    ]
    if len(args.choices) > 1:
        cells = [
            [row["metric"], c, _cell(d["seeds"]), _cell(d["prompts"])] for row in rows for c, d in row["versus"].items()
        ]
        lines += ["", *markdown.table(["metric", f"{first} minus", "over seeds", "over prompts"], cells)]
    cells = [[c, *(_figure(f[n]) for n in names), str(report["none"][c])] for c, f in report["share"].items()]
    lines += ["", *markdown.table(["chosen by", *names, "none"], cells)]
    if report["minus"]:
        cells = [[c, *(_figure(f[n], "+") for n in names)] for c, f in report["minus"].items()]
        lines += ["", *markdown.table([f"{first} minus", *names], cells)]
    agree = ", ".join(f"{k} {v:.0%}" for k, v in report["agreement"].items() if v is not None)
    lines += ["", f"Same teacher: {agree}." if agree else ""]
    lines += _gold_lines(report) if "gold" in report else []
    known = list(next(iter(teachers.values())))
    if known:
        cells = [[name, *(f"{s[n]:.3f}" for n in known)] for name, s in teachers.items()]
        lines += ["", *markdown.table(["mean score of held-out responses", *known], cells)]
    text = "\n".join(lines + _example_lines(report["examples"]))
    (out / "report.md").write_text(f"# Distillation\n\n{text}\n", encoding="utf-8")
    write_json(out / "results.json", made | {"metrics": rows, "choices": report})
    return text


def draw(path: Path, args: DistillArguments, names: list[str], before: dict[int, Measured], after: Runs) -> None:
    """Held-out metrics before and after by way of choosing, every seed a dot; and the training loss."""
    rows = [
        r for r in table(names, args.choices, before, after) if not r["metric"].startswith("KL from") or len(names) < 4
    ]
    figure = Figure(figsize=(2.9 * (len(rows) + 1), 3.8), layout="constrained")
    axes = figure.subplots(1, len(rows) + 1)
    for ax, row in zip(axes, rows, strict=False):
        columns = {"before": row["before"], **row["after"]}
        for i, (name, values) in enumerate(columns.items()):
            colour = COLOURS.get(name, "black")
            ax.plot([i] * len(values), values, "o", ms=4, alpha=0.5, color=colour)
            ax.plot([i - 0.25, i + 0.25], [np.mean(values)] * 2, lw=2.5, color=colour)
        ax.set_xticks(range(len(columns)), columns, rotation=35, fontsize=8)
        better = "lower is closer" if row["metric"].startswith("KL") else "higher is better"
        ax.set_title(f"{row['metric']}\n({better})", fontsize=9)
        ax.grid(axis="y", alpha=0.3)
    for (name, seed), found in after.items():
        first = seed == args.seeds[0]
        axes[-1].plot(found["loss"], color=COLOURS.get(name, "black"), lw=1, alpha=0.7, label=name if first else None)
    axes[-1].set(xlabel="logged step")
    axes[-1].set_title("training loss", fontsize=9)
    axes[-1].legend(frameon=False, fontsize=8)
    figure.suptitle("Held-out prompts, before and after; bars are means, dots are seeds")
    figure.savefig(path, dpi=150)
