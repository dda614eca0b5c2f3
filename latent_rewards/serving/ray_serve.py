"""The judge server as a Ray Serve application, for several hosts: `serve run configs/serving/ray_serve.yaml`.

Ray Serve places, restarts and load-balances the replicas; each is the same server as `latent-rewards serve`.
Run with Ray 2.60, two replicas on CPU, one of them killed under load: `tests/serving/test_hosts.py`.
"""

from __future__ import annotations

import os
from typing import Any

from latent_rewards.judge.hf import HFJudge
from latent_rewards.rewards.build import build_reward
from latent_rewards.serving.app import create_app
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings


def make_app(judge: dict[str, Any], rewards: dict[str, Any], settings: dict[str, Any] | None = None) -> Any:
    """The ASGI application of one replica."""
    token = os.environ.get("LATENT_REWARDS_TOKEN") or None
    wanted = {name: dict(options or {}) for name, options in rewards.items()}
    loaded = HFJudge(**judge)
    _ = loaded.forward, loaded.fingerprint  # Ray sends requests to a replica as soon as its application is built
    return create_app(
        Service(
            [loaded],
            lambda j: {name: build_reward(name, j, **options) for name, options in wanted.items()},
            ServeSettings(**{"token": token, **(settings or {})}),
        )
    )


def application(args: dict[str, Any]) -> Any:
    """Ray Serve's application builder; `args` has `judge`, `rewards` and, if wanted, `settings`."""
    from ray import serve

    @serve.deployment  # type: ignore[untyped-decorator, unused-ignore]
    @serve.ingress(lambda: make_app(**args))
    class JudgeServer:
        """One judge on one device."""

    deployed: Any = JudgeServer
    return deployed.bind()
