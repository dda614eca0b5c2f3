"""One judge for every rank and every stack: an HTTP server, its client, and adapters for RL stacks."""

from latent_rewards.serving.client import JudgeServerError, ServerJudge

__all__ = ["JudgeServerError", "ServerJudge"]
