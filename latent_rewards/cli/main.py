"""The command line, put together; each command has a file."""

from __future__ import annotations

from typing import Annotated

import typer

from latent_rewards.cli import errors, export, panel, probe
from latent_rewards.cli.best_of_n import best_of_n
from latent_rewards.cli.evaluate import evaluate
from latent_rewards.cli.score import score
from latent_rewards.cli.serve import serve
from latent_rewards.cli.spelling import Command
from latent_rewards.version import __version__

app = typer.Typer(
    cls=errors.Group, help="Scores from the probabilities and hidden states of a frozen judge model.",
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None,
)  # fmt: skip


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Scores from the probabilities and hidden states of a frozen judge model."""
    errors.debug.set(debug)
    if version:
        typer.echo(f"latent-rewards {__version__}")
        raise typer.Exit


@app.command(cls=Command)
def prompts() -> None:
    """List the shipped judge prompts: name, kind, first line of its file."""
    from latent_rewards.judge.prompts import JudgePrompt, prompt_folder

    for path in sorted(prompt_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        typer.echo(f"{path.stem:<16} {JudgePrompt.load(path).kind:<9} {first}")


for command in (score, evaluate, best_of_n, serve):
    app.command(cls=Command)(command)
app.add_typer(probe.app, name="probe")
app.add_typer(panel.app, name="panel")
app.add_typer(export.app, name="export")
