"""Every page tells the truth: its code runs, its files, names and links exist."""

from __future__ import annotations

import doctest
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import (
    DOCS,
    LINKED,
    PAGES,
    README,
    ROOT,
    anchors,
    blocks,
    commands,
    every_text,
    fences,
    imports,
    links,
    name,
    paths,
    read,
    section,
)  # fmt: skip

from latent_rewards import JudgePrompt, env
from latent_rewards.judge.prompts import prompt_folder
from latent_rewards.rewards import build as rewards
from latent_rewards.rewards.build import read_rewards

CLI, TRL, PROMPTS, FAULTS = (ROOT / "docs" / f"{page}.md" for page in ("cli", "trl", "prompts", "faults"))
DRIVER = """
import contextlib, io, json, sys, traceback
found = {}
for page, codes in json.load(open("blocks.json")).items():
    names, found[page] = {"__name__": "__main__"}, []
    for code in codes:
        out, error = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, page, "exec"), names)
        except Exception:
            error = traceback.format_exc()
        found[page].append([out.getvalue(), error])
json.dump(found, open("found.json", "w"))
"""


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str | None]]]:
    """What each piece of code of each page printed, and its error: Python blocks, imports of sessions, a command.

    One interpreter runs them all, since starting one takes longer than most of them.
    """
    folder = tmp_path_factory.mktemp("pages")
    code = {name(p): [*blocks(p, "python"), *imports(p)] for p in PAGES}
    (folder / "pairs.jsonl").write_text(blocks(CLI, "json")[0])
    code["command"] = [f"from latent_rewards.cli.main import app\napp({commands(CLI)[0][1:]}, standalone_mode=False)"]
    code["rows"] = ["print(open('scored.jsonl').read())"]
    (folder / "blocks.json").write_text(json.dumps(code))
    for text in (text for p in PAGES for text in blocks(p, "yaml")):
        if file := re.match(r"# (\w+\.yaml)\n", text):
            (folder / file[1]).write_text(text)
    done = run([sys.executable, "-c", DRIVER], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") or imports(p)], ids=name)
def test_python_blocks_run_one_after_the_other(page: Path, printed: dict[str, Any]) -> None:
    assert not [error for _, error in printed[name(page)] if error]


def test_the_first_page_prints_what_it_says(printed: dict[str, Any]) -> None:
    found = fences(README)
    shown = [
        after for (language, _), (then, after) in itertools.pairwise(found) if (language, then) == ("python", "console")
    ]
    assert len(shown) == 2
    for text, (out, _) in zip(shown, printed["README.md"], strict=True):
        said, was = (re.sub(r"('weighted-guarded/seconds': )[\d.]+", r"\g<1>0", t) for t in (text, out))
        # The trainer prints a line of its own before ours.
        was = "\n".join(was.splitlines()[-len(said.splitlines()) :])
        number = r"-?\d+\.?\d*"
        assert re.sub(r"\s", "", re.sub(number, "#", said)) == re.sub(r"\s", "", re.sub(number, "#", was))
        # Other kinds of CPU round otherwise.
        assert [float(n) for n in re.findall(number, was)] == pytest.approx(
            [float(n) for n in re.findall(number, said)], abs=0.2
        )


def test_the_first_command_runs_on_the_rows_shown(printed: dict[str, Any]) -> None:
    assert commands(CLI)[0][:2] == ["latent-rewards", "score"] and not printed["command"][0][1]
    rows = [json.loads(line) for line in printed["rows"][0][0].splitlines() if line]
    assert len(rows) == 2 and all(0 <= r["weighted"] <= 10 for r in rows)


def test_yaml_blocks_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((prompt,), (config,), (named,)) = (blocks(page, "yaml") for page in (PROMPTS, TRL, CLI))
    assert sum(len(blocks(page, "yaml")) for page in PAGES) == 3
    (tmp_path / "rewards.yaml").write_text(named)
    assert [one.own for one in read_rewards(tmp_path / "rewards.yaml")] == ["strict", "safe", "verifier"]
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


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "pycon")], ids=name)
def test_sessions_compile(page: Path) -> None:
    assert imports(page), "a session says where its names come from"
    for block in blocks(page, "pycon"):
        for example in doctest.DocTestParser().get_examples(block):
            compile(example.source, name(page), "single")


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    assert {name(page) for page in DOCS} <= {link.partition("#")[0] for link in links(README)}
    assert len(DOCS) >= 14


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_a_page_begins_with_what_it_is_for_and_a_command(page: Path) -> None:
    lines = read(page).splitlines()
    assert lines[0].startswith("# ") and lines[2] and not lines[2].startswith(("#", "`"))
    assert "```bash" in lines[:12] and len(lines) >= 25


@pytest.mark.parametrize("path", paths())
def test_paths_in_the_text_exist(path: str) -> None:
    if path.startswith("benchmarks/results/") and not Path(path).suffix:  # what --output names, without its ending
        assert list((ROOT / path).parent.glob(Path(path).name + ".*"))
    else:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_dotted_names_exist() -> None:
    names = set(re.findall(r"(?<![\w/])latent_rewards(?:\.[A-Za-z]\w*)+", every_text()))
    assert len(names) >= 10
    for dotted in names - {f"latent_rewards.env.{reward}" for reward in rewards.REWARDS}:
        module, last = dotted, ""
        if not module_file(dotted):
            module, _, last = dotted.rpartition(".")
        source = module_file(module)
        assert source, f"{dotted}: no module {module}"
        assert not last or re.search(rf"\b{last}\b", source.read_text(encoding="utf-8")), dotted


def module_file(module: str) -> Path | None:
    """File of a module or of a package; not imported, as adapters want stacks that are not here."""
    stem = ROOT / module.replace(".", "/")
    return next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file()), None)


def test_the_prompts_page_names_every_prompt() -> None:
    listed = set(re.findall(r"`prompts/(\w+)\.yaml`", section(PROMPTS, "The shipped prompts")))
    assert listed == {p.stem for p in prompt_folder().glob("*.yaml")}


def test_every_fault_names_its_tests() -> None:
    rows = [row for row in section(FAULTS, "Faults").splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rsplit(" | ", 1)[1])
        assert named, row
        for file, test in named:
            (path,) = (ROOT / "tests").rglob(file)
            assert f"def {test}(" in path.read_text(encoding="utf-8"), (file, test)
