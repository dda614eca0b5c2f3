"""What breaks at night: judges that fail, memory and disks that end, rows that lack something, killed processes.

The table "Faults" of docs/faults.md names these tests.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_training import STEPS, recorded, train
from tqdm import tqdm
from typer.testing import CliRunner

from latent_rewards import HFJudge, LikertReward, ProbabilityWeightedReward, VerifierReward
from latent_rewards.cli.main import app
from latent_rewards.files.cache import Cache
from latent_rewards.files.outputs import open_output
from latent_rewards.files.sources import Chunk, InputError, Source
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge, Need, Reading
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.examples import Example
from latent_rewards.probes.features import Features
from latent_rewards.rewards.scorer import Scorer

ROOT = Path(__file__).parents[2]
ROWS = [{"prompt": f"Count to {i}.", "completion": "one two " * i} for i in range(1, 9)]
PROMPTS, COMPLETIONS = [r["prompt"] for r in ROWS], [r["completion"] for r in ROWS]


@pytest.fixture(scope="module")
def undisturbed(policy: str, folder: str, tmp_path_factory: Any) -> dict[int, dict[str, Any]]:
    """Rewards and completions of the run that nothing happens to."""
    out = tmp_path_factory.mktemp("undisturbed")
    train(policy, folder, out)
    found = recorded(out)
    assert sorted(found) == list(range(STEPS)) and len({str(line["rewards"]) for line in found.values()}) == STEPS
    return found


# The judge.


def test_a_judge_that_raises_ends_the_run_with_its_error_and_a_checkpoint(
    policy: str, folder: str, tmp_path: Path, undisturbed: dict[int, Any]
) -> None:
    with pytest.raises(RuntimeError, match="the judge's device is gone"):
        train(policy, folder, tmp_path, "raise")
    assert (tmp_path / "checkpoint-2").is_dir() and sorted(recorded(tmp_path)) == [0, 1]
    train(policy, folder, tmp_path, resume=True)
    assert recorded(tmp_path) == undisturbed


def test_a_judge_that_gives_nan_gives_no_reward_and_leaves_the_policy_whole(
    policy: str, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = HFJudge(folder)
    with torch.no_grad():
        judge.blocks.head.weight.fill_(torch.nan)  # after the check that the judge makes when it loads
    with caplog.at_level(logging.WARNING):
        trainer = train(policy, judge, tmp_path, max_steps=1, save_strategy="no")
    assert recorded(tmp_path)[0]["rewards"] == [None] * 4
    assert "no score for 4 of 4 rows; first: the judge gave NaN" in caplog.text
    log = next(row for row in trainer.state.log_history if "loss" in row)
    assert log["kept/missing"] == 1 and math.isfinite(log["loss"])
    assert moved(trainer.model, policy) == 0, "no reward, no step"
    healthy = train(policy, folder, tmp_path, max_steps=1, save_strategy="no")
    assert moved(healthy.model, policy) > 0, "else this shows nothing"


def moved(model: Any, policy: str) -> float:
    """Largest change of a weight since the policy was loaded; NaN counts as infinite."""
    from transformers import AutoModelForCausalLM

    start, now = AutoModelForCausalLM.from_pretrained(policy).state_dict(), model.state_dict()
    return max(float((now[name] - start[name]).abs().max().nan_to_num(torch.inf)) for name in start)


def test_weights_that_are_nan_from_the_start_are_refused(make_judge: Any) -> None:
    judge = make_judge()
    with torch.no_grad():
        judge._given[0].lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite logits on a short text"):
        ProbabilityWeightedReward(judge).score(PROMPTS, COMPLETIONS)


class Cramped:
    """A judge whose memory holds `room` rows."""

    def __init__(self, judge: HFJudge, room: int, error: Any) -> None:
        self.judge, self.room, self.error, self.sizes = judge, room, error, []
        self.read_rows, self.generate_rows = judge._forward_of, judge._generate
        judge._forward_of, judge._generate = self.read, self.generate  # type: ignore[method-assign]

    def _check(self, rows: Any) -> None:
        self.sizes.append(len(rows))
        if len(rows) > self.room:
            self.error()

    def read(self, parts: Any, first: int, end: int) -> list[Reading]:
        self._check(parts[0].reasons[first:end])
        return self.read_rows(parts, first, end)

    def generate(self, prompt: JudgePrompt, rows: Any, *options: Any) -> Any:
        self._check(rows)
        return self.generate_rows(prompt, rows, *options)


def raise_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def raise_cpu() -> None:
    torch.empty(1 << 60)


@pytest.mark.parametrize("error", [raise_cuda, raise_cpu])
def test_lack_of_memory_reads_fewer_rows_at_a_time(
    make_judge: Any, error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    want = ProbabilityWeightedReward(make_judge()).score(PROMPTS, COMPLETIONS)
    judge = make_judge()
    cramped = Cramped(judge, 2, error)
    with caplog.at_level(logging.WARNING):
        got = ProbabilityWeightedReward(judge).score(PROMPTS, COMPLETIONS)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert cramped.sizes == [8, 4, 2, 2, 4, 2, 2] and "not enough memory for 8 rows" in caplog.text


def test_lack_of_memory_for_one_row_names_it_and_the_remedy(make_judge: Any) -> None:
    judge = make_judge()
    Cramped(judge, 0, raise_cpu)
    with pytest.raises(torch.OutOfMemoryError, match=r"for row 0 alone.*max_length.*can't allocate memory"):
        ProbabilityWeightedReward(judge).score(PROMPTS, COMPLETIONS)


def test_other_errors_of_a_judge_are_not_taken_for_lack_of_memory(make_judge: Any) -> None:
    judge = make_judge()

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cramped = Cramped(judge, 0, broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ProbabilityWeightedReward(judge).score(PROMPTS, COMPLETIONS)
    assert cramped.sizes == [8]


def test_lack_of_memory_while_sampling(make_judge: Any) -> None:
    judge = make_judge()
    cramped = Cramped(judge, 4, raise_cuda)
    reward = LikertReward(judge, feedback=False, temperature=0, max_new_tokens=2)
    assert reward.sample(PROMPTS, COMPLETIONS).shape == (8, 1) and cramped.sizes == [8, 4, 4]


def test_lack_of_memory_with_several_rewards_in_a_trainer(make_judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = make_judge()
    rewards = [ProbabilityWeightedReward(judge), VerifierReward(judge)]
    want = [r.score(PROMPTS, COMPLETIONS) for r in rewards]
    for reward in rewards:
        reward(PROMPTS, COMPLETIONS, trainer_state=None, log_metric=lambda *_: None)
    judge.forget()
    cramped = Cramped(judge, 3, raise_cuda)
    for reward, expected in zip(rewards, want, strict=True):
        got = reward(PROMPTS, COMPLETIONS, trainer_state=None, log_metric=lambda *_: None)
        assert cramped.sizes == [8, 4, 2, 2, 4, 2, 2], "both at once, the second from memory"
        np.testing.assert_allclose(np.array(got, dtype=float), expected, rtol=1e-4)


def test_lack_of_memory_on_the_command_line(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HFJudge, "_forward_of", lambda *_: raise_cpu())
    source, out = rows_file(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["score", "--judge", folder, "--input", str(source), "--output", str(out)])
    assert result.exit_code == 2 and "error: judge 'tiny-judge' has not enough memory for row 0" in result.output
    assert not out.exists()


def test_a_slow_judge_shows_in_the_log(make_judge: Any) -> None:
    judge, log = make_judge(), {}
    read = judge.read
    judge.read = lambda *a: (time.sleep(0.3), read(*a))[1]
    reward = ProbabilityWeightedReward(judge, name="slow")
    got = reward(PROMPTS, COMPLETIONS, log_metric=log.__setitem__)
    assert log["slow/seconds"] >= 0.3 and None not in got


# The disk.


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """Writes beyond so many bytes of a file fail in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def rows_file(path: Path, n: int) -> Path:
    rng = np.random.default_rng(0)
    noise = (" ".join(map(str, rng.integers(0, 10**9, 40))) for _ in range(n))
    path.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "completion": "c", "x": x}) + "\n" for i, x in enumerate(noise))
    )
    return path


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet", "out"])
def test_a_full_disk_while_scoring(tmp_path: Path, folder: str, name: str) -> None:
    source = rows_file(tmp_path / "in.jsonl", 120)
    arguments = [
        "score",
        "--judge",
        folder,
        "--input",
        str(source),
        "--output",
        str(tmp_path / name),
        "--batch-size",
        "30",
    ]
    with small_files(8192):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and f"{tmp_path / name} was not written" in result.output, result.output
    assert "File too large" in result.output and "Traceback" not in result.output
    assert os.listdir(tmp_path) == ["in.jsonl"], "nothing half done is left"


