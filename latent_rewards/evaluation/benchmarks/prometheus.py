"""Rows of the Prometheus authors' files, which hold prompt and response inside one filled-in judge prompt."""

from __future__ import annotations

import re

from latent_rewards.evaluation.benchmarks.remote import GitHub
from latent_rewards.files.types import Row

_REPOSITORY = "prometheus-eval/prometheus-eval"
_COMMIT = "8536c6d6f69f492fb364a2173e522d4dad034488"
_SLOTS = {
    "The instruction to evaluate": "prompt",
    "Response to evaluate": "response",
    "Reference Answer (Score 5)": "reference",
    "Score Rubrics": "rubric",
    "Feedback": "",
}
_HEADS = re.compile("###\\s*(" + "|".join(map(re.escape, _SLOTS)) + "):?")


def source(name: str, commit: str = _COMMIT) -> GitHub:
    """One of their evaluation files."""
    return GitHub(_REPOSITORY, commit, f"eval/benchmark/data/{name}_eval.json")


def sections(text: str) -> dict[str, str]:
    """Prompt, response and, where there are, reference and rubric.

    Raises:
        ValueError: the headings are not those of the judge prompt.
    """
    parts = _HEADS.split(text)
    heads = parts[1::2]
    if len(set(heads)) < len(heads) or not {"The instruction to evaluate", "Response to evaluate"} <= set(heads):
        raise ValueError(f"unexpected headings {heads}")
    bodies = (body.strip() for body in parts[2::2])
    return {_SLOTS[head]: body for head, body in zip(heads, bodies, strict=True) if _SLOTS[head]}


def rating(row: Row, score: str) -> Row:
    """A rating row; several scores are averaged."""
    scores = row[score] if isinstance(row[score], list) else [row[score]]
    mean = sum(float(s) for s in scores) / len(scores)
    return {**sections(row["instruction"]), "score": mean, "scale": (1, 5), "subset": row.get("category")}
