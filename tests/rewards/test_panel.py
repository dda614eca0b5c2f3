"""PanelReward: a regression on readings that the other rewards give, in one forward, behind engines, and by command."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from latent_rewards import HFJudge, PanelReward, ProbabilityWeightedReward, RubricReward
from latent_rewards.cli.main import app
from latent_rewards.probes.panel import Panel
from latent_rewards.probes.questions import Feature
from latent_rewards.rewards.build import build_spec
from latent_rewards.serving.server_judge import ServerJudge
from tests.contracts import UNREADABLE, FakeJudge, a_panel
from tests.engines import EngineDouble, running

PROMPTS, COMPLETIONS = ["p", "p", "q"], ["seven is prime", "eight", "no <|im_end|> idea"]


def test_the_score_is_the_regression_on_other_rewards_readings() -> None:
    judge = FakeJudge()
    panel = a_panel(judge)
    got = PanelReward(judge, panel).score(PROMPTS, COMPLETIONS)
    mean = ProbabilityWeightedReward(judge).score(PROMPTS, COMPLETIONS)
    sd = ProbabilityWeightedReward(judge, readout="sd").score(PROMPTS, COMPLETIONS)
    want = 0.75 + 0.5 * mean - 0.1 * sd
    for question, (w_mean, w_sd) in zip(panel.questions[1:], ((0.25, 0.125), (-0.5, 0.3)), strict=True):
        rubric = RubricReward(judge, criteria=[question.criterion], aggregate="log_odds")
        odds = rubric.score(PROMPTS, COMPLETIONS)
        p = 1 / (1 + np.exp(-odds))
        want = want + w_mean * odds + w_sd * np.sqrt(p * (1 - p))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    parts = PanelReward(judge, panel).explain(PROMPTS, COMPLETIONS)
    np.testing.assert_allclose([0.75 + sum(row.values()) for row in parts], got, rtol=1e-9)
    assert list(parts[0]) == [f.name for f in panel.features]


def test_one_forward_and_the_scores_of_whole_texts_read_apart(make_judge: Any) -> None:
    judge, whole = make_judge(), make_judge(share_prefixes=False)
    reward = PanelReward(judge, a_panel(judge))
    got = reward.score(PROMPTS, COMPLETIONS)
    assert judge.forwards == 1
    rows = reward.rows(PROMPTS, COMPLETIONS, {})
    apart = [whole.read([request])[0] for request in reward.requests(rows)]
    assert whole.forwards == 3
    np.testing.assert_allclose(got, reward.scores_of(rows, apart), atol=5e-5)
    alone = [float(reward.score([p], [c])[0]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(got, alone, atol=5e-5)


def test_an_unread_question_is_no_score_and_says_why() -> None:
    reward = PanelReward(FakeJudge(), a_panel(FakeJudge()))
    scores, reasons = reward.score_with_reasons(["p", "p"], ["good", UNREADABLE])
    assert np.isfinite(scores[0]) and np.isnan(scores[1]) and reasons == [None, UNREADABLE]


def test_length_is_that_of_the_text_that_is_judged() -> None:
    judge = FakeJudge()
    panel = a_panel(judge)
    one = np.ones(1)
    with_length = Panel(panel.questions, (Feature("", "length"),), one, 0 * one, one, 0.0, "fake")
    told, thought = "x" * 9, "<think>" + "y" * 100 + "</think>" + "x" * 9
    reward = PanelReward(judge, with_length)
    assert reward.score(["p"] * 2, [told, thought]) == pytest.approx([np.log(10)] * 2)
    kept = PanelReward(judge, with_length, reasoning="keep")
    assert kept.score(["p"], [thought])[0] > np.log(100)
    assert all(q.prompt.reasoning == "keep" for q in kept.panel.questions)
    assert kept.fingerprint != reward.fingerprint


def test_another_judge_is_refused_or_told_of(caplog: pytest.LogCaptureFixture) -> None:
    judge = FakeJudge()
    panel = a_panel(judge)
    judge.revision = "another"
    with pytest.raises(
        ValueError, match="has revision another, but the panel was trained on 'fake' with revision fake"
    ):
        PanelReward(judge, panel).score(["p"], ["c"])
    assert np.isfinite(PanelReward(judge, panel, strict=False).score(["p"], ["c"])).all()
    judge.revision = None
    assert np.isfinite(PanelReward(judge, panel).score(["p"], ["c"])).all() and "cannot be told" in caplog.text


def test_what_a_panel_cannot_do() -> None:
    judge = FakeJudge()
    with pytest.raises(ValueError, match="a panel needs path"):
        PanelReward(judge)
    with pytest.raises(ValueError, match="the Panel in it reads prompt 'weighted'"):
        PanelReward(judge, a_panel(judge), prompt="four_rubric")
    with pytest.raises(FileNotFoundError, match="latent-rewards panel train"):
        build_spec("panel:nowhere", judge, samples=1, temperature=1.0)


def test_it_works_behind_an_engine_where_a_probe_cannot(make_judge: Any, tmp_path: Path) -> None:
    """Trained on the judge in this process, asked of vLLM's completions endpoint: the same scores."""
    judge = make_judge()
    a_panel(judge).save(tmp_path)
    want = PanelReward(judge, str(tmp_path)).score(PROMPTS, COMPLETIONS)
    with running(EngineDouble(judge)) as url:
        remote = ServerJudge(url, engine="vllm", tokenizer=judge.encoder.tokenizer, max_length=judge.max_length)
        reward = PanelReward(remote, str(tmp_path))
        np.testing.assert_allclose(reward.score(PROMPTS, COMPLETIONS), want, atol=1e-4)
        again = pickle.loads(pickle.dumps(reward))
        np.testing.assert_allclose(again.score(PROMPTS, COMPLETIONS), want, atol=1e-4)
        (asked, *_), one = reward.panel.questions, np.ones(1)
        layers = Panel((asked,), (Feature("weighted", "raw"),), one, one, one, 0.0, "tiny")
        with pytest.raises(ValueError, match=r"needs \['layer_logits'\], which judge 'tiny' cannot give"):
            PanelReward(remote, layers)


