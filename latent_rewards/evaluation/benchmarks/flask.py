"""FLASK: 2,001 responses with human scores 1-5 on a skill each (Ye et al. 2023), as prepared for Prometheus."""

from latent_rewards.evaluation.benchmarks.prometheus import rating, source
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = source("flask")


def convert(row: Row) -> Row:
    """Prompt, response, reference and rubric are cut out of the judge prompt."""
    return rating(row, "human_score")
