"""RewardBench 2: one right answer among four (more in Ties) on six subjects (Malik et al. 2025; ODC-BY)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "list"
SOURCE = Hub("allenai/reward-bench-2", ("test",))


def convert(row: Row) -> Row:
    """Chosen responses have gold 1, rejected ones 0."""
    chosen, rejected = list(row["chosen"]), list(row["rejected"])
    gold = [1] * len(chosen) + [0] * len(rejected)
    responses = chosen + rejected
    return {"id": row["id"], "prompt": row["prompt"], "responses": responses, "gold": gold, "subset": row["subset"]}
