"""Vicuna Bench: 320 responses with three GPT-4 scores 1-5 each, as prepared for Prometheus (Apache-2.0)."""

from latent_rewards.evaluation.benchmarks.prometheus import rating, source
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = source("vicuna")


def convert(row: Row) -> Row:
    """Prompt, response, reference and rubric are cut out of the judge prompt."""
    return rating(row, "gpt4_score")
