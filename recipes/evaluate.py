"""Measure latent scores against Likert ratings on benchmarks, and write the report.

Source: Girrbach et al. 2025 (arXiv 2509.24678), section 4 and tables 2-6.

    python recipes/evaluate.py --config configs/evaluate/cpu.yaml
    accelerate launch recipes/evaluate.py --config configs/evaluate/paper.yaml

Result: results.json, report.md, report.html and pictures in `output`. Latent scores have next to no ties and
no spread over seeds; Likert ratings agree with their mode in a third to four fifths of the samples. Look at the length
baseline first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from trl import TrlParser

from latent_rewards.evaluation.benchmarks import expand
from latent_rewards.evaluation.report import write as report
from latent_rewards.evaluation.run import EvaluateConfig, evaluate


@dataclass
class Arguments:
    """As `EvaluateConfig`, in a form that a command line can hold."""

    judge: str = field(default="embedded", metadata={"help": "Hub id or folder of the judge, or 'embedded'."})
    judge_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of HFJudge, as JSON."}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["weighted", "verifier", "cross_layer", "likert10", "likert5"],
        metadata={"help": "Names; 'probe:PATH' for a saved probe, 'weighted:PROMPT' for another prompt."},
    )
    benchmarks: list[str] = field(default_factory=lambda: ["open_ended"], metadata={"help": "Files, names, patterns."})
    output: str = field(default="runs/eval", metadata={"help": "Folder of the report and the cache."})
    cache: str | None = field(default=None, metadata={"help": "Folder of the cache."})
    limit: int | None = field(default=None, metadata={"help": "Most items of a benchmark."})
    max_chars: int | None = field(default=None, metadata={"help": "Leave out items with longer texts."})
    likert_limit: int | None = field(default=None, metadata={"help": "Most items that Likert judges rate."})
    samples: int = field(default=10, metadata={"help": "Ratings sampled per response."})
    keep_layers: list[int] = field(default_factory=list, metadata={"help": "Layers whose states go to the cache."})
    batch: int = field(default=32, metadata={"help": "Texts between two commits to the cache."})
    robustness_items: int = field(default=0, metadata={"help": "Items per benchmark for attacks and edits."})
    consistency_items: int = field(default=0, metadata={"help": "Items per benchmark for pairwise prompts."})
    resamples: int = field(default=1000, metadata={"help": "Bootstrap draws."})


def main() -> None:
    (args,) = TrlParser((Arguments,)).parse_args_and_config()
    given = vars(args).copy()
    kwargs = given.pop("judge_kwargs") or {}
    given["judge"] = {"model": args.judge, **(json.loads(kwargs) if isinstance(kwargs, str) else kwargs)}
    config = EvaluateConfig(**given)
    config.benchmarks = expand(config.benchmarks)
    results = evaluate(config)
    if results is not None:
        for path in report.write(results, config.output):
            print(path)


if __name__ == "__main__":
    main()
