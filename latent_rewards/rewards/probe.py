"""A trained probe as a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from latent_rewards.files.types import Prompt
from latent_rewards.judge.fingerprint import tensors_hash
from latent_rewards.judge.hf import Judge, Need, Reading, Request
from latent_rewards.probes.probe import Probe, check_revision
from latent_rewards.probes.seen import share_seen
from latent_rewards.rewards.base import with_prompt_of
from latent_rewards.rewards.latent import LatentReward


class ProbeReward(LatentReward):
    """Score of a trained probe; the deeper half of the judge need not run for a probe on an early layer.

    Args:
        judge: the judge that the probe was trained on, or its name.
        path: folder of a probe, "embedded" for the shipped one (with the embedded judge), or a `Probe`.
        aspect: which output of a probe with several; None is their mean.
        strict: whether another judge revision is an error; False logs a warning.
        **options: see `Reward`; the prompt is the probe's own.

    Raises:
        FileNotFoundError: no probe there.
        ValueError: another judge, prompt or aspect than the probe's; names both.

    Source: Girrbach et al. 2025, eq. 3-5.
    """

    kind: ClassVar[str] = "probe"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        path: str | Path | Probe = "embedded",
        *,
        aspect: str | None = None,
        strict: bool = True,
        **options: Any,
    ) -> None:
        self.probe = path if isinstance(path, Probe) else Probe.load(path)
        self.strict, self._verified = strict, False
        names = self.probe.config.outputs
        if aspect is not None and aspect not in names:
            raise ValueError(f"the probe has no output {aspect!r}; it has {list(names)}")
        self.columns = list(range(len(names))) if aspect is None else [names.index(aspect)]
        super().__init__(judge, **with_prompt_of(self.probe, options))

    def options(self) -> dict[str, Any]:
        """Every weight of the probe, what it reads, and which outputs count."""
        config = self.probe.config
        return {
            "architecture": config.architecture, "layers": list(config.layers), "lens": config.lens,
            "columns": self.columns, "weights": tensors_hash(self.probe.tensors),
        }  # fmt: skip

    def _prepare(self) -> None:
        if self.judge.name != self.probe.config.judge:
            self._verify()  # before the judge is told to read the probe's layers
        super()._prepare()

    @property
    def need(self) -> Need:
        """The states of the probe's layers."""
        return Need(hidden=frozenset(self.probe.config.layers), hidden_lens=self.probe.config.lens)

    def readout(self, reading: Reading) -> Tensor:
        """(B,) probe output, unbounded; for BCE the log-odds of being good."""
        return self.probe.of(reading.hidden)[:, self.columns].mean(-1)

    def requests(self, rows: Sequence[Mapping[str, Any]]) -> list[Request]:
        """As `LatentReward.requests`; the first call compares the judge with the probe's."""
        if not self._verified:
            self._verify()
        return super().requests(rows)

    def share_seen(self, prompts: Sequence[Prompt]) -> float:
        """Share of prompts that the probe was trained on, as far as it says so; see `latent_rewards.probes.seen`."""
        return share_seen(prompts, self.probe.config.training.get("prompts"))

    def _verify(self) -> None:
        check_revision(self.judge, self.probe.config, strict=self.strict)
        self._verified = True
