"""What OpenRLHF is told as `scores`: 0..1 by the reward's own bounds, or nothing; ground truth on these routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import FakeJudge, options_for

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from latent_rewards import RubricReward, VerifierReward, build_reward
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


WITH_REFERENCE = (
    "kind: label\nsystem: You judge.\nbody: |\n  {{ prompt }} ({{ reference }}, {{ tone }})\n"
    "  {{ completion }}\n  Right?\n"
    "optional: [reference, tone]\nlabels: {'yes': 1, 'no': 0}\nspellings: {'yes': ['Yes'], 'no': ['No']}\n"
)


def test_labels_and_metadata_become_slots(tmp_path: Path) -> None:
    """A prompt with {{ reference }} and a slot of its own, and rubric lists, by OpenRLHF's and slime's routes."""
    from fastapi.testclient import TestClient

    from latent_rewards.serving.app import create_app

    path = tmp_path / "with_reference.yaml"
    path.write_text(WITH_REFERENCE)
    rubrics = [{"criterion": "It says eight.", "points": 2}, {"criterion": "It is short.", "points": 1}]
    truth = {"reference": "8", "tone": "dry", "rubrics": rubrics}

    def build(judge: Any) -> dict[str, Any]:
        return {"right": VerifierReward(judge, prompt=path), "listed": RubricReward(judge)}

    right, listed = build(FakeJudge()).values()
    prompts, completions = ["How many?"], ["Eight."]
    full = pytest.approx(float(right.score(prompts, completions, reference=["8"], tone=["dry"])[0]))
    plain = pytest.approx(float(right.score(prompts, completions, reference=["8"])[0]))
    alone = pytest.approx(float(listed.score(prompts, completions, rubrics=[rubrics])[0]))
    points = pytest.approx(float(listed.score(prompts, completions, rubrics=[rubrics], reference=["8"])[0]))
    assert float(listed.score(prompts, completions, rubrics=[rubrics])[0]) != points
    assert float(right.score(prompts, completions)[0]) not in (full, plain), "the reference is read"
    with TestClient(create_app(Service([FakeJudge()], build, ServeSettings(linger=0.0)))) as http:  # type: ignore[list-item]

        def openrlhf(name: str, label: object) -> Any:
            body = {"query": ["How many?Eight.</s>"], "prompts": prompts, "labels": [label]}
            return http.post(f"/get_reward?reward={name}", json=body).json()["rewards"][0]

        def slime(name: str, label: object, **more: object) -> Any:
            body = {"prompt": prompts[0], "response": "Eight.</s>", "label": label, **more}
            return http.post(f"/remote_rm?reward={name}", json=body).json()

        for ask in (openrlhf, slime):
            assert ask("right", "8") == plain
            for label in (truth, json.dumps(truth)):
                assert ask("right", label) == full and ask("listed", label) == points
        assert slime("listed", None, metadata={"rubrics": rubrics}) == alone
        assert slime("listed", "8")["error"]["type"] == "bad_row", "no list, no score"


@pytest.mark.parametrize(("content", "same"), [([{"type": "text", "text": "Seven."}], "Seven."), (None, "")])
def test_answers_of_text_parts_or_without_content_score_as_their_text(content: object, same: str) -> None:
    from fastapi.testclient import TestClient

    from latent_rewards.serving.app import create_app

    def dialogue(said: object) -> str:
        return json.dumps([{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": said}])

    reward = build_reward("weighted", FakeJudge())
    want = [pytest.approx(float(reward.score(["Name a prime."], [same])[0]))]
    service = Service([FakeJudge()], lambda j: {"weighted": build_reward("weighted", j)}, ServeSettings(linger=0.0))
    with TestClient(create_app(service)) as http:  # type: ignore[list-item]
        assert http.post("/llama_factory", json={"messages": [dialogue(content)]}).json()["scores"] == want
        assert http.post("/classify", json={"input": dialogue(content)}).json()["data"][0]["probs"] == want
        refused = http.post("/classify", json={"input": [dialogue("x"), dialogue(3)]})
        assert refused.status_code == 422 and refused.json()["error"]["row"] == 1
