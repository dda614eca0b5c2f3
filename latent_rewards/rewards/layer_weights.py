"""Tuned layer weights as they are kept, and the cross-layer reward that they make."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_rewards.files import artefact
from latent_rewards.judge.hf import Judge, Lens
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.cross_layer import CrossLayerReward


@dataclass(frozen=True)
class LayerWeights:
    """Layer weights and what they belong to.

    Attributes:
        weights: (L+1,) or, with `drop_last`, (L,).
        judge: name of the judge.
        revision: its hub commit or weights hash.
        prompt_hash: hash of the judge prompt.
        lens: "raw" or "normed".
        drop_last: see `TuneOptions`.
        uniform: whether tuning did not help and the weights are uniform.
        training: figures, for the record.
    """

    weights: Tensor
    judge: str
    revision: str
    prompt_hash: str
    lens: Lens
    drop_last: bool = False
    uniform: bool = False
    training: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write layers.safetensors and layers.json."""
        about = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "weights"}
        return artefact.save(folder, "layers", about, {"weights": self.weights})

    @classmethod
    def load(cls, folder: str | Path) -> LayerWeights:
        """Read weights that `save` wrote.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: corrupt, cut short or foreign; the message starts with the file.
        """
        with artefact.opened(folder, "layers", "layer weights") as (about, tensors):
            weights = tensors["weights"]
            if weights.dim() != 1 or not torch.isfinite(weights).all():
                raise ValueError("weights must be one finite vector")
            return cls(weights, **about)

    def reward(
        self, judge: Judge, *, prompt: str | Path | JudgePrompt = "weighted", **options: Any
    ) -> CrossLayerReward:
        """The cross-layer reward with these weights.

        Raises:
            ValueError: another judge or prompt than they were tuned for (names both), or another lens.
        """
        loaded = JudgePrompt.load(prompt)
        if loaded.hash != self.prompt_hash:
            raise ValueError(f"weights were tuned for prompt {self.prompt_hash}, not {loaded.name!r} ({loaded.hash})")
        revision = judge.revision
        if revision not in (None, self.revision):
            raise ValueError(
                f"weights were tuned for {self.judge!r} ({self.revision}), not {judge.name!r} ({revision})"
            )
        own: dict[str, Any] = {"lens": self.lens, "drop_last": self.drop_last, "weights": self.weights.tolist()}
        if other := sorted(k for k in own.keys() & options.keys() if options[k] != own[k]):
            raise ValueError(f"these weights were tuned with their own {other}; leave {other} out")
        return CrossLayerReward(judge, prompt=loaded, **(options | own))
