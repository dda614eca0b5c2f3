"""What a run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from latent_rewards.files.types import JsonObject


@dataclass
class EvaluateConfig:
    """What to compare, on what.

    Attributes:
        judge: model name, or the arguments of `HFJudge`.
        rewards: names, with what they need after a colon ("probe:runs/probe", "weighted:rubric"), or a mapping of your
            own name -> {"reward": name, option: value}. Ratings that the judge writes freely, which cost a generation
            each, are "likert10" and "likert5".
        benchmarks: see `latent_rewards.evaluation.benchmarks.load`.
        output: folder of the results, the report and, unless `cache` says otherwise, the cache.
        cache: folder of the cache; one can serve many runs.
        limit: most items of a benchmark.
        max_chars: leave out items with more characters than this in prompt and longest response; counted in the report.
        per_prompt: most items of one prompt, so that items are independent of each other; counted in the report.
        part: "2/4" reads the second of four parts into the cache and gives no figures: so jobs without a launcher share
            a run, each with the same settings and a part of its own.
        read: False gives the figures of what the cache holds, and reads nothing.
        likert_limit: most items of a benchmark that Likert judges rate (they cost most); a sample of the others.
        samples: ratings a Likert judge samples per response.
        temperature: of that sampling.
        greedy: also take a greedy rating.
        keep_layers: layers whose states under the `weighted` prompt also go to the cache, to train probes on later
            without another forward.
        batch: texts between two commits to the cache.
        robustness_items: items per benchmark for attack strings and edits; 0 for none.
        stability: whether scores are read again in other batches and orders; None: for judges of less than a billion
            parameters.
        consistency_items: items per benchmark for pairwise prompts in both orders; 0 for none.
        resamples: bootstrap draws.
        seed: of the bootstrap.
    """

    judge: str | JsonObject = "embedded"
    rewards: list[str] | dict[str, JsonObject] = field(
        default_factory=lambda: ["weighted", "verifier", "cross_layer", "likert10:guided", "likert5:guided"]
    )
    benchmarks: list[str] = field(default_factory=lambda: ["open_ended"])
    output: str = "runs/eval"
    cache: str | None = None
    limit: int | None = None
    max_chars: int | None = None
    per_prompt: int | None = None
    part: str | None = None
    read: bool = True
    likert_limit: int | None = None
    samples: int = 10
    temperature: float = 0.7
    greedy: bool = True
    keep_layers: list[int] = field(default_factory=list)
    batch: int = 32
    robustness_items: int = 0
    consistency_items: int = 0
    stability: bool | None = None
    resamples: int = 1000
    seed: int = 0

    def specs(self) -> dict[str, str | tuple[str, JsonObject]]:
        """Own name -> what to build."""
        if isinstance(self.rewards, Mapping):
            return {
                name: (str(o.get("reward", name)), {k: v for k, v in o.items() if k != "reward"})
                for name, o in self.rewards.items()
            }
        return {name: name for name in self.rewards}
