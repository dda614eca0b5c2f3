"""Best-of-N end to end: selection, resuming, refusals, failures; the same bytes however the work is cut up."""

from __future__ import annotations

import copy
import dataclasses
import errno
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from contracts import UNREADABLE, FakeJudge
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.best_of_n import BestOfNConfig, Selection, best_of_n, picks, shards
from latent_rewards.best_of_n.config import Manifest
from latent_rewards.best_of_n.work import JudgeFailedError
from latent_rewards.cli.main import app
from latent_rewards.files.atomic import publish, write_text
from latent_rewards.files.sources import InputError

ROOT = Path(__file__).parents[2]
PAIRS = [
    {"id": i, "prompt": f"Name prime {i // 5}.", "completion": f"{(i * 7919) % 97} is prime" + " yes" * (i % 7)}
    for i in range(60)
]
LISTS = [
    {"id": f"q{i}", "prompt": f"Question {i}", "completions": [f"answer {i} {j}" for j in range(1 + i % 4)], "tag": i}
    for i in range(11)
]


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a run with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """run(rows, judge, **config): a run in a folder of its own, with small batches and shards."""

    def start(rows: list[Any], judge: Any = None, name: str = "out", **changes: Any) -> Any:
        source = tmp_path / "in.jsonl"
        if rows is not None:
            write(source, rows)
        settings = {"batch_size": 4, "shard_size": 8, "input": str(source), "output": str(tmp_path / name), **changes}
        if "judge_options" in settings:
            settings["judge"] = settings.pop("judge_options")
        return best_of_n(BestOfNConfig(**settings), judge or FakeJudge())

    start.folder = tmp_path / "out"
    return start


