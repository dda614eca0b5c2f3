"""Preference Bench: 2,000 pairs of the Prometheus 2 authors, judged by GPT-4 (Kim et al. 2024; Apache-2.0)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = Hub("prometheus-eval/Preference-Bench", ("train",))


def convert(row: Row) -> Row:
    """Preference "A" or "B"; the criteria go to the rubric slot."""
    a, b = row["orig_response_A"], row["orig_response_B"]
    chosen, rejected = {"A": (a, b), "B": (b, a)}[row["orig_preference"]]
    return {
        "prompt": row["orig_instruction"], "chosen": chosen, "rejected": rejected, "rubric": row.get("orig_criteria"),
        "reference": row.get("orig_reference_answer"),
    }  # fmt: skip
