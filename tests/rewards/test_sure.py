"""How sure a judge is: readouts of a label distribution by hand, rewards made of them, and a choice of candidates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import UNREADABLE, FakeJudge, Logs, trl_kwargs
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from latent_rewards import ProbabilityWeightedReward, RubricReward, VerifierReward, build_reward, readouts, select
from latent_rewards.cli.main import app

P = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]])
LOGP, VALUES = P.log(), (0.0, 5.0, 10.0)


def test_by_hand() -> None:
    mean = torch.tensor([8.0, 2.5, 5.0])
    var = torch.tensor([0.1 * 64 + 0.2 * 9 + 0.7 * 4, 6.25, 12.5])
    torch.testing.assert_close(readouts.variance(LOGP, VALUES), var)
    torch.testing.assert_close(readouts.lower_bound(LOGP, VALUES, 2.0), mean - 2 * var.sqrt())
    want = [-(0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.7 * math.log(0.7)), math.log(2), 1.5 * math.log(2)]
    torch.testing.assert_close(readouts.entropy(LOGP), torch.tensor(want))
    assert readouts.mode(LOGP, VALUES).tolist() == [10, 0, 5], "of equals the lowest"
    assert readouts.quantile(LOGP, VALUES).tolist() == [10, 0, 5]
    assert readouts.quantile(LOGP, VALUES, 0.25).tolist() == [5, 0, 0]
    assert readouts.quantile(LOGP, VALUES, 1.0).tolist() == [10, 5, 10] or readouts.quantile(LOGP, VALUES, 1.0)[0] == 10
    mixed = readouts.mode(LOGP[:, [2, 0, 1]], (10.0, 0.0, 5.0))
    assert mixed.tolist() == [10, 0, 5], "in whatever order the labels stand"
    with pytest.raises(ValueError, match="0 < q <= 1"):
        readouts.quantile(LOGP, VALUES, 0.0)


def test_an_unknown_label_leaves_nothing() -> None:
    broken = torch.tensor([[0.0, float("nan"), -1.0], [-1.0, -1.0, -1.0]])
    for got in (
        readouts.variance(broken, VALUES), readouts.entropy(broken), readouts.mode(broken, VALUES),
        readouts.quantile(broken, VALUES), readouts.lower_bound(broken, VALUES),
    ):  # fmt: skip
        assert got.isnan().tolist() == [True, False]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-20, 0), min_size=3, max_size=3), st.floats(0, 4))
def test_every_readout_stays_within_its_range(logp: list[float], k: float) -> None:
    judge = FakeJudge()
    for readout in ("mean", "lower", "median", "mode", "sd"):
        reward = ProbabilityWeightedReward(judge, readout=readout, k=k, prompt="four_rubric")  # type: ignore[arg-type]
        low, high = reward.score_range
        values = reward.values
        padded = torch.tensor([logp + [-30.0] * (len(values) - 3)])
        from latent_rewards.rewards.latent import _READOUTS

        got = float(_READOUTS[readout](padded, values, k))
        assert low - 1e-4 <= got <= high + 1e-4, readout


def test_rewards_of_a_distribution() -> None:
    judge, rows = FakeJudge(), (["p"] * 3, ["a", "b", UNREADABLE])
    mean, sd = (
        ProbabilityWeightedReward(judge).score(*rows),
        ProbabilityWeightedReward(judge, readout="sd").score(*rows),
    )
    lower = ProbabilityWeightedReward(judge, readout="lower", k=1.5)
    np.testing.assert_allclose(lower.score(*rows)[:2], (mean - 1.5 * sd)[:2], atol=1e-5)
    assert np.isnan(lower.score(*rows)[2]) and (sd[:2] > 0).all()
    assert {ProbabilityWeightedReward(judge, readout=r).score(["p"], ["a"])[0] % 1 for r in ("median", "mode")} == {0.0}  # type: ignore[arg-type]
    assert (
        lower.__name__.startswith("weighted-lower")
        and lower.fingerprint != ProbabilityWeightedReward(judge).fingerprint
    )
    logs = Logs()
    ProbabilityWeightedReward(judge, name="w")(prompts=["p"] * 2, completions=["a", "b"], **trl_kwargs(2, logs))
    assert logs.metrics["w/uncertainty"] == pytest.approx(sd[:2].mean(), abs=1e-5)
    logs = Logs()
    p = VerifierReward(judge).score(["p"], ["a"])[0]
    VerifierReward(judge, name="v")(prompts=["p"], completions=["a"], **trl_kwargs(1, logs))
    assert logs.metrics["v/uncertainty"] == pytest.approx(math.sqrt(p * (1 - p)), abs=1e-5)
    for options, message in (({"readout": "max"}, "readout must be one of"), ({"k": -1}, "at least 0")):
        with pytest.raises(ValueError, match=message):
            build_reward("weighted", judge, **options)


def test_a_column_beside_each_score(folder: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": "Name a prime.", "completion": c}) + "\n" for c in ("7", "Nine.")))
    command = ["score", "--judge", folder, "--dtype", "float32", "--input", str(source), "--output"]
    done = CliRunner().invoke(
        app, [*command, str(tmp_path / "out.jsonl"), "--reward", "weighted", "--with-uncertainty"]
    )
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(0 < r["weighted_sd"] <= 5 and 0 <= r["weighted"] <= 10 for r in rows)
    refused = CliRunner().invoke(
        app, [*command, str(tmp_path / "no.jsonl"), "--reward", "likert5", "--with-uncertainty"]
    )
    assert refused.exit_code == 2 and "for the rewards weighted and verifier" in refused.output


def test_select() -> None:
    judge, candidates = FakeJudge(), ["a", "b", UNREADABLE, "c"]
    scores = ProbabilityWeightedReward(judge).score(["p"] * 4, candidates)
    best = select(judge, "p", candidates)
    assert best.index == int(np.nanargmax(scores)) == best.ranking[0] and 2 not in best.ranking
    assert [best.scores[i] for i in best.ranking] == sorted(scores[[0, 1, 3]], reverse=True)
    assert best.reasons[0] == {} and best.reasons[2] == {"no score": UNREADABLE}
    criteria = {"right": "It is right.", "brief": "It is short."}
    by = select(judge, "p", candidates[:2], criteria=criteria)
    items = [{"criterion": text, "name": name} for name, text in criteria.items()]
    want = RubricReward(judge, criteria=items, aggregate="mean").score(["p"] * 2, candidates[:2])
    np.testing.assert_allclose(by.scores, want)
    assert set(by.reasons[0]) == {"right", "brief"} and by.scores[0] == pytest.approx(
        np.mean([float(x) for x in by.reasons[0].values()])  # type: ignore[arg-type]
    )
    listed = select(judge, "p", candidates[:2], criteria=list(criteria.values()))
    assert listed.scores == by.scores
    with pytest.raises(ValueError, match="at least one reply"):
        select(judge, "p", [])
    with pytest.raises(ValueError, match=f"no candidate could be read; the first: {UNREADABLE}"):
        select(judge, "p", [UNREADABLE])
