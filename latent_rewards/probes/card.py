"""The model card of a probe, from what its config says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from latent_rewards.files import markdown
from latent_rewards.files.outputs import to_json
from latent_rewards.probes.verdict import verdict

if TYPE_CHECKING:
    from latent_rewards.probes.probe import Probe

_HEAD = """---
library_name: latent-rewards
tags: [reward-model, probe, latent-rewards]
license: {licence}
---
# Probe on {judge}, layer {layers}

A {architecture} probe on the hidden state of the frozen judge `{judge}` at the rating position of the prompt
`{prompt}` (in `prompt.yaml`). Higher is better; scores are comparable for one prompt, not across prompts.

```python
from latent_rewards import HFJudge, ProbeReward

reward = ProbeReward(HFJudge("{judge}"), "path/of/this/folder")
reward.score(prompts, completions)
```

| | |
|---|---|
| judge | `{judge}`, revision `{revision}` |
| layers | {layers}, {lens} states, {width} wide |
| outputs | {outputs} |
| objective | {objective} |
"""


def model_card(probe: Probe) -> str:
    """Markdown: use, data, figures with intervals and the length baseline, limits.

    Read from `config.training`: "licence", "data" (lines), "settings", "metrics" (rows), "command", "limits" (lines).
    """
    config, training = probe.config, probe.config.training
    text = _HEAD.format(
        judge=config.judge, revision=config.revision, architecture=config.architecture, prompt=probe.prompt.name,
        layers=", ".join(map(str, config.layers)), lens=config.lens, width=config.width,
        outputs=", ".join(config.outputs), objective=config.objective, licence=training.get("licence", "other"),
    )  # fmt: skip
    if training.get("settings"):
        text += f"| settings | `{to_json(training['settings'])}` |\n"
    if training.get("data"):
        text += "\n## Training data\n\n" + "".join(f"- {line}\n" for line in training["data"])
    if training.get("metrics"):
        text += "\n## Measured\n\n" + table(training["metrics"])
        text += "\nIntervals are 95 % bootstrap intervals over prompts; a signal has to beat the length baseline.\n"
        if all("probe_minus" in row for row in training["metrics"]):
            text += "".join(f"\n{sentence}\n" for sentence in verdict(training["metrics"]))
        if training.get("command"):
            text += f"\n    {training['command']}\n"
    limits = training.get("limits") or ["Measured on the data above only; check it on yours before training on it."]
    return text + "\n## Limits\n\n" + "".join(f"- {line}\n" for line in limits)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows with the same keys; floats with three digits, (value, low, high) with its interval."""
    keys = list(rows[0])
    return "\n".join(markdown.table(keys, [[_cell(row.get(k)) for k in keys] for row in rows])) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3f}"
    if isinstance(value, list | tuple) and len(value) == 3:
        value, low, high = (float("nan") if v is None else float(v) for v in value)
        return "-" if value != value else f"{value:.3f} [{low:.2f}, {high:.2f}]"
    return "-" if value is None else str(value)
