"""Deterministic, fine-grained rewards from the probabilities and hidden states of a frozen judge model."""

from latent_rewards.judge.hf import HFJudge, Judge, Need, Reading, Request
from latent_rewards.judge.labels import Labels
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.probes.probe import Probe
from latent_rewards.rewards.base import AsyncReward, MissingScoreError, Reward
from latent_rewards.rewards.build import build_reward
from latent_rewards.rewards.composite import ContrastiveReward, EnsembleReward
from latent_rewards.rewards.guarded import GuardedReward
from latent_rewards.rewards.latent import CrossLayerReward, ProbabilityWeightedReward, VerifierReward
from latent_rewards.rewards.likert import GuidedLikertReward, LikertReward
from latent_rewards.rewards.probe import ProbeReward

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
    "LikertReward",
    "MissingScoreError",
    "Need",
    "ProbabilityWeightedReward",
    "Probe",
    "ProbeReward",
    "Reading",
    "Request",
    "Reward",
    "VerifierReward",
    "build_reward",
]

__version__ = "0.1.0"
