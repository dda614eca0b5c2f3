"""JudgeBench: hard pairs with verifiable answers, of GPT-4o and Claude 3.5 (Tan et al. 2025; MIT)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = Hub("ScalerLab/JudgeBench", ("gpt", "claude"))


def convert(row: Row) -> Row:
    """Label "A>B" or "B>A"."""
    a, b = row["response_A"], row["response_B"]
    chosen, rejected = {"A>B": (a, b), "B>A": (b, a)}[row["label"]]
    return {
        "id": row["pair_id"], "prompt": row["question"], "chosen": chosen, "rejected": rejected,
        "subset": row["source"].split("-")[0],
    }  # fmt: skip
