"""The sentences that training a probe ends with, and what a probe says of its own rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latent_rewards.probes.examples import prompt_group
from latent_rewards.probes.seen import MOST, share_seen, sketch
from latent_rewards.probes.verdict import verdict

AHEAD, LEVEL, BEHIND, NONE = (0.2, 0.1, 0.3), (0.05, -0.05, 0.15), (-0.2, -0.3, -0.1), (0.1, None, None)


def metrics(prompted: Any, length: Any, n: int = 100) -> list[dict[str, Any]]:
    gaps = {"probe": None, "prompted": prompted, "length": length}
    return [
        {"source": "mine", "scorer": name, "n": n, "accuracy": None, "probe_minus": gap} for name, gap in gaps.items()
    ]


@pytest.mark.parametrize(
    ("prompted", "length", "said"),
    [
        (AHEAD, AHEAD, "beats the prompted score (+0.200 [+0.100, +0.300]) and length"),
        (BEHIND, AHEAD, "is below the prompted score (-0.200 [-0.300, -0.100]): use the prompted score"),
        (AHEAD, BEHIND, "is below length (-0.200 [-0.300, -0.100]): do not train on it"),
        (LEVEL, AHEAD, "not separated from the prompted score (+0.050 [-0.050, +0.150]): about 820 unseen pairs"),
        ((-0.05, -0.15, 0.05), AHEAD, "not ahead there"),
        (NONE, AHEAD, "too few to compare the probe with the prompted score"),
    ],
)
def test_each_case(prompted: Any, length: Any, said: str) -> None:
    (told,) = verdict(metrics(prompted, length))
    assert told.startswith("mine: ") and said in told


def test_few_unseen_items_are_relied_on_for_nothing() -> None:
    (told,) = verdict(metrics(LEVEL, AHEAD, n=12))
    assert "12 unseen pairs are too few to rely on (the probe minus the prompted score" in told
    assert told.endswith("give more rows, to test on 50 or more.") and "worth using" not in told
    assert "beats" in verdict(metrics(AHEAD, AHEAD, n=50))[0]


def test_unseen_rows_are_counted_by_prompt() -> None:
    rows = [row | {"prompts": 11} for row in metrics(AHEAD, AHEAD, n=66)]
    (told,) = verdict(rows)
    assert "66 unseen pairs of 11 prompts are too few to rely on" in told
    assert told.endswith("give rows of more prompts, to test on 50 or more.")
    (told,) = verdict([row | {"prompts": 60} for row in metrics(AHEAD, AHEAD, n=40)])
    assert "40 unseen pairs are too few to rely on" in told, "prompts without a pair tell nothing"
    (told,) = verdict([row | {"prompts": 50} for row in rows])
    assert "on 66 unseen pairs of 50 prompts the probe beats" in told


def test_prompts_that_were_trained_on_are_known_again() -> None:
    prompts = [f"Question {i}" for i in range(60)]
    kept = sketch(np.array([prompt_group(p) for p in prompts[:30]]))
    assert share_seen(prompts[:30], kept) == 1 and share_seen(prompts[30:], kept) == 0
    assert share_seen(prompts, kept) == 0.5 and share_seen(["question  3"], kept) == 1
    assert share_seen(prompts, None) == 0


def test_of_many_prompts_a_sample_is_kept() -> None:
    prompts = [f"Question {i}" for i in range(3 * MOST)]
    kept = sketch(np.array([prompt_group(p) for p in prompts[: 2 * MOST]]))
    assert len(kept["lowest"]) == MOST and kept["n"] == 2 * MOST
    assert share_seen(prompts[: 2 * MOST], kept) == 1 and share_seen(prompts[2 * MOST :], kept) == 0
    assert share_seen(prompts[MOST:], kept) == pytest.approx(0.5, abs=0.05)
