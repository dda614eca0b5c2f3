"""`latent-rewards export probe|verifier|labels`: standard sequence-classification reward models."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_rewards.cli import options
from latent_rewards.cli.errors import user_errors

if TYPE_CHECKING:
    from latent_rewards.judge.hf import HFJudge
    from latent_rewards.judge.prompts import JudgePrompt

app = typer.Typer(
    help="Write a standard sequence-classification reward model.", no_args_is_help=True, rich_markup_mode=None
)

Old = Annotated[Path | None, typer.Argument(hidden=True, help="Folder to write; now --output.")]
Prompt = Annotated[str, typer.Option(help="Judge prompt: name of a shipped one, or a file.")]

WRITING: options.Group = {
    "output": (Annotated[Path | None, typer.Option(
        help="Required: folder to write; new or empty, or see --overwrite.",
    )], None),
    "overwrite": (Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")], False),
    "check": (Annotated[bool, typer.Option(
        "--check", help="Load the folder as each installed stack would; 1 if a score differs.",
    )], False),
    "check_python": (Annotated[list[str] | None, typer.Option(
        help="Interpreter whose stacks are checked, instead of this one's; may be given several times.",
    )], None),
}  # fmt: skip


@app.command("probe", cls=options.Command)
@options.takes(options.JUDGE, WRITING)
def probe(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(help="Folder of a linear probe, or the name of a shipped one.")],
    old_output: Old = None,
) -> None:
    """The judge cut to the probe's layer, with the probe as score head."""
    with user_errors():
        folder = _folder(ctx.params["output"], old_output)
        from latent_rewards.export.heads import export_probe
        from latent_rewards.probes.probe import Probe

        loaded = Probe.load(path)
        _write(ctx, folder, lambda judge: export_probe(judge, loaded, folder), loaded.prompt)


@app.command("verifier", cls=options.Command)
@options.takes(options.JUDGE, WRITING)
def verifier(ctx: typer.Context, old_output: Old = None, prompt: Prompt = "verifier") -> None:
    """The judge with the log-odds of yes as score head."""
    with user_errors():
        folder = _folder(ctx.params["output"], old_output)
        from latent_rewards.export.heads import export_verifier
        from latent_rewards.judge.prompts import JudgePrompt

        asked = JudgePrompt.load(prompt)
        _write(ctx, folder, lambda judge: export_verifier(judge, folder, prompt=asked), asked)


@app.command("labels", cls=options.Command)
@options.takes(options.JUDGE, WRITING)
def labels(ctx: typer.Context, old_output: Old = None, prompt: Prompt = "four_rubric") -> None:
    """The judge with one logit per label, for vLLM's /classify."""
    with user_errors():
        folder = _folder(ctx.params["output"], old_output)
        from latent_rewards.export.heads import export_labels
        from latent_rewards.judge.prompts import JudgePrompt

        asked = JudgePrompt.load(prompt)
        _write(ctx, folder, lambda judge: export_labels(judge, folder, prompt=asked), asked)


def _folder(output: Path | None, old: Path | None) -> Path:
    if output is not None and old is not None:
        raise ValueError(f"--output {output} and {old}: give one folder")
    if old is not None:
        options.hint("the folder to write is now --output FOLDER")
    folder = output or old
    if folder is None:
        raise ValueError("export needs --output, a folder to write")
    return folder


def _write(ctx: typer.Context, folder: Path, export: Callable[[HFJudge], Path], prompt: JudgePrompt) -> None:
    """Export, say how the folder is used, and check it where that is asked for."""
    given = ctx.params
    judge = options.load_judge(options.judge_arguments(ctx))
    if given["overwrite"] and (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        shutil.rmtree(folder)  # an earlier export; other folders are left to the refusal
    _say(export(judge))
    if given["check"] or given["check_python"]:
        _check(folder, judge, prompt, given["check_python"])


def _say(folder: Path) -> None:
    from latent_rewards.export.routes import usage

    for stack, line in usage(folder).items():
        typer.echo(f"{stack:9} {line}")


def _check(folder: Path, judge: HFJudge, prompt: JudgePrompt, pythons: list[str] | None) -> None:
    """Tell of each stack what it makes of the folder; 1 where one scores otherwise."""
    from latent_rewards.export.check import check

    good = True
    for found in check(folder, judge, prompt, pythons or [sys.executable]):
        said = (
            found.said if found.difference is None else f"checked: ten scores differ by at most {found.difference:.1e}"
        )
        typer.echo(f"{found.stack:12} {said}" + ("" if found.good else f"   WRONG (more than {found.tolerance:.0e})"))
        good = good and found.good
    if not good:
        raise typer.Exit(1)
