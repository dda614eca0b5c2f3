"""The load report says what is used; a judge that is about to say something else than a label is told, once."""

import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from latent_rewards import HFJudge, JudgePrompt, Need, ProbabilityWeightedReward, Request
from latent_rewards.cli.main import app
from latent_rewards.judge import describe, spent
from latent_rewards.judge.reading import Reading

ROW = {"prompt": "Name a prime.", "completion": "7"}


def lines(text):
    return {line.split(":")[0]: line.split(":", 1)[1].strip() for line in text.splitlines() if not line.startswith(" ")}


def test_one_screen_that_says_what_is_used(make_judge):
    judge = make_judge("llama", max_length=900, on_overflow="truncate")
    text = judge.describe("verifier")
    facts = lines(text)
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 120
    assert facts["texts"].startswith("shared prefixes") and facts["head"] == "its rows, in float32"
    assert facts["longest text"] == "900 tokens; of longer ones: truncate"
    assert facts["system role"] == "its own" and "enable_thinking" in facts["thought"]
    assert facts["prompt"].startswith("verifier: yes, no") and "float32, cpu" in facts["model"]


def test_it_tells_of_windows_merged_system_turns_and_digits(make_judge):
    facts = lines(make_judge("mistral", "metaspace").describe())
    assert facts["texts"].startswith("shared prefixes") and facts["system role"] == "merged into the user turn"
    assert "of several tokens: '10'" in facts["prompt"]


def test_scores_and_distance_are_those_of_a_plain_forward(make_judge):
    judge = make_judge("qwen3")
    text = judge.describe("weighted")
    reward = ProbabilityWeightedReward(judge)
    (score,) = reward.score([describe._TASK], [describe._ANSWERS[1]])
    assert f"{describe._ANSWERS[1]!r}: score {score:.3g}," in text
    assert float(lines(text)["plain forward"].split()[2]) < 1e-4


def test_a_wrong_reading_would_show(make_judge, monkeypatch):
    judge = make_judge("qwen3")
    read = HFJudge.read

    def off(self, requests):
        (got,) = read(self, requests)
        n = torch.arange(len(got))[:, None]
        return [Reading(got.label_logprobs + 0.5 * n, got.label_mass, reasons=got.reasons)]

    monkeypatch.setattr(HFJudge, "read", off)
    assert float(lines(judge.describe("weighted"))["plain forward"].split()[2]) > 0.9


def test_low_mass_is_told_once_for_each_prompt(make_judge, caplog):
    judge = make_judge("llama")
    with caplog.at_level(logging.WARNING, "latent_rewards"):
        for name in ("weighted", "weighted", "verifier"):
            (reading,) = judge.read([Request(JudgePrompt.load(name), [ROW], ProbabilityWeightedReward(judge).need)])
            assert float(reading.label_mass) < describe.LOW_MASS
            judge.forget()
    told = [r.getMessage() for r in caplog.records if "labels hold" in r.getMessage()]
    assert len(told) == 2 and "'weighted'" in told[0] and "'verifier'" in told[1]
    assert "WARNING" in lines(judge.describe())


def test_mass_that_is_there_is_not_told(make_judge, caplog, monkeypatch):
    judge = make_judge("llama")
    monkeypatch.setattr(describe, "LOW_MASS", 0.0)
    with caplog.at_level(logging.WARNING, "latent_rewards"):
        ProbabilityWeightedReward(judge).score(["Name a prime."], ["7"])
    assert "labels hold" not in caplog.text and "WARNING" not in lines(judge.describe())


def test_a_prompt_that_is_sampled_has_nothing_to_describe(make_judge):
    with pytest.raises(ValueError, match="no labels to read"):
        make_judge("llama").describe("likert5")


def test_the_command_prints_a_report_for_each_prompt(folder):
    done = CliRunner().invoke(
        app, ["score", "--describe", "--judge", folder, "--reward", "weighted", "--reward", "verifier"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.count("plain forward:") == 2 and "verifier: yes, no" in done.stdout
    assert CliRunner().invoke(app, ["score", "--judge", folder]).exit_code == 2


def test_texts_that_are_too_long_for_a_self_check_are_named(make_judge):
    facts = lines(make_judge("llama", max_length=30).describe("verifier"))
    assert "this judge reads at most" in facts["WARNING"] and "plain forward" not in facts


def test_the_self_check_compares_the_texts_that_were_read(make_judge):
    long = make_judge("llama")
    n = max(len(e.ids) for e in long.encoder.encode(
        [JudgePrompt.load("verifier").render({"prompt": describe._TASK, "completion": describe._ANSWERS[0]})]
    ))  # fmt: skip
    judge = make_judge("llama", max_length=n - 4, on_overflow="truncate")
    assert float(lines(judge.describe("verifier"))["plain forward"].split()[2]) < 1e-4


def test_what_a_judge_spends_is_split(make_judge, monkeypatch):
    judge, clock = make_judge("llama"), iter(range(1000))
    prompt, rows = JudgePrompt.load("weighted"), [{"prompt": "Name a prime.", "completion": c} for c in ("7", "9")]
    assert judge.forward.usable  # loading is not counted
    monkeypatch.setattr(spent, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    judge.read([Request(prompt, rows, Need(labels=True))])
    assert (judge.spent.encoding, judge.spent.forward, judge.spent.readout) == (1, 1, 1)
    judge.read([Request(prompt, rows, Need(labels=True))])  # remembered: encoded, no more
    assert (judge.spent.encoding, judge.spent.forward, judge.spent.readout) == (2, 1, 1)
    assert str(judge.spent) == "encoding 2.00 s (50%), forward 1.00 s (25%), readout 1.00 s (25%)"
    assert lines(judge.describe(prompt))["time so far"].startswith("encoding 3.00 s") and judge.spent.forward == 2
    assert pickle.loads(pickle.dumps(HFJudge("somewhere"))).spent.total == 0
