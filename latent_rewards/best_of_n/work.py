"""One process's part of a run: take shards that nobody has, generate, score, write."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator

import torch

from latent_rewards.best_of_n.config import BestOfNConfig
from latent_rewards.best_of_n.generation import build_generator
from latent_rewards.best_of_n.groups import Group, Record, batches
from latent_rewards.best_of_n.plan import ForwardReader, Plan
from latent_rewards.best_of_n.sampling import Generator, Sampling
from latent_rewards.best_of_n.shards import ShardStore
from latent_rewards.engine.loading import default_device
from latent_rewards.files.outputs import Scores
from latent_rewards.files.sources import InputError, Source
from latent_rewards.files.types import JsonObject, Row
from latent_rewards.judge.fingerprint import facts_of
from latent_rewards.judge.hf import HFJudge, Judge
from latent_rewards.judge.prompts import to_text
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.build import build_spec
from latent_rewards.rewards.scorer import Scorer

logger = logging.getLogger(__name__)

_CANARY = {"prompt": "Name a prime number.", "completion": "Seven."}
_BATCH_TOKENS = {"cpu": 4096}  # of the judge; fixed, since what else fits the free memory would change the last bits
_BATCH_TOKENS_ELSEWHERE = 16_384


class JudgeFailedError(RuntimeError):
    """The judge fails on everything, or does not answer, so it is not the rows; nothing of the shard was written."""


class Engine:
    """Judge, rewards and generator of this process, loaded on first use.

    Args:
        config: the run.
        judge: a judge of your own instead of `config.judge`.
        resolved: "threads" and "batch_tokens" that the run began with; None where it begins now.
    """

    def __init__(self, config: BestOfNConfig, judge: Judge | None = None, resolved: JsonObject | None = None) -> None:
        self.config, self._judge, self._known = config, judge, resolved or {}

    @functools.cached_property
    def resolved(self) -> JsonObject:
        """Settings that were left open, as they are used: CPU threads and the judge's tokens in a batch."""
        device = torch.device(self.config.judge.get("device") or default_device())
        threads = self.config.threads or self._known.get("threads") or torch.get_num_threads()
        if device.type == "cpu" and self._judge is None:
            torch.set_num_threads(int(threads))
        tokens = self._known.get("batch_tokens") or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)
        return {
            "threads": threads if device.type == "cpu" else None,
            "batch_tokens": self.config.judge.get("batch_tokens") or tokens,
            "device": device.type,
        }

    @functools.cached_property
    def judge(self) -> Judge:
        """The judge."""
        return self._judge or HFJudge(**{**self.config.judge, "batch_tokens": self.resolved["batch_tokens"]})

    @functools.cached_property
    def rewards(self) -> dict[str, Reward]:
        """Column -> reward.

        Raises:
            InputError: a reward that cannot be built.
        """
        out = {}
        for name, spec in self.config.reward_specs().items():
            try:
                out[name] = build_spec(spec, self.judge, samples=10, temperature=0.7)
            except (ValueError, FileNotFoundError) as err:
                raise InputError(f"reward {name!r}: {err}") from err
        return out

    @functools.cached_property
    def generator(self) -> Generator | None:
        """What draws completions, if anything."""
        if self.config.generator is None:
            return None
        options = dict(self.config.generator)
        backend, model = options.pop("backend", "hf"), options.pop("model", None)
        if not model:
            raise InputError("the generator needs a model")
        return build_generator(backend, model, Sampling(**self.config.sampling), **options)

    def facts(self) -> JsonObject:
        """What the scores depend on besides the configuration, for the manifest. Loads the models."""
        return {
            "rewards": {n: {"prompt": r.prompt.name, **r.facts} for n, r in self.rewards.items()},
            "judge_revision": self.judge.revision, "judge_facts": facts_of(self.judge),
            "resolved": self.resolved, "generation": self.generator.facts if self.generator else None,
        }  # fmt: skip

    def score(self, some: list[Group], scorer: Scorer) -> list[Record]:
        """Records of a batch of groups: their rows, completions, scores, and reasons where a score is missing."""
        todo = [g for g in some if g.fault is None and g.completions is None]
        if todo and self.generator:
            keys = [str(g.number) for g in todo]
            prompts = [g.prompt if isinstance(g.prompt, str | list) else to_text(g.prompt) for g in todo]
            for group, texts in zip(todo, self.generator.generate(prompts, keys), strict=True):
                group.completions = None if texts is None else [*texts]
                group.fault = None if texts else "the generator cannot take this prompt"
        rows, faults, numbers = [], [], []
        for group in some:
            for i, completion in enumerate(group.completions or [None]):
                row = group.rows[i] if len(group.rows) > 1 else group.rows[0]
                rows.append({**row, "prompt": group.prompt, "completion": completion})
                faults.append(group.fault or (None if completion is not None else "the completion is missing or null"))
                numbers.append(group.number + 1 + (i if len(group.rows) > 1 else 0))  # as a file counts them
        outages = self.judge.outages
        scores, reasons = self._read(scorer, rows, faults, numbers)
        if self.judge.outages != outages:
            raise JudgeFailedError(
                "the judge did not answer; nothing of this shard was written, what is done is kept: run it again"
            )
        out: list[Record] = []
        start = 0
        for group in some:
            part = slice(start, start + group.size)
            start += group.size
            out.append(
                {
                    "row": group.number, "rows": group.rows, "prompt": group.prompt, "completions": group.completions,
                    "scores": {name: column[part] for name, column in scores.items()}, "reasons": reasons[part],
                }
            )  # fmt: skip
        return out

    def _read(
        self, scorer: Scorer, rows: list[Row], faults: list[str | None], numbers: list[int]
    ) -> tuple[Scores, list[str | None]]:
        """Scores of a batch; where the judge fails on it, of its rows one by one, so that one row costs only itself."""
        try:
            return scorer.read(rows, faults, numbers)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ArithmeticError, IndexError) as err:
            logger.warning("rows %d to %d: the judge failed (%s); reading one by one", numbers[0], numbers[-1], err)
        scores: Scores = {name: [] for name in scorer.rewards}
        reasons: list[str | None] = []
        for i in range(len(rows)):
            one = slice(i, i + 1)
            try:
                part, why = scorer.read(rows[one], faults[one], numbers[one])
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ArithmeticError, IndexError) as err:
                self._check_alive(scorer, err)
                part, why = {name: [None] for name in scorer.rewards}, [f"the judge failed: {err}"]
            for name, column in part.items():
                scores[name] += column
            reasons += why
        return scores, reasons

    def _check_alive(self, scorer: Scorer, cause: Exception) -> None:
        """Tell a row that the judge fails on from a judge that fails on everything, such as a lost device."""
        slots = {s for r in scorer.rewards.values() for s in r.inputs}
        try:
            scorer.read([{s: _CANARY.get(s, "-") for s in slots | set(_CANARY)}], [None], [-1])
        except (RuntimeError, ArithmeticError, IndexError) as err:
            raise JudgeFailedError(
                f"the judge fails on every text ({err}); nothing of this shard was written"
            ) from cause


