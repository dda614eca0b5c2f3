"""LFQA: experts' preferences between long-form answers; ties are left out (Xu et al. 2023)."""

from latent_rewards.evaluation.benchmarks.remote import GitHub
from latent_rewards.evaluation.benchmarks.rows import LeftOut
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = GitHub(
    "carriex/lfqa_eval",
    "5202745be28c1574c79c18c95143a797567eded9",
    "preference_data/experts_pairwise_human_preferences.jsonl",
)


def convert(row: Row) -> Row:
    """Overall preference -1: answer a wins; 1: answer b; 0: tie."""
    if row["overall_preference"] == 0:
        raise LeftOut("tie")
    a, b = row["answer_a"], row["answer_b"]
    chosen, rejected = (a, b) if row["overall_preference"] == -1 else (b, a)
    return {"prompt": row["question"], "chosen": chosen, "rejected": rejected, "subset": row.get("subject")}
