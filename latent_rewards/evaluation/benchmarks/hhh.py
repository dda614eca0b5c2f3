"""HHH alignment: 221 pairs on helpfulness, honesty and harmlessness (Askell et al. 2021; Apache-2.0)."""

from __future__ import annotations

from latent_rewards.evaluation.benchmarks.prometheus import sections
from latent_rewards.evaluation.benchmarks.remote import GitHub
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = GitHub(
    "prometheus-eval/prometheus-eval",
    "8536c6d6f69f492fb364a2173e522d4dad034488",
    "eval/benchmark/data/hhh_alignment_eval.json",
)


def convert(row: Row) -> Row:
    """Both responses come inside the same judge prompt."""
    chosen, rejected = sections(row["chosen_instruction"]), sections(row["rejected_instruction"])
    return {
        "prompt": chosen["prompt"],
        "chosen": chosen["response"],
        "rejected": rejected["response"],
        "subset": row.get("source") or row.get("subset"),
    }
