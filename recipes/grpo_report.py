"""What a GRPO run leaves behind: statistics of the held-out scores, the table, the pictures and run.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from latent_rewards import HFJudge, LikertReward, Reward, VerifierReward
from latent_rewards.files.outputs import to_json, write_json
from latent_rewards.files.runs import PACKAGES, versions
from latent_rewards.files.types import JsonObject, Prompt
from latent_rewards.stats.bootstrap import mean_estimate
from latent_rewards.stats.distributions import row_means

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from trl import GRPOConfig, ModelConfig

EMBEDDED_NOTE = (
    "The embedded judge is tiny: on real pairs its prompted scores are at chance, and its probe knows little beyond\n"
    "the kinds of answers it was trained on (benchmarks/results/probes-embedded.md).\n"
    "This run shows the mechanics, not a better policy. The README says which judges to use for real."
)
NEXT = """
Next, with a judge of yours in place of Qwen/Qwen3-8B and rows of yours in pairs.jsonl (prompt, chosen, rejected):
  latent-rewards score --judge Qwen/Qwen3-8B --describe                what this judge can be read for, on one screen
  latent-rewards evaluate --judge Qwen/Qwen3-8B --benchmarks pairs.jsonl         whether it is worth using on your rows
  python -m recipes.grpo --config configs/grpo/single_gpu.yaml --judge Qwen/Qwen3-8B             train against it"""


@dataclass
class HeldOut:
    """Answers to the held-out prompts, all P prompts times G answers, and what they scored."""

    texts: list[str]
    scores: dict[str, np.ndarray]  # name -> (P, G), NaN where there is no score


def has_no_gradient(scores: np.ndarray) -> np.ndarray:
    """(P,) whether a group of G scores gives GRPO nothing: fewer than two scores, or all equal. `scores` is (P, G)."""
    known = ~np.isnan(scores)
    spread = np.where(known, scores, -np.inf).max(1) - np.where(known, scores, np.inf).min(1)
    return (known.sum(1) < 2) | (spread == 0)


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of P per-prompt differences."""
    return mean_estimate(differences, np.arange(len(differences)), resamples=10_000)[1:3]


