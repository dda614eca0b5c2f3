"""What a run does, and the manifest that keeps a resumed run from mixing two configurations."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

from latent_rewards.best_of_n.selection import Combination, Pairing, Ties
from latent_rewards.files.atomic import write_first
from latent_rewards.files.outputs import to_json
from latent_rewards.files.sources import InputError
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.fingerprint import changed
from latent_rewards.version import __version__

SCHEMA = "latent-rewards/best-of-n/1"
ASPECTS = ("accuracy", "consistency", "relevance", "clarity", "length_fit", "diversity", "difficulty")

_TRIES = 20  # tenths of a second

RewardSpec = str | tuple[str, JsonObject]  # a name, or a name and options
Method = Literal["best", "top-k", "threshold", "top-fraction", "soft", "pairs", "none"]
Over = Literal["prompt", "all"]


@dataclass(frozen=True)
class Selection:
    """What is kept of the scored completions. Changing it costs no forward: a finished run selects anew.

    Attributes:
        method: "best" of each prompt, its "top-k", all at or above a "threshold", the "top-fraction", one drawn by
            softmax ("soft"), chosen/rejected "pairs", or "none" (scores only).
        k: for "top-k".
        threshold: for "threshold".
        fraction: for "top-fraction"; rounded up.
        over: the fraction of each "prompt"'s completions, or of "all" rows.
        temperature: for "soft", in units of the combined score.
        against: for "pairs": the "worst" or the "middling" completion is rejected.
        margin: for "pairs": smallest difference of the two scores; None is 2.5 % of the span between the lowest and the
            highest score of the run, within which two scores are apart by rounding and by no preference.
        ties: which of equal scores comes first; see `latent_rewards.best_of_n.selection.order`.
        combine: how several rewards become one score; "z" and "worst" standardise over all rows, "rank" ranks within a
            prompt.
        weights: of the rewards, in their order.
        seed: of "soft" and of random ties.
    """

    method: Method = "best"
    k: int = 1
    threshold: float | None = None
    fraction: float = 0.1
    over: Over = "prompt"
    temperature: float = 1.0
    against: Pairing = "worst"
    margin: float | None = None
    ties: Ties = "first"
    combine: Combination = "mean"
    weights: Sequence[float] | None = None
    seed: int = 0

    def check(self, n_rewards: int) -> None:
        """Raise InputError for values that cannot work, before anything is scored."""
        kinds = {"method": Method, "over": Over, "against": Pairing, "ties": Ties, "combine": Combination}
        for name, kind in kinds.items():
            if getattr(self, name) not in (allowed := get_args(kind)):
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        wrong = {
            "k must be at least 1": self.k < 1,
            "a threshold is needed: the lowest score that is kept": self.method == "threshold"
            and self.threshold is None,
            "fraction lies in (0, 1]": not 0 < self.fraction <= 1,
            "temperature must be positive": not self.temperature > 0,
            "margin must not be negative": (self.margin or 0) < 0,
            f"give {n_rewards} weights, one per reward, not all 0": self.weights is not None
            and (len(self.weights) != n_rewards or not sum(self.weights) > 0),
            "the worst of several takes no weights": self.weights is not None and self.combine == "worst",
        }
        for message, holds in wrong.items():
            if holds:
                raise InputError(message)


@dataclass
class BestOfNConfig:
    """A run.

    Attributes:
        input: JSONL[.gz] or Parquet file, `save_to_disk` folder, or hub data set. Rows hold a prompt (completions are
            then generated), a prompt and a list of completions, or a prompt and one completion; of the last kind
            neighbouring rows with the same prompt belong together.
        output: folder of the run: shards, manifest, scored and selected rows.
        rewards: reward specs: "weighted", "weighted:PROMPT", "probe:PATH", "likert10:bare", "aspects" (the seven of
            `ASPECTS`), or (name, options), of which "column" names the column that the scores go to.
        judge: arguments of `HFJudge`.
        generator: {"backend": "hf" | "vllm" | "server", "model": ..., options}; None where completions are given.
        sampling: arguments of `Sampling`.
        selection: what is kept.
        split: of a data set.
        limit: take only the first so many rows.
        prompt_column: text or messages.
        completion_column: one completion per row.
        completions_column: a list of completions per row.
        id_column: unless None, values in this column must be unique; a missing column "id" is no error.
        score_column: name of the combined score.
        batch_size: completions per call of the judge; whole prompts, so a large group may exceed it.
        shard_size: completions per shard: what a killed process loses at most. Whole batches.
        threads: CPU threads per process, since they can change the last bits of a score; None: as torch finds them,
            or as the run began.
        format: of scored and selected rows, "jsonl" or "parquet".
        engine: "local" (this process, and every other that runs the same command) or "ray".
        workers: actors of the Ray engine.
        gpus_per_worker: of the Ray engine.
    """

    input: str
    output: str
    rewards: list[RewardSpec] = field(default_factory=lambda: ["weighted"])
    judge: JsonObject = field(default_factory=lambda: {"model": "embedded"})
    generator: JsonObject | None = None
    sampling: JsonObject = field(default_factory=dict)
    selection: Selection = field(default_factory=Selection)
    split: str | None = None
    limit: int | None = None
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    completions_column: str = "completions"
    id_column: str | None = "id"
    score_column: str = "score"
    batch_size: int = 64
    shard_size: int = 512
    threads: int | None = None
    format: Literal["jsonl", "parquet"] = "jsonl"
    engine: Literal["local", "ray"] = "local"
    workers: int = 2
    gpus_per_worker: float = 0.0

    def check(self) -> None:
        """Raise InputError for values that cannot work."""
        if self.batch_size < 1 or self.shard_size < self.batch_size:
            raise InputError(f"need 1 <= batch_size <= shard_size, got {self.batch_size} and {self.shard_size}")
        if self.format not in ("jsonl", "parquet"):
            raise InputError(f"format must be jsonl or parquet, got {self.format!r}")
        if self.engine not in ("local", "ray"):
            raise InputError(f"engine must be local or ray, got {self.engine!r}")
        if self.workers < 1 or self.gpus_per_worker < 0 or (self.threads or 1) < 1:
            raise InputError("workers and threads must be at least 1, gpus_per_worker not negative")
        names = list(self.reward_specs())
        if self.score_column in names:
            raise InputError(f"the combined score cannot be named like a reward, {self.score_column!r}")
        self.selection.check(len(names))

    def reward_specs(self) -> dict[str, RewardSpec]:
        """Column name -> reward spec.

        Raises:
            InputError: none, or two of one name.
        """
        out: dict[str, RewardSpec] = {}
        for spec in self.rewards:
            name, options = (spec, {}) if isinstance(spec, str) else (spec[0], dict(spec[1]))
            column = options.pop("column", None)
            kind, _, argument = name.partition(":")
            made: dict[str, RewardSpec]
            if kind == "aspects":
                made = {f"aspect_{a}": (f"{argument or 'weighted'}:aspect_{a}", options) for a in ASPECTS}
            else:
                made = {column or (f"{kind}-{Path(argument).stem}" if argument else kind): (name, options)}
            if taken := sorted(made.keys() & out.keys()):
                raise InputError(f"two rewards would be written to the column {taken[0]!r}")
            out |= made
        if not out:
            raise InputError("no reward: give at least one")
        return out

    def scoring(self) -> JsonObject:
        """Everything that can change a completion or a score or which rows there are, as plain data."""
        keys = (
            "split", "limit", "prompt_column", "completion_column", "completions_column", "id_column", "batch_size",
            "shard_size",
        )  # fmt: skip
        return _plain(
            {
                "schema": SCHEMA,
                **{k: getattr(self, k) for k in keys},
                "judge": {k: v for k, v in self.judge.items() if k not in ("device", "device_map")},
                "generator": self.generator,
                "sampling": self.sampling if self.generator else None,
                "versions": {p: version(p) for p in ("torch", "transformers")} | {"latent-rewards": __version__},
            }
        )


def _plain(value: Mapping[str, object]) -> JsonObject:
    """As it comes back from JSON."""
    return dict(json.loads(to_json(value)))


class Manifest:
    """`manifest.json` of a run: written once, by whichever process comes first, and compared by all others."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "manifest.json"

    def read(self) -> JsonObject | None:
        """Its content; None where there is none yet. Waits a moment for one that is being written, see `write_first`.

        Raises:
            InputError: there is one that cannot be read.
        """
        for _ in range(_TRIES):
            try:
                return dict(json.loads(self.path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                return None
            except ValueError as err:
                problem = err
                time.sleep(0.1)
        raise InputError(f"{self.path} is no manifest ({problem}); choose another output") from problem

    def agree(self, content: JsonObject) -> None:
        """Write it, or compare with what is there; keys that only one of both has are left out of the comparison.

        Raises:
            InputError: this run's configuration, input or judge differs; names every key.
        """
        content = _plain(content)
        known = self.read()
        if known is None:
            if write_first(self.path, json.dumps(content, indent=1)):
                return
            known = self.read()
        both = [k for k in known or {} if k in content]
        differ = changed({k: (known or {})[k] for k in both}, {k: content[k] for k in both})
        if differ:
            raise InputError(
                f"{self.path.parent} holds a run of another configuration, and goes on only with the same one: take it "
                "back, or choose another output. Changed: " + "; ".join(differ)
            )


def selection_dict(selection: Selection) -> JsonObject:
    """Plain data of a selection."""
    return _plain(asdict(selection))
