"""The package's front, and that its rooms are what `make lint` checks."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import latent_rewards
from latent_rewards import compat

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "latent_rewards"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=check)


def python(code: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True
    ).stdout.split()


def test_the_front_is_light() -> None:
    loaded = python("import sys, latent_rewards; print(*sys.modules)")
    assert not {"torch", "transformers", "numpy", "jinja2", "yaml"} & set(loaded)
    assert [m for m in loaded if m.startswith("latent_rewards")] == ["latent_rewards.version", "latent_rewards"]


def without_torch(code: str) -> subprocess.CompletedProcess[str]:
    """In an interpreter that has neither torch nor transformers."""
    return run("-c", f"import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n{code}")


def test_the_client_needs_no_torch() -> None:
    done = without_torch(
        "from latent_rewards.serving.client import RewardClient\n"
        "import latent_rewards.serving.adapters.verl\n"
        "print(RewardClient('http://127.0.0.1:9').transport.url)"
    )
    assert done.stdout.strip() == "http://127.0.0.1:9", done.stderr
    for code in ("from latent_rewards import HFJudge", "from latent_rewards.serving import ServerJudge"):
        assert "pip install 'latent-rewards[judge]'" in without_torch(code).stderr
    cli = "from latent_rewards.cli import app; app(['score', '--describe'])"
    done = without_torch(cli)
    assert done.returncode == 2 and "error: a judge in this process needs torch" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_base_pins_no_stack() -> None:
    base = {re.split(r"[<>=\[]", d)[0] for d in PROJECT["project"]["dependencies"]}
    assert not base & {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    every = [d for extra in PROJECT["project"]["optional-dependencies"].values() for d in extra]
    assert not [d for d in every if re.match(r"(torch|transformers|trl|peft|accelerate|datasets)\b.*(<|==)", d)]


def test_versions_outside_the_tested_range_are_told(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(compat, "version", {"torch": "2.5.1+cpu", "transformers": "9.0.0", "trl": "1.3.0"}.get)
    compat.warn_if_untested.cache_clear()
    compat.warn_if_untested()
    compat.warn_if_untested()
    (said,) = caplog.messages
    assert "torch 2.5.1+cpu (tested: 2.11 to 2.15), transformers 9.0.0 (tested: 4.57 to 5.24)" in said
    assert "trl" not in said
    compat.warn_if_untested.cache_clear()


def test_every_name_of_the_front_is_there() -> None:
    names = python("from latent_rewards import *; print(*(n for n in dir() if n[0] != '_'))")
    assert sorted(names) == sorted(latent_rewards.__all__) and len(names) == 29
    assert set(names) < set(dir(latent_rewards))
    for name in names:
        assert getattr(latent_rewards, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = latent_rewards.Nothing


def test_the_front_tells_type_checkers_the_same() -> None:
    """The imports under TYPE_CHECKING are those that happen."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for test in tree.body if isinstance(test, ast.If) for node in test.body]
    told = {a.name: node.module for node in imports if isinstance(node, ast.ImportFrom) for a in node.names}
    assert told == latent_rewards._HOME_OF and set(told) == set(latent_rewards.__all__)
    for name, home in told.items():
        assert getattr(latent_rewards, name).__module__ == home, "where it is defined, not where it passes through"


def test_the_version_is_stated_once_more() -> None:
    assert latent_rewards.__version__ == PROJECT["project"]["version"]


def test_rooms_and_their_arrows() -> None:
    """`lint-imports` passes, and every room is in its layers (the contract is exhaustive)."""
    (command,) = entry_points(group="console_scripts", name="lint-imports")
    call = f"import sys; from {command.module} import {command.attr} as main; sys.exit(main())"
    done = run("-c", call, "--no-logo", "--no-cache")
    assert done.returncode == 0, done.stdout
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    assert {"layers", "acyclic_siblings", "forbidden"} == {c["type"] for c in contracts}
    assert next(c for c in contracts if c["type"] == "layers")["exhaustive"]
    assert "lint-imports" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("room", sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py")))
def test_each_room_says_what_is_inside(room: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert 1 <= len(text.splitlines()) <= 6
    modules = {p.stem for p in (PACKAGE / room).iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert modules == {"__init__"} or any(f"`{name}`" in text for name in modules), "it names where to begin"
