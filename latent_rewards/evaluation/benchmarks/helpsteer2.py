"""HelpSteer2, validation: 1,038 responses with human helpfulness 0-4 (Wang et al. 2024; CC-BY-4.0)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = Hub("nvidia/HelpSteer2", ("validation",))


def convert(row: Row) -> Row:
    """Helpfulness is the score."""
    return {"prompt": row["prompt"], "response": row["response"], "score": row["helpfulness"], "scale": (0, 4)}
