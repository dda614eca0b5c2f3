"""Ensembles on one judge and on several: read at the same time, standardised, and what a judge that is away means."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import UNREADABLE, FakeJudge, Logs, trl_kwargs
from servers import environment, free_port

from latent_rewards import (
    ContrastiveReward,
    CrossLayerReward,
    EnsembleReward,
    GuardedReward,
    HFJudge,
    PairwiseReward,
    ProbabilityWeightedReward,
    Reading,
    Request,
    VerifierReward,
    build_reward,
)
from latent_rewards.judge.opening import open_judge
from latent_rewards.rewards.ensemble import combined
from latent_rewards.rewards.jury import Addressed, Jury
from latent_rewards.rewards.standard import Moments, Standard
from latent_rewards.serving.transport import JudgeServerError

PROMPTS = ["Name a prime.", "Say hello.", "Name a prime.", "Count."]
COMPLETIONS = ["Seven.", "hello", "Eight.", "one two three"]
RANKS = Path(__file__).parents[1] / "jury_ranks.py"


class Other(FakeJudge):
    """A judge of another opinion, that can be away, and that tells how it was asked."""

    def __init__(self, name: str = "other", **options: Any) -> None:
        super().__init__(**options)
        self.name = self.fingerprint = name
        self.failure: Exception | None = None
        self.calls: list[int] = []
        self.before: Any = None

    def logits(self, prompt: Any, row: Any) -> Any:
        return super().logits(prompt, {**row, "prompt": f"{self.name} {row['prompt']}"})

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        assert all(type(r) is Request for r in requests), "an address is of no concern to a judge"
        self.calls.append(len(requests))
        if self.before is not None:
            self.before()
        if self.failure is not None:
            raise self.failure
        return super().read(requests)


def jury(**options: Any) -> tuple[list[Any], EnsembleReward]:
    """Three members on two judges."""
    a, b = Other("a"), Other("b")
    members = [ProbabilityWeightedReward(a), VerifierReward(b), CrossLayerReward(a)]
    return [a, b], EnsembleReward(members, **{"how": "mean", **options})


def alone(ensemble: EnsembleReward) -> np.ndarray:
    return np.stack([member.score(PROMPTS, COMPLETIONS) for member in ensemble.rewards])


@pytest.mark.parametrize("how", ["min", "mean", "median", "weighted"])
def test_members_on_several_judges_by_hand(how: Any) -> None:
    weights = [1.0, 2.0, 5.0] if how == "weighted" else None
    location, scales = [5.0, 0.5, 4.0], [2.0, 0.25, 1.0]
    judges, ensemble = jury(how=how, weights=weights, location=location, scales=scales)
    z = (alone(ensemble) - np.array(location)[:, None]) / np.array(scales)[:, None]
    want = {
        "min": z.min(0),
        "mean": z.mean(0),
        "median": np.sort(z, 0)[1],
        "weighted": (z[0] + 2 * z[1] + 5 * z[2]) / 8,
    }
    for judge in judges:
        judge.calls.clear()
    np.testing.assert_allclose(ensemble.score(PROMPTS, COMPLETIONS), want[how], rtol=1e-12)
    assert [judge.calls for judge in judges] == [[2], [1]], "one call for each judge, with all that it is asked"
    again = pickle.loads(pickle.dumps(ensemble))
    np.testing.assert_array_equal(again.score(PROMPTS, COMPLETIONS), ensemble.score(PROMPTS, COMPLETIONS))
    assert again.fingerprint == ensemble.fingerprint and again.rewards[0].judge is again.rewards[2].judge
    low, high = ensemble.bounds or (0, 0)
    assert low <= z.min() and high >= want[how].max()


def test_judges_are_read_at_the_same_time() -> None:
    """Neither read ends before the other has begun."""
    judges, ensemble = jury()
    meet = threading.Barrier(2, timeout=20)
    for judge in judges:
        judge.before = meet.wait
    assert np.isfinite(ensemble.score(PROMPTS, COMPLETIONS)).all()


def test_members_on_one_judge_are_no_jury_and_their_numbers_stay() -> None:
    judge = FakeJudge()
    members = [ProbabilityWeightedReward(judge), VerifierReward(judge)]
    ensemble = EnsembleReward(members, location=[5, 0.5], scales=[2, 0.25])
    assert ensemble.judge is judge
    assert set(ensemble.options()) == {"rewards", "how", "location", "scales"}, "kept scores are found again"
    parts = [(m.score(PROMPTS, COMPLETIONS) - at) / by for m, at, by in zip(members, [5, 0.5], [2, 0.25], strict=True)]
    np.testing.assert_array_equal(ensemble.score(PROMPTS, COMPLETIONS), np.stack(parts).min(0))


def test_a_row_that_one_judge_cannot_read_has_no_score_either_way() -> None:
    for missing in ("none", "without"):
        _, ensemble = jury(missing=missing)
        scores, why = ensemble.score_with_reasons(PROMPTS, [*COMPLETIONS[:3], UNREADABLE])
        assert np.isnan(scores[3]) and np.isfinite(scores[:3]).all()
        assert why[3] == f"judge 'a': {UNREADABLE}"


AWAY = [
    JudgeServerError("POST /read: 503 busy", status=503),
    JudgeServerError("POST /read: ConnectError: refused"),
    ConnectionResetError("reset"),
    TimeoutError("late"),
]


@pytest.mark.parametrize("failure", AWAY, ids=lambda e: type(e).__name__ + str(getattr(e, "status", "")))
def test_a_judge_that_does_not_answer(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    (_, b), ensemble = jury()
    b.failure = failure
    logs = Logs()
    assert ensemble(prompts=PROMPTS, completions=COMPLETIONS, **trl_kwargs(4, logs)) == [None] * 4
    assert "judge 'b'" in caplog.text and str(failure) in caplog.text
    assert logs.metrics[f"{ensemble.__name__}/answered"] == pytest.approx(2 / 3)
    _, why = ensemble.score_with_reasons(PROMPTS, COMPLETIONS)
    assert why == [f"judge 'b': did not answer: {failure}"] * 4
    for how, weights in (("mean", None), ("weighted", [1.0, 9.0, 3.0]), ("median", None), ("min", None)):
        (_, b), ensemble = jury(missing="without", how=how, weights=weights)
        there = alone(ensemble)[[0, 2]]
        b.failure = failure
        want = combined(there, how, None if weights is None else np.array([1.0, 3.0]))
        np.testing.assert_allclose(ensemble.score(PROMPTS, COMPLETIONS), want, rtol=1e-12)


def test_when_no_judge_answers_there_is_no_score_and_faults_are_raised() -> None:
    judges, ensemble = jury(missing="without")
    for judge in judges:
        judge.failure = JudgeServerError("gone")
    assert np.isnan(ensemble.score(PROMPTS, COMPLETIONS)).all()
    for fault in (JudgeServerError("401 no token", status=401), ValueError("row 1: no"), RuntimeError("broken")):
        judges[0].failure = fault
        with pytest.raises(type(fault), match=str(fault)):
            ensemble.score(PROMPTS, COMPLETIONS)


def test_a_server_that_gives_no_score_itself_counts_as_away(folder: str) -> None:
    from latent_rewards.serving import ServerJudge

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    remote = ServerJudge(url, deadline=0.3, on_failure="none")
    remote._info = {"judge": "far", "revision": None, "layers": 2, "width": 8, "capabilities": ["labels"]}
    remote._backend.check = lambda prompt, need: None
    near = Other("near")
    members = [ProbabilityWeightedReward(near), ProbabilityWeightedReward(remote)]
    got = EnsembleReward(members, how="mean", missing="without").score(PROMPTS, COMPLETIONS)
    np.testing.assert_array_equal(got, members[0].score(PROMPTS, COMPLETIONS))
    _, why = EnsembleReward(members, how="mean").score_with_reasons(PROMPTS, COMPLETIONS)
    assert all(str(reason).startswith("judge 'far'") for reason in why)


def test_disagreement_is_logged() -> None:
    _, ensemble = jury(location=[5.0, 0.5, 4.0], scales=[2.0, 0.25, 1.0])
    logs = Logs()
    ensemble(prompts=PROMPTS, completions=COMPLETIONS, **trl_kwargs(4, logs))
    z = (alone(ensemble) - np.array([[5.0], [0.5], [4.0]])) / np.array([[2.0], [0.25], [1.0]])
    assert logs.metrics[f"{ensemble.__name__}/disagreement"] == pytest.approx(z.std(0).mean())
    assert logs.extra[f"{ensemble.__name__}/disagreement"] == pytest.approx(list(z.std(0)))
    (_, b), ensemble = jury()
    b.failure = TimeoutError("late")
    two = EnsembleReward(ensemble.rewards[:2], missing="without", name="two")
    logs = Logs()
    two(prompts=PROMPTS, completions=COMPLETIONS, **trl_kwargs(4, logs))
    assert "two/disagreement" not in logs.metrics and logs.extra["two/disagreement"] == [None] * 4
    assert logs.metrics["two/answered"] == 0.5


def test_inside_other_rewards_and_of_ensembles() -> None:
    _, ensemble = jury(how="mean")
    plain = ensemble.score(PROMPTS, COMPLETIONS)
    guarded = GuardedReward(ensemble, floor=-9.0).score(PROMPTS, [*COMPLETIONS[:3], " "])
    np.testing.assert_array_equal(guarded, [*plain[:3], -9.0])
    got = ContrastiveReward(ensemble).score(PROMPTS, COMPLETIONS)
    np.testing.assert_allclose(got, plain - ensemble.score([""] * 4, COMPLETIONS))
    third = VerifierReward(Other("c"))
    both = EnsembleReward([ensemble, third], how="min")
    np.testing.assert_array_equal(
        both.score(PROMPTS, COMPLETIONS), np.minimum(plain, third.score(PROMPTS, COMPLETIONS))
    )


# --- statistics


def batches(n: int = 5) -> list[tuple[list[str], list[str]]]:
    return [([f"p{i}"] * 3, [f"{i} {j} reply" for j in range(3)]) for i in range(n)]


def trainer(n: int) -> dict[str, Any]:
    return trl_kwargs(n)


def test_running_statistics_are_those_of_all_that_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "jury.json"
    _, ensemble = jury(running=True, statistics=file)
    assert np.isnan(ensemble.score(PROMPTS, COMPLETIONS)).all()
    assert "nothing was learnt yet" in str(ensemble.score_with_reasons(PROMPTS, COMPLETIONS)[1][0])
    seen = []
    for prompts, completions in batches():
        got = ensemble(prompts=prompts, completions=completions, **trainer(3))
        raw = np.stack([m.score(prompts, completions) for m in ensemble.rewards])
        seen.append(raw)
        whole = np.concatenate(seen, 1)
        want = ((raw - whole.mean(1, keepdims=True)) / whole.std(1, keepdims=True)).mean(0)
        np.testing.assert_allclose(np.array(got, dtype=float), want, rtol=1e-9, atol=1e-9)
    before = ensemble.location, ensemble.scales
    np.testing.assert_array_equal(ensemble.score(*batches()[0]), ensemble.score(*batches()[0]))
    assert (ensemble.location, ensemble.scales) == before, "scoring offline learns nothing"
    _, again = jury(running=True, statistics=file)
    assert (again.location, again.scales) == before, "restored to the bit"
    more = ["q"] * 2, ["x", "y"]
    assert again(prompts=more[0], completions=more[1], **trainer(2)) == ensemble(
        prompts=more[0], completions=more[1], **trainer(2)
    )
    _, fixed = jury(statistics=file)
    np.testing.assert_array_equal(fixed.score(*more), again.score(*more))
    assert fixed.fingerprint != again.fingerprint and ensemble.bounds is None


def test_running_statistics_of_members_alike_away_or_without_rows() -> None:
    (a, b), ensemble = jury(running=True, missing="without")
    b.failure = TimeoutError("late")
    out = ensemble(prompts=["p"] * 2, completions=["x", "x"], **trainer(2))
    assert out == [0.0, 0.0], "all alike: nobody is above or below"
    assert np.isnan(ensemble.location[1]) and ensemble.scales == [1.0, 1.0, 1.0]
    assert ensemble(prompts=[], completions=[], **trainer(0)) == []
    b.failure = None
    a.failure = TimeoutError("late")
    out = ensemble(prompts=PROMPTS, completions=COMPLETIONS, **trainer(4))
    assert np.isfinite(np.array(out, dtype=float)).all() and np.isfinite(ensemble.location).all()


def test_moments_by_hand_and_merged() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(1e6, 1.0, (3, 40))
    scores[1, :7] = np.nan
    merged = Moments.of(scores[:, :1])
    for a, b in ((1, 2), (2, 2), (2, 15), (15, 40)):
        merged = merged.with_more(Moments.of(scores[:, a:b]))
    np.testing.assert_array_equal(merged.number, [40, 33, 40])
    np.testing.assert_allclose(merged.mean, np.nanmean(scores, 1), rtol=1e-12)
    np.testing.assert_allclose(merged.sd, np.nanstd(scores, 1), rtol=1e-9)
    assert Moments.of(np.array([[1.0, 2.0, 6.0]])).squares.tolist() == [14.0]
    flat = Standard.unknown(["m"])
    flat.learn(np.full((1, 7), 0.1), "own")
    assert flat.scales.tolist() == [1.0] and flat.location[0] == pytest.approx(0.1)


def test_fitted_statistics_are_saved_and_read(tmp_path: Path) -> None:
    _, ensemble = jury()
    ensemble.fit(PROMPTS, COMPLETIONS).save(tmp_path / "fit.json")
    _, again = jury(statistics=tmp_path / "fit.json")
    np.testing.assert_array_equal(again.score(PROMPTS, COMPLETIONS), ensemble.score(PROMPTS, COMPLETIONS))
    assert ensemble.score(PROMPTS, COMPLETIONS).mean() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="nothing to learn on from"):
        jury(statistics=tmp_path / "fit.json", running=True)
    two = [VerifierReward(Other("a")), VerifierReward(Other("b"))]
    with pytest.raises(ValueError, match=r"statistics of .*weighted on a.* but the members are"):
        EnsembleReward(two, statistics=tmp_path / "fit.json")
    with pytest.raises(FileNotFoundError, match="`fit` and `save` write one"):
        EnsembleReward(two, statistics=tmp_path / "none.json")
    for text in ("{", "[]", '{"format": 2}', json.dumps({"format": 1, "members": ["m"], "location": [1], "scales": [0],
                                                          "seen": None})):  # fmt: skip
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: no statistics of scores"):
            EnsembleReward(two, statistics=tmp_path / "bad.json")


def test_two_ranks_standardise_alike(tmp_path: Path) -> None:
    """Each rank has rows of its own, one of them none in one step; both end with the statistics of all."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()),
        str(RANKS), str(tmp_path),
    ]  # fmt: skip
    env = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    first, second = (json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2))
    assert first["location"] == second["location"] and first["scales"] == second["scales"]
    assert first["same text"] == second["same text"], "to the bit, whichever rank has it"
    scores = np.concatenate(
        [np.array(part) for both in zip(first["raw"], second["raw"], strict=True) for part in both], 1
    )
    np.testing.assert_allclose(first["location"], scores.mean(1), rtol=1e-12)
    np.testing.assert_allclose(first["scales"], scores.std(1), rtol=1e-9)
    saved = Standard.load(tmp_path / "all.json", first["members"])
    assert saved.location.tolist() == first["location"]
    assert first["own"] != second["own"] and (tmp_path / "own.rank1.json").is_file()
    assert "trainer's own thread" in first["in a thread"]


