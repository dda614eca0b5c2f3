"""Auto-J: 1,392 pairs of 58 scenarios with human preference; ties are left out. No licence file in the repository."""

from latent_rewards.evaluation.benchmarks.remote import GitHub
from latent_rewards.evaluation.benchmarks.rows import LeftOut
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = GitHub("GAIR-NLP/auto-j", "b57ade9ded9cbd1a86c06a100443c0ca0d3fbe82", "data/test/testdata_pairwise.jsonl")


def convert(row: Row) -> Row:
    """Label 0: response 1 is better; 1: response 2; 2: tie."""
    if row["label"] == 2:
        raise LeftOut("tie")
    one, two = row["response 1"], row["response 2"]
    chosen, rejected = (one, two) if row["label"] == 0 else (two, one)
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "subset": row.get("scenario")}
