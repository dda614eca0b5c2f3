"""UltraFeedback, the rejected responses with their overall GPT-4 score 1-10 (Cui et al. 2023; MIT)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = Hub("HuggingFaceH4/ultrafeedback_binarized", ("test_prefs",))


def convert(row: Row) -> Row:
    """The rejected dialogue ends with the response."""
    dialogue = row["rejected"]
    return {
        "id": row["prompt_id"], "prompt": dialogue[:-1], "response": dialogue[-1]["content"],
        "score": row["score_rejected"], "scale": (1, 10),
    }  # fmt: skip
