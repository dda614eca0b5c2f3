"""MT-Bench: responses with three GPT-4 scores 1-5 each, as prepared for Prometheus (Apache-2.0)."""

from latent_rewards.evaluation.benchmarks.prometheus import rating, source
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = source("mt_bench", commit="71bba040bc5147ed9b067fac334b8f21497e6a8c")


def convert(row: Row) -> Row:
    """Prompt, response, reference and rubric are cut out of the judge prompt."""
    return rating(row, "gpt4_score")
