"""The rating that all layers give together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latent_rewards import readouts
from latent_rewards.files.types import number
from latent_rewards.judge.hf import Judge, Lens, Need, Reading
from latent_rewards.rewards.latent import LatentReward


class CrossLayerReward(LatentReward):
    """Expected rating of label logits averaged over all layers (uniform weights unless given).

    Args:
        judge: a judge, or a model name.
        lens: "normed" (through the final norm) or "raw" (as the published code does).
        weights: (L+1,) layer weights, or (L,) with `drop_last`; None is uniform.
        drop_last: leave out the last layer, as the published code does.
        **options: see `Reward`.

    Source: Lai et al. 2025 (LAGER).
    """

    kind = "cross_layer"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        lens: Lens = "normed",
        weights: Sequence[float] | None = None,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        if lens not in ("raw", "normed"):
            raise ValueError(f"lens must be 'raw' or 'normed', got {lens!r}")
        self.lens, self.drop_last = lens, drop_last
        self.weights = None if weights is None else [number(w, f"layer weight {i}") for i, w in enumerate(weights)]
        super().__init__(judge, **options)

    def _default_name(self) -> str:
        return super()._default_name() + ("-raw" if self.lens == "raw" else "")

    def options(self) -> dict[str, Any]:
        """Lens and layer weights."""
        return {"lens": self.lens, "weights": self.weights, "drop_last": bool(self.drop_last)}

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest label value."""
        return self._label_range()

    @property
    def need(self) -> Need:
        """Labels on every layer."""
        return Need(labels=True, layer_logits=frozenset({self.lens}))

    def readout(self, reading: Reading) -> Tensor:
        """(B,) rating points."""
        weights = None if self.weights is None else torch.tensor(self.weights)
        logits = reading.layer_label_logits[self.lens]
        return readouts.cross_layer(logits, self.values, weights=weights, drop_last=self.drop_last)
