"""RewardBench: 2,985 pairs on chat, safety and reasoning (Lambert et al. 2024; ODC-BY)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = Hub("allenai/reward-bench", ("filtered",))


def convert(row: Row) -> Row:
    """Fields as they are."""
    return {k: row[k] for k in ("id", "prompt", "chosen", "rejected", "subset")}
