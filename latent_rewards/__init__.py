"""Deterministic, fine-grained rewards from the probabilities and hidden states of a frozen judge model.

Begin at `rewards` (what a trainer calls), `judge` (what is read) and `readouts` (the equations). Names are loaded when
they are first used, so that the command line and the clients of a judge server start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latent_rewards.version import __version__ as __version__

if TYPE_CHECKING:
    from latent_rewards.judge.hf import HFJudge
    from latent_rewards.judge.labels import Labels
    from latent_rewards.judge.prompts import JudgePrompt
    from latent_rewards.judge.reading import Judge, Need, Reading, Request
    from latent_rewards.probes.probe import Probe
    from latent_rewards.rewards.base import AsyncReward, MissingScoreError, Reward
    from latent_rewards.rewards.build import build_reward
    from latent_rewards.rewards.compare import compare
    from latent_rewards.rewards.composite import ContrastiveReward
    from latent_rewards.rewards.cross_layer import CrossLayerReward
    from latent_rewards.rewards.ensemble import EnsembleReward
    from latent_rewards.rewards.guarded import GuardedReward
    from latent_rewards.rewards.latent import ProbabilityWeightedReward, VerifierReward
    from latent_rewards.rewards.likelihood import LikelihoodReward
    from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward
    from latent_rewards.rewards.pairwise import PairwiseReward
    from latent_rewards.rewards.panel import PanelReward
    from latent_rewards.rewards.probe import ProbeReward
    from latent_rewards.rewards.rubric import RubricReward
    from latent_rewards.rewards.select import select
    from latent_rewards.rewards.steps import StepReward, track

__all__ = [
    "AsyncReward",
    "ContrastiveReward",
    "CrossLayerReward",
    "EnsembleReward",
    "GuardedReward",
    "GuidedLikertReward",
    "HFJudge",
    "Judge",
    "JudgePrompt",
    "Labels",
    "LikelihoodReward",
    "LikertReward",
    "MissingScoreError",
    "Need",
    "PairwiseReward",
    "PanelReward",
    "ProbabilityWeightedReward",
    "Probe",
    "ProbeReward",
    "Reading",
    "Request",
    "Reward",
    "RubricReward",
    "StepReward",
    "VerifierReward",
    "build_reward",
    "compare",
    "select",
    "track",
]

_HOMES = {
    "judge.hf": ("HFJudge",),
    "judge.labels": ("Labels",),
    "judge.prompts": ("JudgePrompt",),
    "judge.reading": ("Judge", "Need", "Reading", "Request"),
    "probes.probe": ("Probe",),
    "rewards.base": ("AsyncReward", "MissingScoreError", "Reward"),
    "rewards.build": ("build_reward",),
    "rewards.compare": ("compare",),
    "rewards.composite": ("ContrastiveReward",),
    "rewards.ensemble": ("EnsembleReward",),
    "rewards.guarded": ("GuardedReward",),
    "rewards.cross_layer": ("CrossLayerReward",),
    "rewards.latent": ("ProbabilityWeightedReward", "VerifierReward"),
    "rewards.likelihood": ("LikelihoodReward",),
    "rewards.likert": ("GuidedLikertReward", "LikertReward"),
    "rewards.pairwise": ("PairwiseReward",),
    "rewards.panel": ("PanelReward",),
    "rewards.probe": ("ProbeReward",),
    "rewards.rubric": ("RubricReward",),
    "rewards.select": ("select",),
    "rewards.steps": ("StepReward", "track"),
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    except ModuleNotFoundError as err:
        if err.name not in ("torch", "transformers"):
            raise
        from latent_rewards.compat import NEEDS_JUDGE

        raise ImportError(f"{name}: {NEEDS_JUDGE}") from err
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