class Breaking(FakeJudge):
    """Raises on texts that hold BOOM, or on everything once `dead`."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = False

    def read_rows(self, prompt: Any, rows: Any, need: Any) -> Any:
        if self.dead or any("BOOM" in str(r["completion"]) for r in rows):
            raise RuntimeError("device-side assert")
        return super().read_rows(prompt, rows, need)


# --- what comes out


def test_best_of_stored_lists(run: Any) -> None:
    judge = FakeJudge()
    counts = run(LISTS, judge)
    scored, selected = (read(run.folder / f"{n}.jsonl") for n in ("scored", "selected"))
    reward = ProbabilityWeightedReward(FakeJudge())
    assert [r["id"] for r in scored] == [r["id"] for r in LISTS] == [r["id"] for r in selected]
    for row, best in zip(scored, selected, strict=True):
        want = reward.score([row["prompt"]] * len(row["completions"]), row["completions"])
        np.testing.assert_allclose(row["weighted"], want)
        assert row["score"] == row["weighted"] and row["reason"] is None and row["tag"] == best["tag"]
        assert best["candidate"] == int(np.argmax(want)) and best["completion"] == row["completions"][best["candidate"]]
        assert best["score"] == max(row["score"]) and "completions" not in best
    assert counts["prompts"] == 11 and counts["completions"] == counts["scored"] == sum(
        len(r["completions"]) for r in LISTS
    )


def test_pairs_of_rows_keep_their_columns(run: Any) -> None:
    run(PAIRS, selection=Selection("top-k", k=2))
    scored, selected = (read(run.folder / f"{n}.jsonl") for n in ("scored", "selected"))
    assert [{k: r[k] for k in PAIRS[0]} for r in scored] == PAIRS
    for p in range(12):
        group = sorted(scored[5 * p : 5 * p + 5], key=lambda r: -r["score"])
        assert [r["id"] for r in selected[2 * p : 2 * p + 2]] == [r["id"] for r in group[:2]]


def test_preference_pairs_in_the_form_of_their_prompts(run: Any) -> None:
    chat = [{"prompt": [{"role": "user", "content": r["prompt"]}], "completions": r["completions"]} for r in LISTS]
    run(chat, selection=Selection("pairs", against="middling", margin=0.1))
    pairs, scored = read(run.folder / "selected.jsonl"), read(run.folder / "scored.jsonl")
    assert 0 < len(pairs) <= sum(len(r["completions"]) > 1 for r in chat)
    for pair in pairs:
        assert pair["chosen"][0]["role"] == pair["rejected"][0]["role"] == "assistant"
        assert pair["margin"] == pytest.approx(pair["score_chosen"] - pair["score_rejected"]) and pair["margin"] >= 0.1
        row = next(r for r in scored if r["prompt"] == pair["prompt"])
        assert (
            pair["score_chosen"] == max(row["score"])
            and pair["score_rejected"] == sorted(row["score"])[len(row["score"]) - 1 - len(row["score"]) // 2]
        )


@pytest.mark.parametrize("ties", ["first", "shortest", "random"])
def test_the_best_tenth_of_all(run: Any, ties: str) -> None:
    run(PAIRS, selection=Selection("top-fraction", fraction=0.1, over="all", ties=ties))
    scored, selected = read(run.folder / "scored.jsonl"), read(run.folder / "selected.jsonl")
    best = sorted(scored, key=lambda r: -r["score"])[:6]
    assert sorted(r["id"] for r in selected) == sorted(r["id"] for r in best) == [r["id"] for r in selected]


def test_pairs_have_a_margin_above_rounding_unless_told(run: Any) -> None:
    rows = [{"prompt": f"p{i}", "completions": [f"a {i} {j}" for j in range(2)]} for i in range(40)]
    run(rows, name="all", selection=Selection("none"))
    scores = np.array([r["score"] for r in read(run.folder.parent / "all" / "scored.jsonl")])
    margin = 0.025 * (scores.max() - scores.min())
    gaps = np.ptp(scores, axis=1)
    assert 0 < (gaps < margin).sum() < 40, "the case is one"
    counts = run(rows, name="pairs", selection=Selection("pairs"))
    assert counts["margin"] == pytest.approx(margin) and counts["selected"] == (gaps >= margin).sum()
    assert run(rows, name="told", selection=Selection("pairs", margin=0.0))["selected"] == (gaps > 0).sum()


def test_threshold_soft_and_none(run: Any) -> None:
    judge = FakeJudge()
    run(PAIRS, judge, selection=Selection("threshold", threshold=5.0))
    reads = judge.reads
    scored = read(run.folder / "scored.jsonl")
    assert [r["id"] for r in read(run.folder / "selected.jsonl")] == [r["id"] for r in scored if r["score"] >= 5.0]
    run(None, judge, selection=Selection("soft", temperature=1e-6))
    soft = read(run.folder / "selected.jsonl")
    run(None, judge, selection=Selection("best"))
    assert soft == read(run.folder / "selected.jsonl"), "cold softmax selection takes the best"
    run(None, judge, selection=Selection("none"))
    assert read(run.folder / "selected.jsonl") == [] and judge.reads == reads, "another selection reads nothing"


def test_ensembles_standardise_over_all_rows(run: Any) -> None:
    run(PAIRS, rewards=["weighted", "verifier"], selection=Selection("none", combine="worst"))
    scored = read(run.folder / "scored.jsonl")
    z = [(np.array([r[c] for r in scored]) - np.mean([r[c] for r in scored])) / np.std([r[c] for r in scored])
         for c in ("weighted", "verifier")]  # fmt: skip
    np.testing.assert_allclose([r["score"] for r in scored], np.minimum(*z), atol=1e-9)


def test_seven_aspects_take_one_forward_a_batch(run: Any, make_judge: Any) -> None:
    judge = make_judge()
    run(PAIRS[:20], judge, rewards=["aspects"], batch_size=10, shard_size=10)
    assert judge.forwards == 2
    row = read(run.folder / "scored.jsonl")[3]
    aspects = [v for k, v in row.items() if k.startswith("aspect_")]
    assert len(aspects) == 7 == len(set(aspects)) and row["score"] == pytest.approx(np.mean(aspects))


def test_generated_completions(run: Any, policy: str, folder: str) -> None:
    rows = [{"prompt": f"Name prime {i}."} for i in range(5)] + [{"prompt": 5.5, "id": 9}, {"id": 10}, "{"]
    settings = {
        "generator": {"backend": "hf", "model": policy, "dtype": "float32", "device": "cpu"},
        "sampling": {"n": 3, "max_new_tokens": 5}, "threads": 1,
        "judge_options": {"model": folder, "dtype": "float32", "device": "cpu"}, "batch_size": 6, "shard_size": 6,
    }  # fmt: skip
    counts = run(rows, HFJudge(**settings["judge_options"]), **settings)
    assert (counts["prompts"], counts["scored"], counts["prompts_without_score"]) == (8, 18, 2)
    scored = read(run.folder / "scored.jsonl")
    assert [len(r["completions"] or ()) for r in scored] == [3, 3, 3, 3, 3, 3, 0, 0]
    assert "'prompt' is missing" in scored[6]["reason"] and "not JSON" in scored[7]["reason"]
    run(None, HFJudge(**settings["judge_options"]), name="again", **settings)
    again = run.folder.parent / "again"
    assert tree(again) == tree(run.folder)
    manifest = json.loads((again / "manifest.json").read_text())
    assert manifest["generation"]["temperature"] == 1.0 and manifest["generation"]["seed"] == 0


def test_parquet_in_and_out(run: Any, tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "in.parquet")
    run(PAIRS)
    run(None, name="parquet", input=str(tmp_path / "in.parquet"), format="parquet")
    for name in ("scored", "selected"):
        assert pq.read_table(tmp_path / "parquet" / f"{name}.parquet").to_pylist() == read(run.folder / f"{name}.jsonl")


# --- rows and judges that fail


def test_bad_rows_cost_only_themselves(run: Any) -> None:
    bad = [
        "{broken", {"id": 90, "prompt": "no completion"}, {"id": 91, "completion": "no prompt"},
        {"id": 92, "prompt": "p", "completion": UNREADABLE}, {"id": 93, "prompt": "p", "completion": {"x": 1}},
    ]  # fmt: skip
    rows = [*PAIRS[:7], *bad, *PAIRS[7:]]
    counts = run(rows)
    scored = read(run.folder / "scored.jsonl")
    assert len(scored) == len(rows) and counts["unscored"] == 5
    for i, why in {
        7: "not JSON",
        8: "completion is missing",
        9: "'prompt' is missing",
        10: UNREADABLE,
        11: "messages",
    }.items():
        assert scored[i]["score"] is None and why in scored[i]["reason"], scored[i]
    assert all(r["score"] is not None and r["reason"] is None for i, r in enumerate(scored) if not 7 <= i <= 11)


def test_a_row_that_makes_the_judge_fail(run: Any) -> None:
    rows = [dict(r) for r in PAIRS]
    rows[17]["completion"] = "BOOM"
    counts = run(rows, Breaking())
    scored = read(run.folder / "scored.jsonl")
    assert counts["unscored"] == 1 and scored[17]["reason"] == "the judge failed: device-side assert"
    run(PAIRS, name="whole")
    whole = read(run.folder.parent / "whole" / "scored.jsonl")
    assert [r for i, r in enumerate(scored) if i != 17] == [r for i, r in enumerate(whole) if i != 17]


def test_a_judge_that_fails_on_everything_stops_the_run_and_loses_nothing(run: Any) -> None:
    judge = Breaking()
    real, calls = judge.read, []

    def read_then_die(*args: Any) -> Any:
        calls.append(1)
        judge.dead = len(calls) > 5
        return real(*args)

    judge.read = read_then_die  # type: ignore[method-assign]
    with pytest.raises(JudgeFailedError, match="fails on every text"):
        run(PAIRS, judge)
    assert 0 < len(list((run.folder / "shards").glob("*.jsonl"))) < 12 and not (run.folder / "scored.jsonl").exists()
    run(None)
    run(None, name="whole")
    assert tree(run.folder) == tree(run.folder.parent / "whole")


# --- refusals


def test_a_changed_configuration_is_refused_by_name(run: Any) -> None:
    run(PAIRS)
    with pytest.raises(InputError, match=r"reward_specs\.verifier: None -> "):
        run(None, rewards=["weighted", "verifier"])
    with pytest.raises(InputError, match=r"batch_size: 4 -> 5"):
        run(None, batch_size=5)
    with pytest.raises(InputError, match=r"judge\.revision: None -> 'other'"):
        run(None, judge_options={"model": "embedded", "revision": "other"})


def test_a_changed_input_is_refused(run: Any) -> None:
    run(PAIRS)
    changed = [dict(r) for r in PAIRS]
    changed[40]["completion"] += "!"
    with pytest.raises(InputError, match=r"input\.fingerprint"):
        run(changed)
    with pytest.raises(InputError, match=r"input\.rows: 60 -> 59"):
        run(PAIRS[:-1])


def test_another_judge_or_prompt_is_refused_before_it_scores(run: Any, make_judge: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    text = 'kind: label\nsystem: s\nbody: "{{ prompt }} / {{ completion }}: 1 or 2?"\nlabels: {"1": 1, "2": 2}\n'
    own.write_text(text)
    judge = make_judge()
    run(PAIRS, judge, rewards=[f"weighted:{own}"])
    next((run.folder / "shards").glob("*3.jsonl")).unlink()
    with pytest.raises(InputError, match="judge_revision"):
        run(None, make_judge("qwen2"), rewards=[f"weighted:{own}"])
    own.write_text(text.replace("1 or 2?", "one or two?"))
    with pytest.raises(InputError, match=r"rewards\.weighted-own\.prompt_hash"):
        run(None, judge, rewards=[f"weighted:{own}"])
    own.write_text(text)
    run(None, make_judge(), rewards=[f"weighted:{own}"])
    assert (run.folder / "summary.json").exists()


def test_another_layout_or_probe_is_refused_by_name(run: Any, make_model: Any, tokenizers: Any, tmp_path: Path) -> None:
    def judge(new: str) -> HFJudge:
        tokenizer = copy.deepcopy(tokenizers["digits"])
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant", new)
        return HFJudge(make_model("llama", tokenizer), tokenizer=tokenizer, max_length=400)

    own = tmp_path / "own.yaml"
    own.write_text('kind: label\nbody: "{{ prompt }} / {{ completion }}: 1 or 2?"\nlabels: {"1": 1, "2": 2}\n')
    rewards = [["guarded", {"of": {"reward": "weighted", "prompt": str(own)}, "floor": 0.0}]]
    run(PAIRS[:8], judge("assistant"), rewards=rewards)
    next((run.folder / "shards").glob("*.jsonl")).unlink()
    with pytest.raises(InputError, match=r"rewards\.guarded\.layout: '\w+' -> '\w+'.*judge_facts\.layout: "):
        run(None, judge("Assistant"), rewards=rewards)
    run(None, judge("assistant"), rewards=rewards)
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["rewards"]["guarded"]["options"]["reward"]["class"].endswith("ProbabilityWeightedReward")
    assert manifest["judge_facts"]["max_length"] == 400 and manifest["judge_facts"]["model"]["weights"]


def test_duplicate_ids_name_both_rows(run: Any) -> None:
    rows = [dict(r) for r in PAIRS]
    rows[44]["id"] = 13
    with pytest.raises(InputError, match="rows 14 and 45 have the same 'id'"):
        run(rows)
    assert not (run.folder / "manifest.json").exists()
    run(rows, id_column=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": Selection("worst")}, "method must be one of"),  # type: ignore[arg-type]
        ({"selection": Selection("threshold")}, "a threshold is needed"),
        ({"selection": Selection(fraction=0.0)}, "fraction lies in"),
        ({"selection": Selection(weights=[1.0, 2.0])}, "give 1 weights"),
        ({"rewards": []}, "at least one"),
        ({"rewards": ["weighted", "weighted"]}, "two rewards"),
        ({"rewards": ["no_such"]}, "unknown reward"),
        ({"batch_size": 9}, "batch_size <= shard_size"),
        ({"prompt_column": "question"}, "no column 'question'"),
        ({"completion_column": "answer"}, "no column 'answer'"),
        ({"generator": {"model": "m"}}, "the input has completions"),
        ({"format": "csv"}, "format must be"),
        ({"score_column": "prompt"}, "already has the columns"),
        ({"input": "nowhere.jsonl"}, "no input file"),
        ({"engine": "ray"}, "Ray actors load their own judge"),
    ],
)
def test_requests_that_cannot_be_met(run: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(PAIRS, **changes)
    assert not (run.folder / "manifest.json").exists()


# --- the command line, disks and folders


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["best-of-n", *map(str, arguments)])


def judged_by(folder: str) -> list[str]:
    return ["--judge", folder, "--judge-option", "dtype=float32", "--judge-option", "device=cpu", "--threads", "1"]


def test_output_that_cannot_be_written_is_told_before_the_judge_loads(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    source = write(tmp_path / "in.jsonl", PAIRS)
    for output in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        result = command("--input", source, "--output", output, "--judge", tmp_path / "no-judge")
        assert result.exit_code == 2 and "choose a folder that can be written to" in result.output, result.output


def test_full_disk_keeps_what_is_done(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real, calls = write(tmp_path / "in.jsonl", PAIRS), os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    options = [*judged_by(folder), "--batch-size", 5, "--shard-size", 10]
    monkeypatch.setattr(os, "fsync", full)
    result = command("--input", source, "--output", tmp_path / "out", *options)
    assert result.exit_code == 3 and "No space left" in result.output and "run the same command again" in result.output
    done = list((tmp_path / "out" / "shards").iterdir())
    assert 0 < len(done) < 6 and all(p.name[0] != "." for p in done), "no half-written file stays"
    monkeypatch.setattr(os, "fsync", real)
    assert command("--input", source, "--output", tmp_path / "out", *options).exit_code == 0
    assert command("--input", source, "--output", tmp_path / "whole", *options).exit_code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("number", "room"), [(errno.EDQUOT, True), (errno.EIO, False)])
def test_only_a_full_disk_is_told_to_make_room(
    number: int, room: bool, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    source = write(tmp_path / "in.jsonl", PAIRS[:2])
    result = command("--input", source, "--output", tmp_path / "out", *judged_by(folder))
    assert result.exit_code == 3 and os.strerror(number) in result.output and ("make room" in result.output) == room


def test_a_manifest_that_is_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(tmp_path)
    manifest.path.write_text('{"a"')
    monkeypatch.setattr("latent_rewards.best_of_n.config.time.sleep", lambda _: manifest.path.write_text('{"a": 1}'))
    assert manifest.read() == {"a": 1}
    monkeypatch.setattr("latent_rewards.best_of_n.config.time.sleep", lambda _: None)
    manifest.path.write_text('{"a"')
    with pytest.raises(InputError, match="is no manifest"):
        manifest.read()


def test_command_line_says_what_it_did(tmp_path: Path, folder: str) -> None:
    source = write(tmp_path / "in.jsonl.gz", PAIRS)
    result = command(
        "--input", source, "--output", tmp_path / "out", *judged_by(folder), "--reward", "weighted", "--reward",
        "verifier", "--reward-option", "verifier.output=log_odds", "--combine", "z", "--select", "pairs", "--limit", 20,
    )  # fmt: skip
    assert result.exit_code == 0 and "prompts 4, completions 20, scored 20" in result.output, result.output
    assert len(read(tmp_path / "out" / "selected.jsonl")) <= 4
    assert any(r["verifier"] < 0 or r["verifier"] > 1 for r in read(tmp_path / "out" / "scored.jsonl")), "log-odds"
    for wrong in (["--reward-option", "nothing"], ["--weights", "a,b"], ["--select", "wurst"], ["--engine", "spark"]):
        result = command("--input", source, "--output", tmp_path / "other", *judged_by(folder), *wrong)
        assert result.exit_code == 2 and result.output.startswith("error: "), result.output
    nothing = write(tmp_path / "bad.jsonl", [{"prompt": "p", "completion": {"x": 1}}])
    result = command("--input", nothing, "--output", tmp_path / "third", *judged_by(folder))
    assert result.exit_code == 1 and "nothing could be scored" in result.output


# --- the same bytes, however the work is cut up


def test_processes_side_by_side_share_the_shards(run: Any) -> None:
    """Four threads with judges of their own run the same configuration; each shard is done by exactly one."""
    judges = [FakeJudge() for _ in range(4)]
    write(run.folder.parent / "in.jsonl", PAIRS)
    threads = [threading.Thread(target=run, args=(None, judge)) for judge in judges]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(j.reads for j in judges) == 12, "one read for each of the 12 prompts, since 2 x 5 exceed a batch of 4"
    run(None, name="alone")
    assert tree(run.folder) == tree(run.folder.parent / "alone")


@pytest.fixture
def small_run(tmp_path: Path, folder: str) -> Any:
    """small_run(name, **changes): path of a configuration, with a real tiny judge and shards of two batches."""

    def config(name: str, **changes: Any) -> Path:
        rows = [
            {"id": i, "prompt": f"Name prime {i // 4}.", "completion": f"{i} is" + " prime" * (i % 5)}
            for i in range(config.rows)  # type: ignore[attr-defined]
        ]
        source = write(tmp_path / "in.jsonl", rows)
        settings = BestOfNConfig(
            str(source), str(tmp_path / name), rewards=["weighted", "verifier"], batch_size=4, shard_size=8, threads=1,
            judge={"model": folder, "dtype": "float32", "device": "cpu"},
            selection=Selection("top-fraction", over="all", combine="z"),
        )  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(settings, **changes))))
        return path

    config.folder, config.rows = tmp_path, 160  # type: ignore[attr-defined]
    return config


def harness(*arguments: Any) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kill_runs.py"), *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def check_kills(mode: str, kills: int, small_run: Any, **changes: Any) -> None:
    whole = harness("one", 0, small_run("whole"), 0)
    assert whole["codes"] == [0]
    found = harness(mode, kills, small_run("killed", **changes), 0)
    assert found["hit"] >= min(kills, 1) and all(code == 0 for code in found["codes"]), found  # fast ones end first
    assert tree(small_run.folder / "killed") == tree(small_run.folder / "whole")
    assert [r["id"] for r in read(small_run.folder / "killed" / "scored.jsonl")] == list(range(small_run.rows))


@pytest.mark.parametrize("mode", ["one", "two"])
def test_killed_at_random_moments(mode: str, small_run: Any) -> None:
    check_kills(mode, 5, small_run)


def test_what_a_kill_leaves_beside_a_finished_shard_is_cleared(tmp_path: Path) -> None:
    store = shards.ShardStore(tmp_path)
    store.write(5, [{"id": 1}])
    left, in_work = (store.folder / f".0000000{i}.jsonl.host-1.tmp" for i in (5, 6))
    for path in (left, in_work):
        path.touch()
    with store.claim(6):
        store.clear()
    assert not left.exists() and in_work.exists() and store.done(5)


@pytest.mark.parametrize("last", ["selected.jsonl", "summary.json"])
def test_a_finish_that_fails_midway_leaves_no_summary_of_other_files(
    last: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = Selection("best", combine="rank")
    counts = run(LISTS, selection=best)
    before = tree(run.folder)

    def full(what: Any, into: Any) -> None:
        for path in (what, into):
            if isinstance(path, Path) and path.parent == run.folder and path.name == last:
                raise OSError(errno.ENOSPC, "No space left on device")
        publish(what, into) if isinstance(into, Path) else write_text(what, into)

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        for name in ("publish", "write_text"):
            broken.setattr(f"latent_rewards.best_of_n.finish.{name}", full)
        run(LISTS, selection=Selection("top-k", k=2))
    assert {p.name for p in run.folder.glob("*.json")} == {"manifest.json"} and tree(run.folder) != before
    assert run(LISTS, selection=best) == counts and tree(run.folder) == before


def test_finishing_clears_what_kills_left(run: Any) -> None:
    run(PAIRS)
    left = run.folder / "shards" / ".00000000.jsonl.host-1.tmp"
    left.touch()
    run(None, selection=Selection("none"))
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("mode", ["one", "two", "accelerate", "ray"])
def test_killed_twenty_times(mode: str, small_run: Any) -> None:
    small_run.rows = 640  # 80 shards, so that there is work left to be killed at
    check_kills(mode, 20, small_run, **({"engine": "ray"} if mode == "ray" else {}))


@pytest.mark.parametrize("mode", ["accelerate", "ray"])
def test_launchers_give_the_bytes_of_one_process(mode: str, small_run: Any) -> None:
    if mode == "ray":
        pytest.importorskip("ray")
    check_kills(mode, 0, small_run, **({"engine": "ray"} if mode == "ray" else {}))


# --- the best of all, on disk

keys = st.tuples(st.integers(-1, 2) | st.floats(allow_nan=False), st.integers(0, 2) | st.floats(0, 1))


@given(st.lists(keys, min_size=1, max_size=40), st.data())
def test_smallest_kept_breaks_ties_by_key_then_order(pairs: list[tuple[float, float]], data: Any) -> None:
    k = data.draw(st.integers(0, len(pairs)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(picks, "_CHUNK", 7)
        np.array(pairs, dtype=np.float64).tofile(Path(folder) / "keys")
        kept = list(picks.smallest_kept(Path(folder) / "keys", k))
    best = sorted(range(len(pairs)), key=lambda i: (*pairs[i], i))[:k]
    assert [i for i, keep in enumerate(kept) if keep] == sorted(best) and len(kept) == len(pairs)
