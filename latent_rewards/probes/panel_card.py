"""The card of a panel: what it asks, what each answer weighs, and what it was worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latent_rewards.files import markdown
from latent_rewards.files.outputs import to_json
from latent_rewards.probes.card import table

if TYPE_CHECKING:
    from latent_rewards.probes.panel import Panel

_HEAD = """# Panel on {judge}

A regression on label probabilities of the judge `{judge}` under {count} questions. Higher is better; scores are
comparable for one prompt, not across prompts, unless it was fitted on ratings.

```python
from latent_rewards import HFJudge, PanelReward

reward = PanelReward(HFJudge("{judge}"), "path/of/this/folder")
reward.score(prompts, completions)
```

| | |
|---|---|
| judge | `{judge}`, revision `{revision}` |
"""


def panel_card(panel: Panel) -> str:
    """Markdown: use, questions, weights, data, figures with intervals beside members and length, limits.

    Read from `training`: "data" (lines), "settings", "metrics" (rows), "command", "limits" (lines).
    """
    training = panel.training
    text = _HEAD.format(judge=panel.judge, revision=panel.revision or "unknown", count=len(panel.questions))
    if training.get("settings"):
        text += f"| settings | `{to_json(training['settings'])}` |\n"
    text += "\n## What it asks\n\n"
    for q in panel.questions:
        text += f"- {q.name}: prompt `{q.prompt.name}` ({q.prompt.hash}){': ' + q.criterion if q.criterion else ''}\n"
    text += "\n## What each answer weighs\n\n" + weights(panel)
    text += "\nThe last column is the weight of one standard deviation: what a feature is worth beside the others.\n"
    if training.get("data"):
        text += "\n## Training data\n\n" + "".join(f"- {line}\n" for line in training["data"])
    if training.get("metrics"):
        text += "\n## Measured\n\n" + measured(training["metrics"])
        text += (
            "\nIntervals are 95 % bootstrap intervals over prompts; a signal has to beat its best member and length.\n"
        )
        if training.get("command"):
            text += f"\n    {training['command']}\n"
    limits = training.get("limits") or ["Measured on the data above only; check it on yours before training on it."]
    return text + "\n## Limits\n\n" + "".join(f"- {line}\n" for line in limits)


def weights(panel: Panel) -> str:
    """A Markdown table of the features, the weightiest first."""
    per_sd = panel.weights * panel.scales
    order = sorted(range(len(per_sd)), key=lambda i: -abs(per_sd[i]))
    rows = [[panel.features[i].name, f"{panel.weights[i]:+.4f}", f"{per_sd[i]:+.3f}"] for i in order]
    return "\n".join(markdown.table(["feature", "weight", "weight of one sd"], rows)) + "\n"


def measured(rows: list[dict[str, object]]) -> str:
    """The figures as a table; rows of differences have fewer columns than the others."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return table([{key: row.get(key) for key in keys} for row in rows])
