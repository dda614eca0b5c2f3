"""HelpSteer, validation: human helpfulness 0-4 (Wang et al. 2023; CC-BY-4.0)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = Hub("nvidia/HelpSteer", ("validation",))


def convert(row: Row) -> Row:
    """Helpfulness is the score."""
    return {"prompt": row["prompt"], "response": row["response"], "score": row["helpfulness"], "scale": (0, 4)}
