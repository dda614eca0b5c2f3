"""Every command that a page shows could run as it stands: program, options, files, reward names, extras."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, commands, every_text, mentions, name, read, section
from typer.main import get_command

from latent_rewards import env
from latent_rewards.cli.main import app
from latent_rewards.rewards import build as rewards
from recipes.grpo_report import NEXT

CLI, TRL = ROOT / "docs" / "cli.md", ROOT / "docs" / "trl.md"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def source_of(module: str) -> str:
    """Text of a module that `python -m` names, and of what its package holds."""
    file = ROOT / (module.replace(".", "/") + ".py")
    files = [file] if file.is_file() else sorted(file.with_suffix("").glob("*.py"))
    assert files, f"no module {module}"
    return "\n".join(f.read_text(encoding="utf-8") for f in files)


def check_latent_rewards(words: list[str], *, whole: bool) -> None:
    """A command of ours: its options exist, and with `whole` it parses, with all that is required."""
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    if whole:
        command.make_context("page", list(words))
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert {w for w in words if w.startswith("--")} <= options
    assert not hasattr(command, "commands") or not words or words[0].startswith("-"), f"no command {words[0]}"


def check_module(words: list[str]) -> None:
    """`python -m`: the module is there, and the options and files that it is given."""
    module, *rest = words
    if module == "latent_rewards":
        return check_latent_rewards(rest, whole=False)
    given = {w for w in rest if w.startswith("--")}
    if module == "pytest":
        files = [w for w in rest if w.startswith("tests/")]
        assert files and all((ROOT / f).is_file() for f in files)
        for wanted in (b for a, b in itertools.pairwise(rest) if a == "-k"):
            assert any(re.search(rf"def test_\w*{wanted}", (ROOT / f).read_text()) for f in files), wanted
        return None
    source = source_of(module)
    for option in given - {"--config"}:
        assert re.search(rf"\"{option}\"|^    {option[2:].replace('-', '_')}: ", source, re.MULTILINE), (module, option)
    for config in (b for a, b in itertools.pairwise(rest) if a == "--config"):
        assert (ROOT / config).is_file(), config
    return None


def check(words: list[str], *, whole: bool) -> None:
    """One command as a page shows it.

    Raises:
        AssertionError: it could not run as it stands, or nobody knows its program.
    """
    program, *rest = words
    if program == "latent-rewards":
        check_latent_rewards(rest, whole=whole)
    elif program in ("python", "accelerate"):
        assert "-m" in rest or rest == ["launch"], words
        if "-m" in rest:
            check_module(rest[rest.index("-m") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "pip":
        wanted = {extra for word in rest for extra in ",".join(re.findall(r"\[(.*)\]", word)).split(",") if extra}
        assert wanted <= set(EXTRAS)
    elif program == "trl":
        named = [w.removeprefix("latent_rewards.env.") for w in rest if w.startswith("latent_rewards.env.")]
        assert "--reward_funcs" not in rest or named
        assert set(named) <= set(rewards.REWARDS)
    else:
        assert program == "export", f"no check for {program}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_could_run(page: Path) -> None:
    for words, whole in [*((c, True) for c in commands(page)), *((c, False) for c in mentions(page))]:
        try:
            check(words, whole=whole)
        except Exception as error:
            raise AssertionError(f"{name(page)}: {' '.join(words)}") from error


def test_a_command_that_is_wrong_is_found() -> None:
    for wrong in (
        "latent-rewards score --rewrad x --input a.jsonl --output b.jsonl", "latent-rewards export probe",
        "latent-rewards scores", "python -m recipes.grppo", "python -m recipes.grpo --config configs/grpo/none.yaml",
        "python -m benchmarks.throughput --thread 1", "make quick", "pip install .[trian]", "curl x",
        "trl grpo --reward_funcs latent_rewards.env.wieghted", "python -m pytest tests/test_none.py",
    ):  # fmt: skip
        with pytest.raises(Exception):  # noqa: B017
            check(wrong.split(), whole=True)


def test_what_the_quickstart_says_to_do_next() -> None:
    lines = [re.split(r" {3,}", line.strip())[0] for line in NEXT.strip().splitlines()[1:]]
    assert len(lines) == 3
    for line in lines:
        check(line.split(), whole=True)


def test_every_command_has_a_page() -> None:
    shown = {tuple(words[1:]) for p in PAGES for words in [*commands(p), *mentions(p)] if words[0] == "latent-rewards"}
    for command, found in get_command(app).commands.items():
        for sub in getattr(found, "commands", {"": None}):
            assert any(words[: 1 + bool(sub)] == ((command, sub) if sub else (command,)) for words in shown) or (
                f"`{command} {sub}`" in read(CLI)
            ), f"{command} {sub}"


def test_the_commands_show_every_option_of_score_and_the_page_names_no_other() -> None:
    options = {o for p in get_command(app).commands["score"].params for o in p.opts}
    used = {w for words in commands(CLI) if words[1] == "score" for w in words if w.startswith("--")}
    assert used == options
    assert set(re.findall(r"`?(--[a-z][a-z-]+)", section(CLI, "score"))) <= options | {"--version"}


def test_trl_command_and_environment() -> None:
    (command,) = (words for words in commands(TRL) if words[0] == "trl")
    assert len([w for w in command if w.startswith("latent_rewards.env.")]) == 2
    others = {f"LATENT_REWARDS_{n}" for n in ("DATA", "FENCE", "REWARD", "DEADLINE", "END")}  # of other pages
    used = set(re.findall(r"LATENT_REWARDS_[A-Z]+", every_text())) - others
    source = Path(env.__file__).read_text()
    assert used == set(re.findall(r"LATENT_REWARDS_[A-Z]+", env.__doc__ or "")) and all(n in source for n in used)
    assert used == set(re.findall(r"LATENT_REWARDS_[A-Z]+", read(TRL)))
