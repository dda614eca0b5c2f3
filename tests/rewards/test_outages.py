"""What a judge did not answer is kept nowhere: the same command, when it is back, reads it."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import FakeJudge

from latent_rewards import EnsembleReward, LikertReward, ProbabilityWeightedReward, RubricReward
from latent_rewards.best_of_n.config import BestOfNConfig
from latent_rewards.best_of_n.run import best_of_n
from latent_rewards.best_of_n.work import JudgeFailedError
from latent_rewards.evaluation.readings import Readings
from latent_rewards.files.cache import Cache
from latent_rewards.judge.errors import NoAnswer
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Request, unread
from latent_rewards.probes.examples import Example
from latent_rewards.probes.panel_collect import collect_readings
from latent_rewards.probes.questions import Question
from latent_rewards.rewards.response_scores import score_responses
from latent_rewards.rewards.revised import RevisedReward
from latent_rewards.serving import ServerJudge

PROMPTS, RESPONSES = ["Name a prime.", "Count."], [["Seven.", "Eight."], ["one two", "1 2"]]
ROWS = [{"prompt": p, "completion": row[0]} for p, row in zip(PROMPTS, RESPONSES, strict=True)]


class Absent(FakeJudge):
    """Does not answer while it is away, and goes on with rows unread."""

    def __init__(self) -> None:
        super().__init__(answers=("Good. [RESULT] 4",))
        self.away, self.missed = True, 0

    @property
    def outages(self) -> int:
        return self.missed

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        if not self.away:
            return super().read(requests)
        self.missed += 1
        why = NoAnswer("POST /read: 503")
        return [unread(len(r.rows), len(r.prompt.labels or ()), r.need, 0, 1, [why] * len(r.rows)) for r in requests]

    def generate(self, prompt: JudgePrompt, rows: Sequence[Any], *, n: int, **options: Any) -> list[list[str | None]]:
        if not self.away:
            return super().generate(prompt, rows, n=n, **options)
        self.missed += 1
        return [[None] * n for _ in rows]


@pytest.mark.parametrize("reward", [
    ProbabilityWeightedReward, lambda judge: LikertReward(judge, n_samples=1),
    lambda judge: RubricReward(judge, criteria=["It is right.", "It is short."]),
])  # fmt: skip
def test_scores_of_responses(tmp_path: Path, reward: Any) -> None:
    judge = Absent()
    away = score_responses([reward(judge)], PROMPTS, RESPONSES, cache=tmp_path)
    judge.away = False
    (name,) = away.scores
    assert np.isnan(away.scores[name]).all() and len(away.reasons[name]) == 4
    back = score_responses([reward(judge)], PROMPTS, RESPONSES, cache=tmp_path)
    assert np.isfinite(back.scores[name]).all() and not back.reasons[name]


def test_readings_of_an_evaluation(tmp_path: Path) -> None:
    judge = Absent()
    readings, prompt, need = Readings(judge, Cache(tmp_path)), JudgePrompt.load("weighted"), Need(labels=True)
    likert = LikertReward(judge, n_samples=1)
    for away in (True, False):
        judge.away = away
        assert sum(readings.fill([(prompt, need)], ROWS)) == sum(readings.fill_answers(likert, ROWS)) == 2
        assert readings.kept(prompt, ROWS, need).tolist() == [not away] * 2
        assert [a is None for a in readings.fetch_answers(likert, ROWS)] == [away] * 2
    judge.away = True
    assert readings.remember(likert, ROWS, "part", lambda: float(judge.generate(prompt, ROWS, n=1) is None)) == 0.0
    judge.away = False
    assert readings.remember(likert, ROWS, "part", lambda: 2.0) == 2.0
    assert readings.remember(likert, ROWS, "part", lambda: 3.0) == 2.0


def test_readings_of_a_panel(tmp_path: Path) -> None:
    judge, questions = Absent(), [Question("weighted", JudgePrompt.load("weighted"))]
    examples = [Example(row["prompt"], row["completion"], 1.0) for row in ROWS]
    (away,) = collect_readings(judge, questions, examples, folder=tmp_path)
    judge.away = False
    (back,) = collect_readings(judge, questions, examples, folder=tmp_path)
    assert all(away.reasons) and back.reasons == (None, None)


@pytest.mark.parametrize("cached", [False, True])
def test_revisions(tmp_path: Path, cached: bool) -> None:
    judge = Absent()
    inner = ProbabilityWeightedReward(judge, prompt="weighted_reference")
    reward = RevisedReward(inner, cache=tmp_path if cached else None)
    for away in (True, False):
        judge.away = away
        got = reward.score(PROMPTS, [row[0] for row in RESPONSES])
        assert np.isnan(got).all() if away else np.isfinite(got).all()


def test_best_of_n(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completions": c} for p, c in zip(PROMPTS, RESPONSES, strict=True)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = BestOfNConfig(input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"), batch_size=1, shard_size=1)
    judge = Absent()
    with pytest.raises(JudgeFailedError, match="the judge did not answer; nothing of this shard was written"):
        best_of_n(config, judge)
    judge.away = False
    counts = best_of_n(config, judge)
    assert counts["scored"] == counts["completions"] == 4


def test_servers_and_juries_count_what_they_did_not_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    remote = ServerJudge(url, deadline=0.3, on_failure="none")
    remote._info = {"judge": "far", "revision": None, "layers": 2, "width": 8, "capabilities": ["labels"]}
    remote._backend.check = lambda prompt, need: None  # type: ignore[method-assign]
    near = FakeJudge()
    ensemble = EnsembleReward([ProbabilityWeightedReward(near), ProbabilityWeightedReward(remote)], how="mean")
    assert ensemble.judge.outages == remote.outages == near.outages == 0
    ensemble.score(PROMPTS, [row[0] for row in RESPONSES])
    assert ensemble.judge.outages == remote.outages == 1 and near.outages == 0
    remote.generate(JudgePrompt.load("likert5"), ROWS, n=1, temperature=1.0, max_new_tokens=3, seed=0)
    assert remote.outages == 2