def graded_accuracy(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(P,) share of each prompt's pairs of answers that the scores order as their grades do; ties count half.

    Args:
        scores: (P, A) scores of A answers; pairs with a NaN are left out, and a prompt without any is NaN.
        gold: (P, A) grades, all different within a prompt.
    """
    a, b = np.triu_indices(scores.shape[1], 1)
    right = 0.5 + 0.5 * np.sign(scores[:, a] - scores[:, b]) * np.sign(gold[:, a] - gold[:, b])
    return row_means(right)


def summarise_graded(name: str, scores: np.ndarray, gold: np.ndarray) -> JsonObject:
    """How well one score orders the built-in graded answers, with a bootstrap interval over prompts."""
    per_prompt = graded_accuracy(scores, gold)
    known = per_prompt[~np.isnan(per_prompt)]
    return {
        "score": name,
        "accuracy": float(known.mean()) if len(known) else None,
        "interval": bootstrap_interval(known) if len(known) else None,
        "scored": float((~np.isnan(scores)).mean()),
        "prompts": len(scores),
    }


def summarise(name: str, before: HeldOut | None, after: HeldOut | None) -> JsonObject:
    """One row of the table; None for what was not measured."""
    seen = [held.scores[name] for held in (before, after) if held is not None]
    means = [None if held is None else row_means(held.scores[name]) for held in (before, after)]
    row: JsonObject = {"score": name, "before": None, "after": None, "difference": None, "interval": None}
    for key, value in zip(("before", "after"), means, strict=True):
        if value is not None and not np.isnan(value).all():
            row[key] = float(np.nanmean(value))
    if means[0] is not None and means[1] is not None:
        change = (means[1] - means[0])[~np.isnan(means[1] - means[0])]
        if len(change):
            row |= {"difference": float(change.mean()), "interval": bootstrap_interval(change)}
    if seen:
        pool = np.concatenate(seen)
        known = ~np.isnan(pool)
        row |= {
            "groups": len(pool),
            "no_gradient": float(has_no_gradient(pool).mean()),
            "under_two_scores": float((known.sum(1) < 2).mean()),
            "scored": float(known.mean()),
        }
    return row


def format_table(results: JsonObject, embedded: bool) -> str:
    """The closing table as text."""
    lines = [
        f"{results['held_out']} held-out prompts, {results['completions']} answers each, same seeds; "
        f"{results['steps']} of {results['max_steps']} training steps" + (" (interrupted)" * results["interrupted"]),
        "",
        f"{'score':<18}{'before':>9}{'after':>9}{'difference':>12}  {'95 % interval':<19}{'groups without spread':>22}",
    ]

    def number(value: float | None, width: int, sign: str = "") -> str:
        return f"{'-':>{width}}" if value is None else f"{value:>{sign}{width}.3f}"

    for row in results["scores"]:
        between = "-" if row["interval"] is None else "[{:+.3f}, {:+.3f}]".format(*row["interval"])
        flat = f"{row['no_gradient']:.1%} of {row['groups']}" if "groups" in row else "-"
        cells = number(row["before"], 9) + number(row["after"], 9) + number(row["difference"], 12, "+")
        lines.append(f"{row['score']:<18}{cells}  {between:<19}{flat:>22}")
    for row in results["scores"]:
        if row["score"] == results["baseline"] and "groups" in row:
            lines += [
                "",
                f"{row['score']}: one rating sampled per answer; {row['scored']:.1%} of its answers parse.",
                f"{row['under_two_scores']:.1%} of its groups have under two ratings, which counts as no spread.",
                "A group without spread gives GRPO no gradient.",
            ]
    if results["training_zero_spread"] is not None:
        lines.append(f"Groups without spread in training (weighted sum): {results['training_zero_spread']:.1%}")
    if results["graded"]:
        n = results["graded"][0]["prompts"]
        lines += [
            "",
            f"Pairs of the built-in graded answers put in the right order, {n} prompts (0.5 is chance; ties half):",
        ]
        for row in results["graded"]:
            between = "-" if row["interval"] is None else "[{:.3f}, {:.3f}]".format(*row["interval"])
            part = "" if row["scored"] == 1 else f"   on the {row['scored']:.0%} of answers that have a score"
            lines.append(f"{row['score']:<18}{number(row['accuracy'], 9)}  {between}{part}")
        lines.append("")
    return "\n".join([*lines, *([EMBEDDED_NOTE] if embedded else [])])


def training_curves(history: list[JsonObject], names: list[str]) -> dict[str, list[tuple[int, float, float]]]:
    """Of each reward, (step, mean, standard deviation) of the completions of every logged step."""
    return {
        name: [
            (entry["step"], entry[f"rewards/{name}/mean"], entry[f"rewards/{name}/std"])
            for entry in history
            if entry.get(f"rewards/{name}/mean") is not None
        ]
        for name in names
    }


def draw_curves(path: Path, history: list[JsonObject], rows: list[JsonObject], units: dict[str, str]) -> None:
    """Training reward over steps, with the held-out means before and after and the interval of their difference."""
    curves = training_curves(history, list(units))
    figure = Figure(figsize=(5.2 * len(units), 3.8), layout="constrained")
    axes = figure.subplots(1, len(units), squeeze=False)
    for axis, (name, unit), row in zip(axes[0], units.items(), rows, strict=False):
        if curves[name]:
            step, mean, std = (np.array(column, dtype=float) for column in zip(*curves[name], strict=True))
            axis.plot(step, mean, color="tab:blue", marker="o", markersize=3.5, label="training batch: mean")
            axis.fill_between(step, mean - std, mean + std, color="tab:blue", alpha=0.15, lw=0, label="mean ± 1 sd")
        last = max((point[0] for point in curves[name]), default=1)
        if row["before"] is not None:
            axis.plot([0], [row["before"]], "s", color="black", label="held-out: before")
        if row["after"] is not None:
            error = None if row["interval"] is None else np.abs(np.array(row["interval"]) - row["difference"])[:, None]
            axis.errorbar(
                [last + 0.5], [row["after"]], yerr=error, fmt="D", color="tab:red", capsize=4,
                label="held-out: after, 95 % of the difference",
            )  # fmt: skip
        axis.set(title=name, xlabel="training step", ylabel=f"reward ({unit})", xlim=(-0.5, last + 1))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle("Rewards read from the frozen judge")
    figure.savefig(path, dpi=150)


def draw_histograms(
    path: Path, before: HeldOut | None, after: HeldOut | None, rows: list[JsonObject], units: dict[str, str]
) -> None:
    """Scores of the held-out answers, one panel per score; a sampled rating falls on whole numbers only."""
    figure = Figure(figsize=(4.6 * len(units), 3.8), layout="constrained")
    axes = figure.subplots(1, len(units), squeeze=False)
    found = [(label, held) for label, held in (("before", before), ("after", after)) if held is not None]
    for axis, (name, unit), row in zip(axes[0], units.items(), rows, strict=True):
        pool = np.concatenate([held.scores[name].ravel() for _, held in found]) if found else np.zeros(0)
        known = pool[~np.isnan(pool)]
        whole = len(known) and np.all(known == np.round(known))
        edges = np.arange(known.min() - 0.5, known.max() + 1.0) if whole else np.histogram_bin_edges(known, 24)
        for (label, held), colour in zip(found, ("0.45", "tab:red"), strict=False):
            values = held.scores[name].ravel()
            values = values[~np.isnan(values)]
            axis.hist(values, bins=edges, color=colour, alpha=0.55, label=label)
        title = name if "groups" not in row else f"{name}\n{row['no_gradient']:.0%} of groups without spread"
        if "groups" in row and row["scored"] < 1:
            title += f", {1 - row['scored']:.0%} unparsed"
        axis.set(title=title, xlabel=f"score ({unit})", ylabel="answers")
        axis.title.set_fontsize(10)
        for scale in (axis.yaxis, *([axis.xaxis] if whole else [])):
            scale.get_major_locator().set_params(integer=True)
        if found:
            axis.legend(fontsize=8, frameon=False)
    figure.suptitle("Scores of the held-out answers: the same answers in every panel")
    figure.savefig(path, dpi=150)


def write_answers(path: Path, prompts: list[Prompt], before: HeldOut | None, after: HeldOut | None) -> None:
    """One JSON line per held-out answer with all its scores; null where there is none."""
    with path.open("w", encoding="utf-8") as file:
        for stage, held in (("before", before), ("after", after)):
            if held is None:
                continue
            n = len(held.texts) // len(prompts)
            flat = {name: scores.ravel() for name, scores in held.scores.items()}
            for i, text in enumerate(held.texts):
                scores = {name: None if np.isnan(values[i]) else float(values[i]) for name, values in flat.items()}
                line = {"stage": stage, "prompt": prompts[i // n], "completion": text, "scores": scores}
                file.write(to_json(line) + "\n")


def unit_of(reward: Reward) -> str:
    """Unit of a reward's scores, for the axis of a picture."""
    if (reward.scale, reward.shift, reward.clip) != (1.0, 0.0, None):
        return "scaled"
    if isinstance(reward, VerifierReward):
        return "probability" if reward.output == "p" else "nats"
    return "probe score" if reward.kind == "probe" else "rating points"


def write_record(
    folder: Path, given: tuple[DataclassInstance, GRPOConfig, ModelConfig], judge: HFJudge, rewards: list[Reward],
    baseline: Reward | None,
) -> None:  # fmt: skip
    """run.json: everything needed to run this again. Loads the judge."""
    options, training, model = given
    everything = [*rewards, *([baseline] if baseline else [])]
    record = {
        "config": {"script": asdict(options), "training": training.to_dict(), "model": asdict(model)},
        "versions": versions(*PACKAGES),
        "threads": torch.get_num_threads(),
        "judge": {"model": judge.model_name, "revision": judge.revision},
        "prompts": {r.__name__: {"name": r.prompt.name, "hash": r.prompt.hash} for r in everything},
        "seeds": {"train": training.seed, "data": training.data_seed, "held_out": training.seed},
    }
    if isinstance(baseline, LikertReward):
        record["seeds"]["baseline"] = baseline.seed
    write_json(folder / "run.json", record)