def test_a_full_disk_leaves_an_older_output_as_it_was(tmp_path: Path, folder: str) -> None:
    source, out = rows_file(tmp_path / "in.jsonl", 120), tmp_path / "out.jsonl"
    out.write_text('{"old": 1}\n')
    arguments = ["score", "--judge", folder, "--input", str(source), "--output", str(out), "--overwrite"]
    with small_files(8192):
        assert CliRunner().invoke(app, arguments).exit_code == 2
    assert out.read_text() == '{"old": 1}\n'


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own, so the right to mount one")
def test_a_disk_without_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        source = Source(1, ["x"], lambda size: iter([Chunk([{"x": "y" * 10**6}], [None])]))
        with pytest.raises(InputError, match="No space left"), open_output(disk / "out.jsonl", source, []) as write:
            write(next(source.chunks(1)), {})
        assert not os.listdir(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_is_gone_before_the_run(tmp_path: Path) -> None:
    source = Source(1, ["x"], lambda size: iter([]))
    with pytest.raises(InputError, match="was not written"), open_output(tmp_path / "no" / "out.jsonl", source, []):
        pass


def test_a_full_disk_under_the_cache_of_an_evaluation(tmp_path: Path) -> None:
    def put(cache: Cache, key: bytes, size: int) -> None:
        cache.put([(key, "labels", np.ones(size))], stage="read", texts=1, tokens=1, seconds=0.0)

    cache = Cache(tmp_path)
    put(cache, b"first", 10)
    with (
        small_files(1 << 16),
        pytest.raises(OSError, match=r"readings-0\.sqlite: .*; make room.*what is stored is kept"),
    ):
        put(cache, b"second", 10**6)
    cache.close()
    again = Cache(tmp_path)
    assert again.get([b"first"], "labels")[0].tolist() == [1.0] * 10 and again.get([b"second"], "labels") == [None]
    put(again, b"second", 10**5)
    assert len(again.get([b"second"], "labels")[0]) == 10**5
    again.close()


def test_a_damaged_cache_says_so(tmp_path: Path) -> None:
    (tmp_path / "readings-0.sqlite").write_bytes(b"no data base at all" * 99)
    with pytest.raises(OSError, match=r"readings-0\.sqlite: .*damaged: move it away"):
        Cache(tmp_path)


def test_a_cache_damaged_later_says_so(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    rows = [(bytes([i, j]), "labels", np.ones(50)) for i in range(20) for j in range(20)]
    cache.put(rows, stage="read", texts=1, tokens=1, seconds=0.0)
    cache.close()
    path = tmp_path / "readings-0.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises((OSError, sqlite3.Error)) as caught:
        Cache(tmp_path).get([r[0] for r in rows], "labels")
    assert "move it away" in str(caught.value)


def test_a_full_disk_while_collecting_features(tmp_path: Path, make_judge: Any) -> None:
    examples = [Example(r["prompt"], r["completion"], 1.0) for r in ROWS]
    prompt, judge = JudgePrompt.load("weighted"), make_judge()
    options: dict[str, Any] = {"folder": tmp_path, "dtype": "float32", "shard_rows": 4}
    with small_files(2200), pytest.raises(OSError, match=r"shard-00000\.safetensors.*run again"):
        collect_features(judge, prompt, examples, [1, 2, 3], **options)
    assert os.listdir(tmp_path) == ["features.json"], "no half a shard"
    assert len(collect_features(judge, prompt, examples, [1, 2, 3], **options)) == 8
    assert np.isfinite(Features(tmp_path).states([1])).all()


# The rows.


class Constant(Judge):
    """A judge that costs nothing: the labels are equally probable."""

    name, fingerprint, capabilities = "constant", "constant", frozenset({"labels"})

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        pass

    def read(self, requests: Any) -> list[Reading]:
        return [self.read_rows(r.prompt, len(r.rows)) for r in requests]

    def read_rows(self, prompt: JudgePrompt, n: int) -> Reading:
        k = len(prompt.labels or ())
        return Reading(torch.full((n, k), -math.log(k)), torch.ones(n), reasons=(None,) * n)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def lazy(n: int, missing: int) -> Source:
    """Rows that are made when they are asked for; one lacks its completion."""

    def chunks(size: int) -> Iterator[Chunk]:
        for start in range(0, n, size):
            rows = [{"prompt": f"p{i}", "completion": f"c{i}", "id": i} for i in range(start, min(n, start + size))]
            if start <= missing < start + len(rows):
                del rows[missing - start]["completion"]
            yield Chunk(rows, [None] * len(rows))

    return Source(n, ["prompt", "completion", "id"], chunks)


@pytest.mark.parametrize("n", [60_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_one_row_of_many_lacks_a_column(tmp_path: Path, n: int) -> None:
    missing, source, out, sizes = n - 7, lazy(n, n - 7), tmp_path / "out.jsonl", []
    with tqdm(total=n, file=(tmp_path / "log").open("w")) as bar:
        scorer = Scorer({"weighted": ProbabilityWeightedReward(Constant(), name="w")}, {}, bar)
        with open_output(out, source, ["weighted"]) as write:
            for chunk in source.chunks(500):
                write(chunk, scorer(chunk))
                sizes.append(resident())
    grown = max(sizes[20:]) - sizes[20]
    assert (scorer.rows, scorer.scored, scorer.bad) == (n, n - 1, 1)
    assert f"row {missing + 1}: column 'completion' is missing" in (tmp_path / "log").read_text()
    seen = 0
    with out.open() as lines:
        for i, line in enumerate(lines):
            row = json.loads(line)
            assert row["id"] == i and (row["weighted"] is None) == (i == missing)
            seen += 1
    assert seen == n and grown < 24 << 20, f"{grown >> 20} MiB more after {n} rows"


def test_a_column_that_is_missing_in_one_row_of_a_training_batch(make_judge: Any) -> None:
    reward = ProbabilityWeightedReward(make_judge(), prompt="rubric")
    with pytest.raises(ValueError, match="row 2: prompt 'rubric' needs 'criteria'"):
        reward(PROMPTS[:4], COMPLETIONS[:4], criteria=["a", "b", None, "d"], trainer_state=None)


# Processes.


def start(command: list[str], out: Path, **env: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"} | env
    return subprocess.Popen(command, env=environment, stdout=(out / "log").open("wb"), stderr=subprocess.STDOUT)


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, (path.parent / "log").read_text()[-3000:]
        time.sleep(0.1)


def test_sigterm_in_the_middle_of_a_step_and_resume(
    policy: str, folder: str, tmp_path: Path, undisturbed: dict[int, Any]
) -> None:
    script = [sys.executable, str(ROOT / "tests" / "faulty_training.py"), policy, folder, str(tmp_path), "wait"]
    process = start(script, tmp_path, OMP_NUM_THREADS=str(torch.get_num_threads()))
    try:
        wait_for(tmp_path / "here", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    finally:
        process.kill()
    assert (tmp_path / "checkpoint-2").is_dir() and sorted(recorded(tmp_path)) == [0, 1]
    train(policy, folder, tmp_path, resume=True)
    assert recorded(tmp_path) == undisturbed, "the same completions and the same rewards, bit for bit"


def launch(policy: str, folder: str, out: Path, fault: str, **env: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d",
        "--rdzv_endpoint", "localhost:0", str(ROOT / "tests" / "faulty_training.py"), policy, folder, str(out), fault,
    ]  # fmt: skip
    return start(command, out, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true", **env)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "mark", "within"), [("die", "died", 60), ("hang", "here", 180)])
def test_a_rank_that_dies_or_hangs_ends_the_run(
    policy: str, folder: str, tmp_path: Path, fault: str, mark: str, within: float
) -> None:
    process = launch(policy, folder, tmp_path, fault, DDP_TIMEOUT="20")
    try:
        wait_for(tmp_path / mark, process)
        happened = time.monotonic()
        assert process.wait(within) != 0
        seconds = time.monotonic() - happened
    finally:
        process.kill()
    log = (tmp_path / "log").read_text()
    print(f"{fault}: the run ended {seconds:.1f} s later\n{log[-3000:]}")
    assert "Error" in log and max(recorded(tmp_path)) <= 2
    assert (tmp_path / "checkpoint-2").is_dir()
