"""Tulu 3 preference mixture: on-policy and public pairs judged by GPT-4o (Lambert et al. 2024; ODC-BY)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = Hub("allenai/llama-3.1-tulu-3-8b-preference-mixture", ("train",))


def convert(row: Row) -> Row:
    """Both dialogues end with the response; what comes before is the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    return {
        "id": row["id"], "prompt": chosen[:-1], "chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"],
        "subset": row.get("source"),
    }  # fmt: skip
