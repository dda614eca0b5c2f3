"""Measure latent scores against Likert ratings on benchmarks, and write the report.

Source: Girrbach et al. 2025 (arXiv 2509.24678), section 4 and tables 2-6.

    python recipes/evaluate.py --config configs/evaluate/cpu.yaml
    accelerate launch recipes/evaluate.py --config configs/evaluate/paper.yaml

Result: results.json, report.md, report.html and pictures in `output`. Latent scores have next to no ties and
no spread over seeds; Likert ratings agree with their mode in a third to four fifths of the samples. Look at the length
baseline first.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from typing import Any

from transformers.hf_argparser import HfArg
from trl import TrlParser

from latent_rewards.evaluation.benchmarks import expand
from latent_rewards.evaluation.report import write as report
from latent_rewards.evaluation.run import EvaluateConfig, evaluate


@dataclass
class Arguments(EvaluateConfig):
    """As `EvaluateConfig`, in a form that a command line can hold."""

    judge: str = "embedded"
    judge_kwargs: dict[str, Any] | str | None = HfArg(default=None, help="Further arguments of HFJudge, as JSON.")
    rewards: list[str] = HfArg(
        default_factory=lambda: list(EvaluateConfig().specs()),
        help="Names; 'probe:PATH' for a saved probe, 'weighted:PROMPT' for another prompt.",
    )


# The command line's help is what the configuration's docstring says of each field.
ABOUT = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(EvaluateConfig) or "", re.MULTILINE)
for name, text in ABOUT:
    known = Arguments.__dataclass_fields__[name]
    known.metadata = {"help": " ".join(text.split()).replace("%", "%%"), **known.metadata}


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
