"""UltraFeedback, binarised test pairs: GPT-4 preferences; equal scores are left out (Cui et al. 2023; MIT)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.evaluation.benchmarks.rows import LeftOut
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = Hub("HuggingFaceH4/ultrafeedback_binarized", ("test_prefs",))


def convert(row: Row) -> Row:
    """Both dialogues end with the response."""
    if row["score_chosen"] == row["score_rejected"]:
        raise LeftOut("equal scores")
    chosen, rejected = row["chosen"], row["rejected"]
    return {
        "id": row["prompt_id"],
        "prompt": chosen[:-1],
        "chosen": chosen[-1]["content"],
        "rejected": rejected[-1]["content"],
    }
