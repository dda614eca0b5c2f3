"""What an evaluation kept of a judge, read back without the judge running: states for probes (`keep_layers`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latent_rewards.evaluation.readings import Readings
from latent_rewards.files.cache import Cache
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.encoding import Encoder
from latent_rewards.judge.hf import HFJudge, Need, Reading, Row
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge, Request, unread


class KeptJudge(Judge):
    """A judge that answers from an evaluation's cache alone; a text that is not there counts as not read.

    `collect_features(KeptJudge(judge, cache), ...)` makes features of what was evaluated with `keep_layers`, under the
    name and revision of the judge, so that probes trained on them belong to it. The judge is loaded, for these and
    because its precision and limits are part of a reading's key, but never run.

    Args:
        judge: the judge as the evaluation had it.
        cache: folder of the evaluation's cache; it is written to (an empty file of its own).
    """

    def __init__(self, judge: HFJudge, cache: str | Path) -> None:
        if not any(Path(cache).glob("readings-*.sqlite")):
            raise FileNotFoundError(f"no readings of an evaluation in {cache}")
        self.judge = judge
        self.readings = Readings(judge, Cache(cache, rank=_OWN))

    @property
    def name(self) -> str:
        """The judge's."""
        return self.judge.name

    @property
    def revision(self) -> str:
        """The judge's."""
        return self.judge.revision

    @property
    def encoder(self) -> Encoder:
        """The judge's."""
        return self.judge.encoder

    @property
    def facts(self) -> JsonObject:
        """The judge's, whose readings these are."""
        return self.judge.facts

    @property
    def fingerprint(self) -> str:
        """The judge's."""
        return self.judge.fingerprint

    @property
    def arithmetic(self) -> str | None:
        """The judge's."""
        return self.judge.arithmetic

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks, L."""
        return self.judge.n_layers

    @property
    def capabilities(self) -> frozenset[str]:
        """What an evaluation can keep."""
        return frozenset({"labels", "hidden", "layer_logits", "target"})

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """As the judge's own."""
        self.judge.check(prompt, need)

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """The readings of B rows each; NaN, with a reason, for those that were not kept."""
        return [self._read(*request) for request in requests]

    def _read(self, prompt: JudgePrompt, rows: Sequence[Row], need: Need) -> Reading:
        kept = self.readings.kept(prompt, rows, need)
        if not kept.any():
            blocks, reasons = self.judge.blocks, ["not kept"] * len(rows)
            return unread(
                len(rows), len(prompt.labels or ()), need, blocks.n_layers, blocks.config.hidden_size, reasons
            )
        found = self.readings.fetch(prompt, rows, need)
        return replace(found, reasons=tuple(r if k else "not kept" for r, k in zip(found.reasons, kept, strict=True)))

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """Not kept in this form.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("an evaluation's cache gives readings, not answers; ask the judge itself")


class KeepingJudge(KeptJudge):
    """A judge that reads a text once and for all: what it has read is kept in a folder, over runs and processes.

    For a frozen judge and texts that come again, as in several training runs from one start. `<name>/seconds` of such a
    run tell of the texts that were new. Each process needs a `rank` of its own, for the file that it writes.

    Args:
        judge: reads what is not kept.
        cache: the folder; made when it is missing.
        rank: number of this process.
    """

    def __init__(self, judge: HFJudge, cache: str | Path, rank: int = 0) -> None:
        self.judge = judge
        self.readings = Readings(judge, Cache(cache, rank=rank))

    @property
    def capabilities(self) -> frozenset[str]:
        """The judge's; answers are not kept."""
        return self.judge.capabilities

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """The readings of B rows each, in one forward for all that is new."""
        self.readings.ensure(requests)
        return super().read(requests)

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """The judge's answers, sampled anew."""
        return self.judge.generate(prompt, rows, n=n, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)


_OWN = 1_000_000  # a file of its own, beside those of the evaluation's processes
