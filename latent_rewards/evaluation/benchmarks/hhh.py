"""HHH alignment: 221 pairs on helpfulness, honesty and harmlessness (Askell et al. 2021; Apache-2.0)."""

from latent_rewards.evaluation.benchmarks.prometheus import sections, source
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = source("hhh_alignment")


def convert(row: Row) -> Row:
    """Both responses come inside the same judge prompt."""
    chosen, rejected = sections(row["chosen_instruction"]), sections(row["rejected_instruction"])
    return {
        "prompt": chosen["prompt"],
        "chosen": chosen["response"],
        "rejected": rejected["response"],
        "subset": row.get("source") or row.get("subset"),
    }
