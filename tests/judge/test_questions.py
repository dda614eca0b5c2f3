"""A question in one's own words, asked through a shipped prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts import FakeJudge

from latent_rewards import HFJudge, JudgePrompt, ProbabilityWeightedReward, VerifierReward
from latent_rewards.judge.questions import with_question
from latent_rewards.rewards.build import build_reward, read_rewards


def test_the_question_is_replaced_and_nothing_else() -> None:
    shipped = JudgePrompt.load("verifier")
    own = with_question(shipped, "Is the reply polite?")
    head, _, tail = shipped.body.rpartition("### Question\n")
    assert own.body == f"{head}### Question\nIs the reply polite? Answer with one word, Yes or No.\n"
    assert tail not in own.body and own.labels == shipped.labels and own.system == shipped.system
    assert own.name == "is-the-reply-polite" and own.hash != shipped.hash


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("How polite is it?", "How polite is it? Rate it from 0 (not at all) to 10 (fully). Answer with"),
        ("How polite is it, from 0 (rude) to 10?", "How polite is it, from 0 (rude) to 10? Answer with"),
    ],
)
def test_a_question_for_a_rating_names_the_range(question: str, asked: str) -> None:
    assert asked in with_question(JudgePrompt.load("weighted"), question).body


@pytest.mark.parametrize(
    ("prompt", "question", "error", "message"),
    [
        ("likert10", "Is it polite?", ValueError, "no question that could be replaced"),
        ("verifier", " ", ValueError, "empty"),
        ("verifier", "Is {{ reference }} in it?", ValueError, "no slots"),
        ("verifier", ["Is it?"], TypeError, "must be text"),
    ],
)
def test_what_cannot_be_asked(prompt: str, question: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        with_question(JudgePrompt.load(prompt), question)


def test_the_same_as_a_prompt_file_of_ones_own(folder: str, tmp_path: Path) -> None:
    judge = HFJudge(folder, dtype="float32", device="cpu")
    text = Path(JudgePrompt.load("verifier").path).read_text()
    old = "Is this a good reply to the task: correct, helpful, and what was asked for?"
    (tmp_path / "polite.yaml").write_text(text.replace(old, "Is the reply polite?"))
    given = ["Hello?", "Hello?"], ["Good morning!", "Go away."]
    want = VerifierReward(judge, prompt=tmp_path / "polite.yaml").score(*given)
    np.testing.assert_array_equal(VerifierReward(judge, question="Is the reply polite?").score(*given), want)
    assert (VerifierReward(judge).score(*given) != want).all()


def test_rewards_of_a_question() -> None:
    judge = FakeJudge()
    polite = VerifierReward(judge, question="Is the reply polite?")
    assert polite.__name__ == "verifier-is-the-reply-polite"
    assert polite.fingerprint != VerifierReward(judge).fingerprint
    assert "How funny is it?" in ProbabilityWeightedReward(judge, question="How funny is it?").prompt.body
    guarded = build_reward("guarded", judge, of="verifier", question="Is the reply polite?")
    assert "Is the reply polite?" in guarded.prompt.body
    gated = build_reward("guarded", judge, gate={"reward": "verifier"}, gate_below=0.5, question="How funny is it?")
    assert "How funny is it?" in gated.prompt.body and "How funny" not in gated.gate.prompt.body


def test_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text('polite: {reward: verifier, question: "Is the reply polite?"}\n')
    (one,) = read_rewards(tmp_path / "r.yaml")
    name, options = one.parsed()
    assert "Is the reply polite?" in build_reward(name, FakeJudge(), **options).prompt.body
