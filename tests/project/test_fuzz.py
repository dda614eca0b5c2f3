"""Fuzz targets under hypothesis, quickly; `python -m benchmarks.fuzz` runs them for long, also under atheris.

What the long runs found is kept below as plain tests.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz import files, words
from benchmarks.fuzz.draw import Draw
from latent_rewards import JudgePrompt
from latent_rewards.evaluation.benchmarks import local
from latent_rewards.files.sources import InputError, open_source
from latent_rewards.judge.labels import Labels
from latent_rewards.probes.examples import read_examples
from latent_rewards.probes.probe import Probe
from latent_rewards.rewards.calibrated import Calibration
from latent_rewards.rewards.layer_weights import LayerWeights


@pytest.mark.parametrize("name", sorted(fuzz.TARGETS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(data=st.binary(max_size=400))
def test_target(name: str, data: bytes) -> None:
    fuzz.TARGETS[name](Draw(data))


@pytest.mark.parametrize("name", sorted(fuzz.TARGETS))
def test_target_on_random_bytes(name: str) -> None:
    options = SimpleNamespace(seed=7, cases=150, seconds=20, hang=20)
    cases, failures = fuzz._random(fuzz.TARGETS[name], options)
    assert cases >= 50 and not failures


def test_bodies_that_a_judge_server_gets() -> None:
    pytest.importorskip("fastapi")
    options = SimpleNamespace(seed=7, cases=150, seconds=20, hang=20)
    cases, failures = fuzz._random(fuzz.find("bodies"), options)
    assert cases >= 30 and not failures


def test_a_failure_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(draw: Draw) -> None:
        assert draw.byte() < 128

    cases, failures = fuzz._random(broken, SimpleNamespace(seed=0, cases=30, seconds=9, hang=9))
    assert 5 < failures <= 20 and cases >= failures
    monkeypatch.setattr(words, "parse_rating", lambda text, prompt: 7)
    assert fuzz._random(words.rating, SimpleNamespace(seed=0, cases=400, seconds=9, hang=9))[1]


def test_a_hang_is_a_failure() -> None:
    def slow(_: Draw) -> None:
        time.sleep(60)

    assert fuzz._random(slow, SimpleNamespace(seed=0, cases=2, seconds=9, hang=0.05)) == (2, 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="atheris has no wheel")
def test_atheris_drives_the_same_targets(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    options = SimpleNamespace(seed=0, cases=300, seconds=60, hang=20, log=tmp_path / "log.jsonl")
    assert fuzz._atheris(words.rating, options) == (300, 0)


# What was found.

HEAD = "kind: label\nlabels: {'a': 1, 'b': 0}\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "body: '{{ prompt }}{{ completion }}{{ x }}'\nsystem: [a]", "'system' must"),
        (HEAD + "body: '{{ prompt }}{{ completion }}'\nname: [1]", "'name' must be text"),
        (HEAD + "body: '{{ prompt }}{{ completion }}'\noptional: [[a]]", "'optional' must be a list"),
        (HEAD + "body: '{{ prompt }}{{ completion }}'\ncompletion: 3", "'completion' must be true or false"),
        (HEAD + "body: \"{{ prompt }}{{ completion }}\\uE000zzz\\uE001\"", "reserved"),
        (HEAD + "body: '{{ prompt }}{{ completion }}'\nprefill: \"\\uE0020\\uE003\"", "reserved"),
        (HEAD + "body: '{{ prompt }}{% if note %}{{ completion }}{% endif %}'", "without ['note'] that is not so"),
        (HEAD + "body: '{{ prompt }}{% if x %}{{ completion }}{% else %}{{ completion }}{{ completion }}{% endif %}'",
         "without ['x'] that is not so"),
        ("kind: label\nlabels: {'a': 1, 'b': .nan}\nbody: '{{ prompt }}{{ completion }}'", "must be finite"),
        ("kind: label\nlabels: {'a': 1, 'b': 1" + "0" * 400 + "}\nbody: '{{ prompt }}{{ completion }}'", "too large"),
        ("kind: generate\npattern: '(1)'\nscale: [.inf, 2]\nbody: '{{ prompt }}{{ completion }}'", "infinity"),
        ("kind: generate\npattern: '(1)'\nscale: [9, 1]\nbody: '{{ prompt }}{{ completion }}'", "[lowest, highest]"),
        (HEAD + "body: '{{ prompt }}{{ completion }}'\nx: " + "[" * 2000, "nested too deeply"),
        (HEAD + "body: '{{ prompt }}{{ completion }}" + "{% if x %}" * 60 + "{% endif %}" * 60 + "'", "nested more"),
        (HEAD + "body: '{{ prompt }}{{ completion }}{{ " + "(" * 5000 + "'", "nested too deeply"),
        (BOMB + HEAD + "body: '{{ prompt }}{{ completion }}'\nspellings: {'a': *a39}", "unknown keys"),
        (HEAD + "body: '{{ prompt }}{{ completion }}'\nspellings: {'a': [[x]]}", "must be text, got list"),
    ],
)  # fmt: skip
def test_prompt_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(ValueError) as caught:
        JudgePrompt.load(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert time.monotonic() - started < 20


def test_a_missing_text_of_a_data_frame_is_not_read_as_nan() -> None:
    with pytest.raises(ValueError, match="'completion' is NaN"):
        JudgePrompt.load("weighted").render({"prompt": "p", "completion": float("nan")})


def test_tool_calls_nested_too_deeply_are_a_value_error() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    row = {"prompt": "p", "completion": [{"role": "assistant", "content": "c", "tool_calls": deep}]}
    with pytest.raises(ValueError, match="nested too deeply"):
        JudgePrompt.load("weighted").render(row)


def test_labels_have_finite_values() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            Labels(("a", "b"), (1.0, bad), (("a",), ("b",)))


def test_broken_benchmark_files_name_themselves(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = tmp_path / "set.jsonl"
    path.write_bytes(json.dumps(good).encode() + b'\n{"prompt": "\xff"}\n' + b"[" * 100_000 + b"\n")
    made = local.load(path)
    assert len(made.items) == 1 and [b.row for b in made.bad] == [2, 3]
    path.write_text(json.dumps({**good, "scale": [0, 10**400]}) + "\n" + json.dumps({**good, "scale": [0, 1e999]}))
    with pytest.raises(ValueError, match="no usable row"):
        local.load(path)
    packed = tmp_path / "set.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(good).encode() * 999)[:-20])
    with pytest.raises(ValueError, match=r"set\.jsonl\.gz is damaged"):
        local.load(packed)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p", "chosen": "a"', "row 1: line 1 is not JSON"),
        ('{"prompt": "p", "chosen": "a"}', "rows may hold"),
        ('{"prompt": "p", "chosen": "a", "rejected": null}', "row 1: missing field rejected"),
        ("[1]", "row 1: line 1 is no JSON object"),
        ('{"prompt": "p", "response": "a", "score": NaN}', "row 1: score is nan"),
        ("", "no rows"),
    ],
)
def test_training_files_without_a_usable_row_name_themselves(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError) as caught:
        read_examples(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_parquet_file_damaged_in_its_pages(tmp_path: Path) -> None:
    data = bytearray(files._table())
    path = tmp_path / "rows.parquet"
    for at in range(20, 400, 7):
        hurt = bytes(data[:at]) + bytes([data[at] ^ 0x5A]) + bytes(data[at + 1 :])
        path.write_bytes(hurt)
        try:
            source = open_source(str(path))
            rows = [r for c in source.chunks(8) for r in c.rows]
        except InputError as err:
            assert str(path) in str(err)
        else:
            assert len(rows) == 40


@pytest.mark.parametrize("kind", sorted(files.LOADERS))
def test_one_flipped_bit_anywhere_is_an_error(tmp_path: Path, kind: str) -> None:
    saved = files._saved()[kind]
    for name, data in saved.items():
        if name == "README.md":
            continue
        for at in range(0, len(data), max(1, len(data) // 60)):
            for other, whole in saved.items():
                hurt = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                (tmp_path / other).write_bytes(hurt if other == name else whole)
            try:
                got = files.LOADERS[kind](tmp_path)
            except (ValueError, FileNotFoundError) as err:
                assert str(tmp_path) in str(err)
            else:
                assert repr(got) == repr(files._intact(kind)), (name, at)


@pytest.mark.parametrize("kind", ["probe", "calibration", "layers"])
def test_files_without_a_checksum_still_load(tmp_path: Path, kind: str) -> None:
    for name, data in files._saved()[kind].items():
        raw = json.loads(data) if name.endswith(".json") else None
        (tmp_path / name).write_bytes(
            json.dumps({k: v for k, v in raw.items() if k != "sha256"}).encode() if raw else data
        )
    assert repr(files.LOADERS[kind](tmp_path)) == repr(files._intact(kind))


def test_an_edited_file_says_what_to_do(tmp_path: Path) -> None:
    for kind, load in (("probe", Probe.load), ("calibration", Calibration.load), ("layers", LayerWeights.load)):
        for name, data in files._saved()[kind].items():
            (tmp_path / name).write_bytes(data.replace(b'"tiny"', b'"else"').replace(b'"n": 4', b'"n": 5'))
        with pytest.raises(ValueError, match="damaged or edited after it was saved"):
            load(tmp_path)


def test_calibrations_that_cannot_be(tmp_path: Path) -> None:
    for method, x, y in (
        ("affine", [1.0], []),
        ("isotonic", [1.0, 0.0], [0.0, 1.0]),
        ("platt", [float("nan"), 1.0], []),
    ):
        arrays = [torch.tensor(v, dtype=torch.float64).numpy() for v in (x, y)]
        Calibration(method, *arrays).save(tmp_path)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not a calibration"):
            Calibration.load(tmp_path)