# --- by name


def test_from_options(folder: str, make_judge: Any) -> None:
    main = make_judge("llama", "digits")
    far = {"model": folder, "dtype": "float32", "device": "cpu"}
    reward: Any = build_reward("ensemble", main, of=["weighted", {"reward": "verifier", "judge": far}], how="mean")
    assert isinstance(reward.judge, Jury) and reward.rewards[0].judge is main
    every: Any = build_reward("ensemble", main, of=["weighted", "verifier"], judges=[far], how="median")
    assert [r.kind for r in every.rewards] == ["weighted", "verifier"] * 2
    assert every.rewards[2].judge is every.rewards[3].judge is reward.rewards[1].judge, "loaded once"
    for judge in ({"model": folder, "server": "http://x"}, {"device": "cpu"}, 3):
        with pytest.raises(ValueError, match=r"a judge (needs|is)"):
            open_judge(judge)
    with pytest.raises(ValueError, match="unexpected keyword"):
        open_judge({"model": folder, "colour": "red"})
    assert open_judge(main) is main and open_judge({"server": "http://127.0.0.1:1"}).transport.url.endswith(":1")
    with pytest.raises(ValueError, match="a list of judges"):
        build_reward("ensemble", main, of=["weighted"], judges="embedded")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r, v: EnsembleReward([r, v], how="weighted"), "go together"),
        (lambda r, v: EnsembleReward([r, v], weights=[1, 1]), "go together"),
        (lambda r, v: EnsembleReward([r, v], how="weighted", weights=[1, 0]), "positive weight"),
        (lambda r, v: EnsembleReward([r, v], how="weighted", weights=[1]), "for each of 2"),
        (lambda r, v: EnsembleReward([r, v], missing="guess"), "missing must be"),
        (lambda r, v: EnsembleReward([r, v], ranks="first"), "ranks must be"),
        (lambda r, v: EnsembleReward([r, v], running=True, scales=[1, 1]), "fitted to a file"),
        (lambda r, v: GuardedReward(EnsembleReward([r, v], running=True), floor=0), "inside another reward"),
        (lambda r, v: EnsembleReward([r, PairwiseReward(Other("b"), opponents="anchors")]), "in several steps"),
        (lambda r, v: GuardedReward(EnsembleReward([r, v]), floor=0, gate=r, gate_below=0), "same judge"),
        (lambda r, v: Jury([r.judge]), "two judges or more"),
        (lambda r, v: Jury([r.judge, v.judge]).read([Request(r.prompt, [], r.need)]), "are addressed"),
        (lambda r, v: Jury([r.judge, v.judge]).generate(r.prompt, [], n=1, temperature=0, max_new_tokens=1, seed=0),
         "does not write"),
    ],
)  # fmt: skip
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(ProbabilityWeightedReward(Other("a")), VerifierReward(Other("b")))


