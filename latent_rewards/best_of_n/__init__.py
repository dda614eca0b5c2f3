"""Best-of-N over files of any size: generate, score, select; sharded, resumable, exactly once."""

from latent_rewards.best_of_n.config import BestOfNConfig, Selection
from latent_rewards.best_of_n.run import best_of_n

__all__ = ["BestOfNConfig", "Selection", "best_of_n"]
