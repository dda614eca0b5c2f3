"""Replies read after each of their steps: where steps end, what each is worth, what they are worth together."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import UNREADABLE, FakeJudge, Logs, trl_kwargs

from latent_rewards import JudgePrompt, StepReward, build_reward, track
from latent_rewards.files.sources import RowError
from latent_rewards.judge.prompts import to_text
from latent_rewards.judge.reading import Need, Request
from latent_rewards.readouts import expected_rating
from latent_rewards.rewards.step_text import joined, prefixes

STEPS = ["17 * 6 is 10 * 6 and 7 * 6.", "10 * 6 = 60 and 7 * 6 = 42.", "60 + 42 = 102."]
REPLY = "\n\n".join(STEPS)
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "mul", "arguments": "17, 6"}}]}
TURNS = [CALL, {"role": "tool", "content": "102"}, {"role": "assistant", "content": "It is 102."}]


@pytest.mark.parametrize(
    ("text", "split", "want"),
    [
        (REPLY, "paragraphs", [STEPS[0], "\n\n".join(STEPS[:2]), REPLY]),
        ("a\n \n\n b\n\n", "paragraphs", ["a", "a\n \n\n b\n\n"]),
        ("a\nb\n\nc", "lines", ["a", "a\nb", "a\nb\n\nc"]),
        ("1. a\n2) b\n\n**Step 3:** c", "numbered", ["1. a", "1. a\n2) b", "1. a\n2) b\n\n**Step 3:** c"]),
        ("All:\n1. a\nand 2 b\n2. c", "numbered", ["All:", "All:\n1. a\nand 2 b", "All:\n1. a\nand 2 b\n2. c"]),
        ("a ## b ## c", " ## ", ["a", "a ## b", "a ## b ## c"]),
        ("a.*b.*c", ".*", ["a", "a.*b", "a.*b.*c"]),
        ("one", "paragraphs", ["one"]),
        ("", "lines", [""]),
        (" \n\n", "paragraphs", [" \n\n"]),
        (TURNS, "turns", [TURNS[:2], TURNS]),
        ([{"role": "assistant", "content": "a\n\nb"}], "paragraphs",
         [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "a\n\nb"}]]),
        (TURNS, "paragraphs", [TURNS]),
    ],
)  # fmt: skip
def test_where_steps_end(text: Any, split: str, want: list[Any]) -> None:
    assert prefixes(text, split) == want


def test_steps_as_the_data_gives_them() -> None:
    assert joined(STEPS) == [STEPS[0], "\n\n".join(STEPS[:2]), REPLY]
    assert joined(TURNS) == [TURNS[:1], TURNS[:2], TURNS] and joined([TURNS[:2], TURNS[2:]]) == [TURNS[:2], TURNS]
    for bad in ([], "text", None, [1], [["a"]], 7):
        with pytest.raises(ValueError, match="steps must be a list of texts or of messages"):
            joined(bad)


@pytest.mark.parametrize("name", ["progress", "step_correct"])
def test_each_step_as_if_its_beginning_were_read_alone(make_judge: Any, name: str) -> None:
    judge, alone, prompt = make_judge("llama"), make_judge("llama"), JudgePrompt.load(name)
    reward = StepReward(judge, prompt=name)
    got = reward.score_steps(["What is 17 * 6?", "Say hello."], [REPLY, "Hello."])
    assert [len(x) for x in got] == [3, 1]
    for text, value in zip([*prefixes(REPLY, "paragraphs"), "Hello."], np.concatenate(got), strict=True):
        row = {"prompt": "Say hello." if text == "Hello." else "What is 17 * 6?", "completion": text}
        (reading,) = alone.read([Request(prompt, [row], Need(labels=True))])
        assert float(expected_rating(reading.label_logprobs, prompt.labels.values)) == pytest.approx(value, abs=2e-4)  # type: ignore[union-attr]
    np.testing.assert_allclose(track(judge, "What is 17 * 6?", STEPS, with_prompt=name), got[0], atol=1e-4)
    np.testing.assert_allclose(track(judge, "What is 17 * 6?", REPLY, with_prompt=name), got[0], atol=1e-4)


def test_task_and_reply_run_once(make_judge: Any) -> None:
    judge, alone = make_judge("llama"), make_judge("llama")
    steps = [f"Step {i}: " + "so it goes on and on " * 12 for i in range(10)]
    track(judge, "What is 17 * 6? " * 10, steps)
    for i in range(10):
        track(alone, "What is 17 * 6? " * 10, ["\n\n".join(steps[: i + 1])])
        alone.forward.cache.clear()
    assert alone.forward.tokens_run > 3 * judge.forward.tokens_run


def test_aggregates_by_hand() -> None:
    judge, prompts = FakeJudge(), ["p"]
    s = StepReward(judge).score_steps(prompts, [REPLY])[0]
    want = {"last": s[2], "min": s.min(), "mean": s.mean(), "product": (s / 10).prod(), "rise": s[2] - s[0]}
    for aggregate, value in want.items():
        reward = StepReward(judge, aggregate=aggregate)  # type: ignore[arg-type]
        assert reward.score(prompts, [REPLY])[0] == pytest.approx(value)
        low, high = reward.bounds  # type: ignore[misc]
        assert low <= value <= high
    assert StepReward(judge, aggregate="rise").bounds == (-10, 10)
    assert StepReward(judge, aggregate="rise").score(prompts, ["One step."])[0] == 0


def test_a_step_that_cannot_be_read_is_named() -> None:
    for aggregate in ("last", "min", "mean", "product", "rise"):
        reward = StepReward(FakeJudge(), aggregate=aggregate)  # type: ignore[arg-type]
        scores, reasons = reward.score_with_reasons(["p", "p"], [f"a\n\n{UNREADABLE}\n\nc", "a\n\nb"])
        assert np.isnan(scores[0]) and np.isfinite(scores[1])
        assert reasons == [f"step 2 of 3: {UNREADABLE}", None]
    reward = StepReward(FakeJudge(), steps_column="moves")
    with pytest.raises(RowError, match="row 1: steps must be a list"):
        reward.score(["p", "p"], ["", ""], moves=[["a"], []])


def test_thoughts_are_set_aside_or_are_the_steps(make_judge: Any) -> None:
    judge, reply = FakeJudge(), "<think>one\n\ntwo</think>\n\na\n\nb"
    plain, only = StepReward(judge), StepReward(judge, reasoning="only")
    np.testing.assert_array_equal(plain.score_steps(["p"], [reply])[0], plain.score_steps(["p"], ["a\n\nb"])[0])
    shown = [to_text(t["completion"]) for t in only.requests([{"prompt": "p", "completion": reply}])[0].rows]
    assert shown == ["one", "one\n\ntwo"] and len(only.score_steps(["p"], [reply])[0]) == 2
    scores, reasons = StepReward(make_judge("llama")).score_with_reasons(["p"], ["<think>one\n\ntwo"])
    assert np.isnan(scores[0]) and "thought" in str(reasons[0])


def test_what_a_trainer_sees() -> None:
    logs, reward = Logs(), StepReward(FakeJudge(), name="way")
    out = reward(prompts=["p", "p"], completions=[REPLY, "x"], **trl_kwargs(2, logs))
    curves = [json.loads(c) for c in logs.extra["way/steps"]]
    assert [len(c) for c in curves] == [3, 1] and curves[0][-1] == pytest.approx(out[0], abs=1e-4)
    assert logs.metrics["way/steps"] == 2.0
    assert pickle.loads(pickle.dumps(reward)).score(["p"], [REPLY])[0] == out[0]
    for options, message in (({"aggregate": "sum"}, "aggregate must be one of"), ({"split": ""}, "split must name")):
        with pytest.raises(ValueError, match=message):
            build_reward("steps", FakeJudge(), **options)


def test_the_recipe_draws_the_curves(folder: str, tmp_path: Path, capsys: Any) -> None:
    from recipes.track import TrackArguments, main

    rows = [{"prompt": "What is 17 * 6?", "steps": STEPS}, {"prompt": "Say hello.", "completion": "Hello.\n\nBye."}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    main(TrackArguments(input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"), judge=folder, dtype="float32"))
    made = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert [len(r["curve"]) for r in made] == [3, 2] and (tmp_path / "out" / "curves.png").stat().st_size > 5000
    assert capsys.readouterr().out.startswith("2 trajectories, 5 steps, mean at the end ")