def test_a_jury_is_a_judge() -> None:
    a, b = Other("a"), Other("b")
    both = Jury([a, b])
    assert both.name == "a+b" and both.fingerprint != Jury([b, a]).fingerprint
    b.fingerprint = None
    assert both.fingerprint is None
    b.capabilities = frozenset({"labels"})
    assert both.capabilities == {"labels"}
    request = Request(ProbabilityWeightedReward(a).prompt, [], ProbabilityWeightedReward(a).need)
    assert Addressed.to(b, Addressed.to(a, request)).judge is a, "the first address counts"


def test_collective_judges_are_read_in_order_and_others_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    from latent_rewards.rewards import jury as module

    threads: dict[str, str] = {}
    judges = [Other("free"), Other("step 1"), Other("step 2")]
    for judge in judges:
        judge.before = lambda judge=judge: threads.__setitem__(judge.name, threading.current_thread().name)
    monkeypatch.setattr(module, "_collective", lambda judge: "step" in judge.name)
    EnsembleReward([VerifierReward(j) for j in judges]).score(PROMPTS, COMPLETIONS)
    assert list(threads)[-1] != "step 1" and threads["step 1"] == threads["step 2"] == "MainThread"
    assert threads["free"].startswith("jury")
    assert [name for name in threads if "step" in name] == ["step 1", "step 2"]


