"""What a head-to-head leaves behind: the table and the two curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from latent_rewards.files.markdown import table
from latent_rewards.files.types import JsonObject
from latent_rewards.stats.bootstrap import mean_estimate


def runs_of(name: str, runs: Sequence[JsonObject]) -> list[JsonObject]:
    """The runs against one reward."""
    return [run for run in runs if run["reward"] == name]


def write_table(
    path: Path, names: Sequence[str], runs: Sequence[JsonObject], costs: Mapping[str, float], *, steps: int
) -> None:
    """One line a reward: right answers to held-out questions before and after, over its seeds.

    The interval is a bootstrap over the held-out questions, of the mean over seeds; beside it the worst and best seed.
    """
    rows = []
    for name in names:
        found = runs_of(name, runs)
        first, last = [r["held_out"][0] for r in found], [r["held_out"][-1] for r in found]
        by_question = np.mean([look["by_question"] for look in last], 0)
        _, low, high, *_ = mean_estimate(by_question, np.arange(len(by_question)))
        ends = [look["right"] for look in last]
        rows.append([
            name, str(len(found)), f"{np.mean([look['right'] for look in first]):.2f}",
            f"**{np.mean(ends):.2f}** [{low:.2f}, {high:.2f}]", f"{min(ends):.2f} to {max(ends):.2f}",
            f"{np.mean([look['wrong'] for look in last]):.2f}", f"{np.mean([look['evasion'] for look in last]):.2f}",
            f"{np.mean([r['zero_spread'] for r in found]):.0%}", f"{costs[name]:.1f}" if name in costs else "-",
        ])  # fmt: skip
    head = [
        "reward", "seeds", "right, before", f"right, after {steps} steps [95 %]", "seeds' ends", "wrong fact",
        "prose or hedge", "groups without gradient", "judge CPU s a step",
    ]  # fmt: skip
    path.write_text("\n".join(table(head, rows)) + "\n", encoding="utf-8")


def draw(path: Path, names: Sequence[str], runs: Sequence[JsonObject], costs: Mapping[str, float]) -> None:
    """Held-out right answers over steps and, where it was measured, over what the judge has cost by then."""
    timed = any(costs.get(name) for name in names)
    figure = Figure(figsize=(10 if timed else 7, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True) if timed else (figure.subplots(), None)
    for i, name in enumerate(names):
        found = runs_of(name, runs)
        steps = [look["step"] for look in found[0]["held_out"]]
        curves = np.array(
            [[look["right"] for look in r["held_out"]] for r in found if len(r["held_out"]) == len(steps)]
        )
        style = {"color": f"C{i}"} if name != "gold" else {"color": "black", "ls": "--"}
        left.plot(steps, curves.mean(0), label=f"{name} ({len(curves)})", marker="o", ms=3, **style)
        if len(curves) > 1:
            left.fill_between(steps, curves.min(0), curves.max(0), alpha=0.15, **{"color": style["color"]})
        if right is not None and costs.get(name):
            right.plot(np.array(steps) * costs[name], curves.mean(0), marker="o", ms=3, **style)
    left.set(xlabel="GRPO step", ylabel="right answers to held-out questions", ylim=(0, 1))
    left.grid(alpha=0.3)
    if right is not None:
        right.set(xlabel="CPU seconds of the judge")
        right.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, title="reward (seeds)")
    figure.savefig(path, dpi=130)
