"""The README tells the truth: its code runs, its options, files, prompts and names exist."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from latent_rewards import JudgePrompt, env, rewards
from latent_rewards.cli import app
from latent_rewards.prompts import prompt_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def shell_commands(program):
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[w.index(program) :] for w in words if program in w]


def tree():
    """Path of every line of the annotated tree."""
    folders, paths = [], []
    for line in blocks("text")[0].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        paths.append("".join(folders[: depth + 1]))
    return paths


def run(arguments, folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


def test_python_blocks_run_one_after_the_other(tmp_path):
    code = blocks("python")
    assert len(code) >= 3
    (tmp_path / "readme.py").write_text("\n".join(code))
    done = run([sys.executable, "readme.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert [n for n in shown if n in ("weighted", "cross_layer", "verifier")] == ["weighted", "cross_layer", "verifier"]
    assert float(done.stdout.split()[-1]) > 1e-3, "four sampled completions have spread"


def test_the_first_command_runs_on_the_rows_shown(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(blocks("json")[0])
    command = shell_commands("latent-rewards")[0]
    done = run([sys.executable, "-c", "from latent_rewards.cli import app; app()", *command[1:]], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(0 <= r["weighted"] <= 10 for r in rows)


def test_command_line_section_names_every_option_and_no_other():
    options = {o for p in get_command(app).commands["score"].params for o in p.opts}
    commands = shell_commands("latent-rewards")
    assert {c[1] for c in commands} == {"score", "prompts", "--version", "evaluate", "probe", "export"}
    for command in commands:
        if command[1] in ("evaluate", "probe", "export"):
            found = get_command(app).commands[command[1]]
            found = found.commands[command[2]] if hasattr(found, "commands") else found
            given = {w for w in command if w.startswith("--")}
            assert given <= {o for p in found.params for o in p.opts}, command
    used = {w for c in commands if c[1] == "score" for w in c if w.startswith("--")}
    assert used == options
    text = set(re.findall(r"`?(--[a-z][a-z-]+)", section("Command line")))
    assert text <= options | {"--version"}


def test_trl_command_names_rewards_that_exist():
    (command,) = shell_commands("trl")
    names = [w.removeprefix("latent_rewards.env.") for w in command if w.startswith("latent_rewards.env.")]
    assert len(names) == 2 and set(names) <= set(rewards.REWARDS)
    used = set(re.findall(r"LATENT_REWARDS_[A-Z]+", README)) - {"LATENT_REWARDS_DATA", "LATENT_REWARDS_FENCE"}
    source = Path(env.__file__).read_text()
    assert used == set(re.findall(r"LATENT_REWARDS_[A-Z]+", env.__doc__)) and all(n in source for n in used)


def test_reward_table_is_complete():
    rows = re.findall(r"^\| (`.*?) \| (`\w+`) \|", section("What each reward computes"), re.MULTILINE)
    names = [n for cell, _ in rows for n in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(rewards.REWARDS)
    package = importlib.import_module("latent_rewards")
    assert all(hasattr(package, cls.strip("`")) for _, cls in rows)


def test_yaml_blocks_load(tmp_path, monkeypatch):
    config, prompt = blocks("yaml")
    (tmp_path / "concise.yaml").write_text(prompt)
    own = JudgePrompt.load(tmp_path / "concise.yaml")
    assert own.slots == ("audience", "completion", "prompt") and own.labels.names == ("yes", "no")
    (tmp_path / "env.yaml").write_text(config)
    monkeypatch.setenv("LATENT_REWARDS_CONFIG", str(tmp_path / "env.yaml"))
    env._config.cache_clear()
    try:
        assert env._config() == yaml.safe_load(config)
    finally:
        env._config.cache_clear()


@pytest.mark.parametrize("path", tree())
def test_tree_names_what_exists(path):
    found = ROOT / path
    assert found.is_dir() if path.endswith("/") else found.is_file()


def test_tree_names_every_module_and_prompt():
    modules = {f"latent_rewards/{p.name}" for p in (ROOT / "latent_rewards").glob("*.py")}
    shipped = {f"prompts/{p.name}" for p in prompt_folder().glob("*.yaml")}
    assert modules | shipped <= set(tree())


def test_paths_and_functions_named_in_the_text_exist():
    paths = set(re.findall(r"\b(?:configs|recipes|prompts)/[\w/]+\.(?:yaml|py)", README))
    assert paths and not [p for p in paths if not (ROOT / p).is_file()]
    functions = re.findall(r"`(readouts|likert|rewards)\.(\w+)`", README)
    assert len(functions) >= 6
    for module, name in functions:
        assert hasattr(importlib.import_module(f"latent_rewards.{module}"), name), (module, name)


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {c[1] for c in shell_commands("make")} <= set(targets)


def test_links_inside_the_page_lead_somewhere():
    anchors = {re.sub(r"[^a-z0-9 -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.*)$", README, re.M)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors
