"""MT-Bench: responses with three GPT-4 scores 1-5 each, as prepared for Prometheus (Apache-2.0)."""

from __future__ import annotations

from latent_rewards.evaluation.benchmarks.prometheus import rating
from latent_rewards.evaluation.benchmarks.remote import GitHub
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = GitHub(
    "prometheus-eval/prometheus-eval",
    "71bba040bc5147ed9b067fac334b8f21497e6a8c",
    "eval/benchmark/data/mt_bench_eval.json",
)


def convert(row: Row) -> Row:
    """Prompt, response, reference and rubric are cut out of the judge prompt."""
    return rating(row, "gpt4_score")
