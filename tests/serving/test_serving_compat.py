"""What OpenRLHF is told as `scores`: 0..1 by the reward's own bounds, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contracts import FakeJudge, options_for

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from latent_rewards import build_reward
from latent_rewards.serving.compat import unit_interval
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("weighted", {}), "turned": ("weighted", {"scale": -0.1, "shift": 1.0}),
    "floored": ("guarded", {"floor": -10.0}), "log_odds": ("verifier", {"output": "log_odds"}),
    "clipped": ("verifier", {"output": "log_odds", "clip": (-4.0, 4.0)}), "difference": ("contrastive", {}),
    "together": ("ensemble", {"scales": [10.0, 1.0]}), "probed": ("probe", {}),
}  # fmt: skip


def test_scores_are_in_the_unit_interval_or_left_out() -> None:
    from fastapi.testclient import TestClient

    from latent_rewards.serving.app import create_app

    fake = FakeJudge()

    def build(judge: Any) -> dict[str, Any]:
        return {n: build_reward(kind, judge, **o, **options_for(kind, fake)) for n, (kind, o) in SPECS.items()}

    with TestClient(create_app(Service([fake], build, ServeSettings(linger=0.0)))) as http:  # type: ignore[list-item]
        query = {"query": ["Name a prime.Seven."], "prompts": ["Name a prime."]}
        found = {name: http.post(f"/get_reward?reward={name}", json=query).json() for name in SPECS}
    reward = {name: answer["rewards"][0] for name, answer in found.items()}
    want = {
        "plain": reward["plain"] / 10, "turned": reward["turned"], "floored": (reward["floored"] + 10) / 20,
        "clipped": (reward["clipped"] + 4) / 8, "difference": (reward["difference"] + 10) / 20,
        "together": reward["together"],
    }  # fmt: skip
    assert {n: a["scores"][0] for n, a in found.items() if "scores" in a} == pytest.approx(want)
    assert found.keys() - want.keys() == {"log_odds", "probed"}, "these have no bounds"


def test_the_unit_interval_by_hand() -> None:
    np.testing.assert_allclose(unit_interval((-1.0, 3.0), np.array([-1.0, 0.0, 3.0000002])), [0, 0.25, 1])
    assert unit_interval(None, np.ones(1)) is None and unit_interval((1.0, 1.0), np.ones(1)) is None
