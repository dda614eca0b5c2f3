"""Best-of-N over files of any size: generate, score, select; sharded, resumable, exactly once.

Begin at `run` (the whole of it) and `config`. `groups` makes prompts with completions of rows, `plan` cuts them into
shards, `shards` hands these out, `work` generates (`generation`, `servers`) and scores one, `finish` joins and selects
(`picks`); `selection` and `choice_of_n` are the equations.
"""

from latent_rewards.best_of_n.config import BestOfNConfig, Selection
from latent_rewards.best_of_n.run import best_of_n

__all__ = ["BestOfNConfig", "Selection", "best_of_n"]
