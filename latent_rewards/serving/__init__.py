"""One judge for every rank and every stack: an HTTP server, its client, and adapters for RL stacks.

Begin at `service` (what is done with a request) and `server_judge` (`ServerJudge`, a judge like any other). `app` is
the HTTP around the first, `batching` its queue, `engines` reads from other servers, `adapters` serves other RL stacks,
with `client` alone, which needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latent_rewards.serving.transport import JudgeServerError

if TYPE_CHECKING:
    from latent_rewards.serving.server_judge import ServerJudge

__all__ = ["JudgeServerError", "ServerJudge"]


def __getattr__(name: str) -> Any:
    if name != "ServerJudge":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from latent_rewards.serving.server_judge import ServerJudge
    except ModuleNotFoundError as err:
        if err.name not in ("torch", "transformers"):
            raise
        from latent_rewards.compat import NEEDS_JUDGE

        raise ImportError(f"ServerJudge reads tensors; {NEEDS_JUDGE}; RewardClient needs neither") from err
    return ServerJudge
