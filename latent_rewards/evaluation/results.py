"""What an evaluation comes back with, as `results.json` holds it: the types of its parts."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from latent_rewards.files.types import JsonObject, Prompt
from latent_rewards.stats.bootstrap import Figure


class Histogram(TypedDict):
    """Counts over equal bins of a range."""

    range: list[float]
    counts: list[float]


class Compression(TypedDict):
    """How a scorer's values are spread."""

    modal_share: float | None
    tie_rate: float | None
    histogram: Histogram


class Calibration(TypedDict):
    """How well calibrated probabilities hold; `curve` has (said, was, count) of each bin."""

    brier: Figure
    ece: Figure
    curve: list[tuple[float, float, int]]


class BestOfN(TypedDict):
    """Mean gold of the pick, and of the best, for each n."""

    n: list[int]
    gold: list[float]
    oracle: list[float]


class _Scorer(TypedDict):
    missing: int
    metrics: dict[str, Figure]
    subsets: dict[str, Figure]
    compression: Compression
    facts: dict[str, float]


class Scorer(_Scorer, total=False):
    """One scorer on one benchmark; the last three only where they mean something."""

    mode_agreement: Figure
    calibration: Calibration
    best_of_n: BestOfN


class Difference(Figure):
    """A paired difference of the primary metric."""

    first: str
    second: str
    metric: str


class Disagreement(TypedDict):
    """An item on which the scorers differ most; scores and percentiles by scorer, one a response."""

    id: str
    prompt: Prompt
    responses: list[str]
    gold: list[float]
    scores: dict[str, list[float | None]]
    percentiles: dict[str, list[float | None]]


class BenchmarkResult(TypedDict):
    """All figures of one benchmark."""

    name: str
    kind: str
    source: str
    items: int
    prompts: int
    texts: int
    over_limit: int
    left_out: dict[str, int]
    bad_rows: list[JsonObject]
    primary: str
    scorers: dict[str, Scorer]
    differences: list[Difference]
    disagreements: list[Disagreement]


class KindSummary(TypedDict):
    """Means over the benchmarks of one kind; figures by scorer and metric."""

    metrics: list[str]
    benchmarks: list[str]
    scorers: dict[str, dict[str, Figure]]


class Pooled(TypedDict):
    """Pairs of several benchmarks as one: figures by scorer and metric, and paired differences of two metrics."""

    benchmarks: list[str]
    items: int
    scorers: dict[str, dict[str, Figure]]
    differences: list[Difference]


class Edit(TypedDict):
    """What a harmless edit does: mean change in standard deviations of the scores, and share of orders that flip."""

    shift: float | None
    flips: float | None


class Robustness(TypedDict, total=False):
    """How easily a scorer is fooled; see `robustness.measure`."""

    edits: dict[str, Edit]
    attacks: dict[str, Figure]
    worst: str | None
    gain: Figure


ConsistencyFigure = Literal[
    "local", "first_place", "accuracy_one_order", "accuracy_aware", "global_one_order", "global_aware", "ipi",
    "tov_one_order", "tov_aware",
]  # fmt: skip


class Consistency(TypedDict, total=False):
    """Whether a judge agrees with itself on a benchmark; see `consistency.measure`."""

    local: Figure
    first_place: Figure
    accuracy_one_order: Figure
    accuracy_aware: Figure
    conflict_one_order: dict[str, Figure]
    conflict: dict[str, Figure]
    global_one_order: Figure
    global_aware: Figure
    ipi: Figure
    tov_one_order: Figure
    tov_aware: Figure


class Cost(TypedDict):
    """Texts, tokens and seconds by stage, and what the whole run took."""

    stages: dict[str, dict[str, float]]
    wall_seconds: float
    peak_memory_mib: float
    peak_gpu_memory_mib: float


class Results(TypedDict):
    """A run; `pooled` is None without several benchmarks of pairs, and missing in results of earlier versions."""

    schema: str
    run: JsonObject
    benchmarks: list[BenchmarkResult]
    summary: dict[str, KindSummary]
    pooled: NotRequired[Pooled | None]
    stability: dict[str, dict[str, float | None]]
    robustness: dict[str, Robustness]
    consistency: dict[str, Consistency]
    cost: Cost
