"""FLASK: 2,001 responses with human scores 1-5 on a skill each (Ye et al. 2023), as prepared for Prometheus."""

from __future__ import annotations

from latent_rewards.evaluation.benchmarks.prometheus import rating
from latent_rewards.evaluation.benchmarks.remote import GitHub
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = GitHub(
    "prometheus-eval/prometheus-eval", "8536c6d6f69f492fb364a2173e522d4dad034488", "eval/benchmark/data/flask_eval.json"
)


def convert(row: Row) -> Row:
    """Prompt, response, reference and rubric are cut out of the judge prompt."""
    return rating(row, "human_score")