class Worker:
    """Does shards for as long as there are some that nobody else is at."""

    def __init__(self, engine: Engine, plan: Plan, source: Source, store: ShardStore) -> None:
        self.engine, self.plan, self.store = engine, plan, store
        self.reader = ForwardReader(source, plan, engine.config)

    @property
    def per_prompt(self) -> int:
        """Completions that a prompt without any will get."""
        return int(self.engine.config.sampling.get("n", Sampling.n)) if self.engine.config.generator else 1

    def do(self, index: int) -> bool:
        """Do one shard, unless it is done or another process is at it; whether it was done here."""
        if self.store.done(index):
            return False
        with self.store.claim(index) as mine:
            if not mine or self.store.done(index):
                return False
            self.store.write(index, self._records(index))
            return True

    def _records(self, index: int) -> Iterator[Record]:
        config = self.engine.config
        scorer = Scorer(self.engine.rewards, {}, None)
        for batch in batches(self.reader.shard(index), config.batch_size, self.per_prompt):
            yield from self.engine.score(batch, scorer)

    def do_all(self, seen: Callable[[int, bool], None]) -> None:
        """Sweep over all shards until a sweep finds none to do; `seen` hears of every shard done, here or elsewhere."""
        told: set[int] = set()
        while True:
            worked = False
            for index in range(len(self.plan.shards)):
                if index in told:
                    continue
                here = self.do(index)
                worked |= here
                if here or self.store.done(index):
                    told.add(index)
                    seen(index, here)
            if not worked:
                return


def is_main() -> bool:
    """Whether this process is the first of its launch, and shows progress."""
    return int(os.environ.get("RANK", "0")) == 0