def command(*args: object) -> Any:
    return CliRunner().invoke(app, list(map(str, args)))


def pairs_file(folder: Path, name: str, n: int = 20) -> Path:
    rows = [
        {"prompt": f"{name} {i}", "chosen": f"It is {i}. {name}", "rejected": "no " * (i % 3 + 1)} for i in range(n)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def test_train_and_show(folder: str, tmp_path: Path) -> None:
    criteria, out = tmp_path / "criteria.yaml", tmp_path / "panel"
    criteria.write_text("- {criterion: It names a number., name: number}\n- {criterion: It is wrong., weight: -1}\n")
    data = [pairs_file(tmp_path, "first"), pairs_file(tmp_path, "second")]
    args = ("--judge", folder, "--dtype", "float32", "--prompts", "weighted,verifier", "--criteria", criteria)
    done = command("panel", "train", *data, "--output", out, *args, "--statistics", "mean,sd,normed")
    assert done.exit_code == 0, done.output
    assert "| weighted/normed |" in done.output and "| all sources | panel, source left out | 40 |" in done.output
    assert "| first | criterion 2/mean | 20 |" in done.output and "| second | length | 20 |" in done.output
    reads = sorted((out / "readings").iterdir())
    shown = command("panel", "show", out)
    assert shown.exit_code == 0 and "criterion 2: prompt `criterion`" in shown.output
    assert "number: prompt `criterion`" in shown.output and "| verifier/sd |" in shown.output
    scored = PanelReward(HFJudge(folder, dtype="float32", device="cpu"), out).score(["Say 1"] * 2, ["It is 1.", "no"])
    assert np.isfinite(scored).all() and scored[0] != scored[1]
    again = command("panel", "train", *data, "--output", out, *args, "--statistics", "mean,sd,normed")
    assert again.exit_code == 0 and sorted((out / "readings").iterdir()) == reads
    other = command("panel", "train", *data, "--output", out, *args, "--statistics", "mean")
    assert other.exit_code != 0 and "it was read with other key" in other.output
    assert (
        command("panel", "train", *data, "--output", out, *args, "--statistics", "mean", "--overwrite").exit_code == 0
    )


def test_train_by_ratings_behind_a_server(make_judge: Any, tmp_path: Path) -> None:
    judge = make_judge()
    judge.encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    data, out = tmp_path / "ratings.jsonl", tmp_path / "panel"
    rows = [{"prompt": f"Say {i}", "response": "yes " * (i % 5 + 1), "score": i % 5 + 1} for i in range(15)]
    data.write_text("\n".join(json.dumps(r) for r in rows))
    with running(EngineDouble(judge)) as url:
        server = ("--server", url, "--engine", "vllm", "--judge-option", f"tokenizer={tmp_path / 'tokenizer'}")
        done = command(
            "panel", "train", data, "--output", out, "--prompts", "verifier", *server, "--length", "residual"
        )
        assert done.exit_code == 0, done.output
        both = command("panel", "train", data, "--output", out, *server, "--judge", "embedded")
        assert both.exit_code != 0 and "--judge: the server has its own judge" in both.output
    panel = Panel.load(out)
    assert [f.name for f in panel.features] == ["verifier/mean", "verifier/sd", "length"] and panel.revision is None
    assert "| ratings | panel | 15 |" in done.output and panel.training["settings"]["length"] == "residual"


def test_mistakes_are_told_before_a_judge_is_loaded(tmp_path: Path) -> None:
    data = pairs_file(tmp_path, "pairs")
    for given, said in (
        (("--statistics", "mode"), "unknown statistics ['mode']"),
        (("--prompts", "pairwise"), "compares replies"),
        (("--prompts", "nowhere"), "nowhere"),
        (("--objective", "hinge"), "objective must be one of"),
    ):
        done = command("panel", "train", data, "--output", tmp_path / "o", "--judge", "/no/such/judge", *given)
        assert done.exit_code != 0 and said in done.output, done.output