# --- commands and a trainer


def test_on_the_command_line(folder: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from latent_rewards.cli.main import app

    rows = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"how": "mean", "judges": json.dumps([{"model": folder, "dtype": "float32", "max_length": 4000}])}
    arguments = [
        "score", "--judge", folder, "--dtype", "float32", "--reward", "ensemble:weighted", "--score-column", "jury",
        "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"),
    ]  # fmt: skip
    found = CliRunner().invoke(
        app, [*arguments, *(x for k, v in options.items() for x in ("--reward-option", f"{k}={v}"))]
    )
    assert found.exit_code == 0, found.output
    got = [json.loads(line)["jury"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    one = ProbabilityWeightedReward(HFJudge(folder, dtype="float32")).score(PROMPTS, COMPLETIONS)
    np.testing.assert_allclose(got, one, atol=1e-4)


def test_best_of_n_by_a_jury(folder: str, tmp_path: Path) -> None:
    from latent_rewards.best_of_n import BestOfNConfig, Selection, best_of_n

    rows = [{"prompt": f"p{i}", "completions": [f"{i} {j}" for j in range(3)]} for i in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = [{"reward": "weighted"}, {"reward": "verifier", "judge": {"model": folder, "dtype": "float32"}}]
    best_of_n(
        BestOfNConfig(
            input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "run"), selection=Selection("best"),
            rewards=[("ensemble", {"of": of, "how": "mean", "column": "jury"})], batch_size=4, shard_size=8,
        ),
        FakeJudge(),
    )  # fmt: skip
    scored = [json.loads(line) for line in (tmp_path / "run" / "scored.jsonl").read_text().splitlines()]
    want = build_reward("ensemble", FakeJudge(), of=of, how="mean")
    for row in scored:
        np.testing.assert_allclose(
            row["jury"], want.score([row["prompt"]] * len(row["completions"]), row["completions"]), atol=1e-4
        )


def test_an_evaluation_measures_one_judge(folder: str, tmp_path: Path) -> None:
    from latent_rewards.evaluation.run import EvaluateConfig, evaluate

    of = ["weighted", {"reward": "verifier", "judge": folder}]
    with pytest.raises(ValueError, match=r"is read by Jury\(.*but this run measures"):
        evaluate(
            EvaluateConfig(rewards={"j": {"reward": "ensemble", "of": of}}, benchmarks=["open_ended"],
                           output=str(tmp_path)),
            FakeJudge(),
        )  # fmt: skip


def test_grpo_by_a_jury_with_running_statistics(policy: str, folder: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    judges = [HFJudge(folder, dtype="float32"), HFJudge(folder, dtype="float32", max_length=4000)]
    members = [ProbabilityWeightedReward(judges[0]), VerifierReward(judges[1])]
    reward = EnsembleReward(members, how="mean", running=True, statistics=tmp_path / "jury.json", name="jury")
    beside = ProbabilityWeightedReward(judges[0], name="beside")
    args = GRPOConfig(
        output_dir=str(tmp_path / "run"), per_device_train_batch_size=4, num_generations=4, max_completion_length=6,
        max_steps=3, logging_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = GRPOTrainer(policy, reward_funcs=[reward, beside], args=args,
                          train_dataset=Dataset.from_dict({"prompt": PROMPTS}))  # fmt: skip
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3 and all(row["jury/answered"] == 1 and row["jury/disagreement"] >= 0 for row in rows)
    assert all(np.isfinite(row["rewards/jury/mean"]) for row in rows)
    assert json.loads((tmp_path / "jury.json").read_text())["seen"]["number"] == [12.0, 12.0]


def test_a_rubric_logs_how_unsure_its_answers_are() -> None:
    from latent_rewards import RubricReward

    reward = RubricReward(FakeJudge(), criteria=["It is short.", "It is right."], name="list")
    logs = Logs()
    reward(prompts=PROMPTS, completions=COMPLETIONS, **trl_kwargs(4, logs))
    p = np.array([item["p"] for row in reward.explain(PROMPTS, COMPLETIONS) for item in row])
    assert logs.metrics["list/uncertainty"] == pytest.approx(np.sqrt(p * (1 - p)).mean(), rel=1e-5)
