"""One judge for every rank and every stack: an HTTP server, its client, and adapters for RL stacks.

Begin at `service` (what is done with a request) and `client` (`ServerJudge`, a judge like any other). `app` is the
HTTP around the first, `batching` its queue, `engines` reads from other servers, `adapters` serves other RL stacks.
"""

from latent_rewards.serving.client import JudgeServerError, ServerJudge

__all__ = ["JudgeServerError", "ServerJudge"]
