"""`latent-rewards export probe|verifier|labels`: standard sequence-classification reward models."""

from __future__ import annotations

import json
import sys
import tempfile
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
        _write(ctx, folder, lambda judge, made: export_probe(judge, loaded, made), loaded.prompt)


@app.command("verifier", cls=options.Command)
@options.takes(options.JUDGE, WRITING)
def verifier(ctx: typer.Context, old_output: Old = None, prompt: Prompt = "verifier") -> None:
    """The judge with the log-odds of yes as score head."""
    with user_errors():
        folder = _folder(ctx.params["output"], old_output)
        from latent_rewards.export.heads import export_verifier
        from latent_rewards.judge.prompts import JudgePrompt

        asked = JudgePrompt.load(prompt)
        _write(ctx, folder, lambda judge, made: export_verifier(judge, made, prompt=asked), asked)


@app.command("labels", cls=options.Command)
@options.takes(options.JUDGE, WRITING)
def labels(ctx: typer.Context, old_output: Old = None, prompt: Prompt = "four_rubric") -> None:
    """The judge with one logit per label, for vLLM's /classify."""
    with user_errors():
        folder = _folder(ctx.params["output"], old_output)
        from latent_rewards.export.heads import export_labels
        from latent_rewards.judge.prompts import JudgePrompt

        asked = JudgePrompt.load(prompt)
        _write(ctx, folder, lambda judge, made: export_labels(judge, made, prompt=asked), asked)


def _folder(output: Path | None, old: Path | None) -> Path:
    if output is not None and old is not None:
        raise ValueError(f"--output {output} and {old}: give one folder")
    if old is not None:
        options.hint("the folder to write is now --output FOLDER")
    folder = output or old
    if folder is None:
        raise ValueError("export needs --output, a folder to write")
    return folder


def _write(ctx: typer.Context, folder: Path, export: Callable[[HFJudge, Path], Path], prompt: JudgePrompt) -> None:
    """Export, say how the folder is used, and check it where that is asked for."""
    given = ctx.params
    replaces = given["overwrite"] and folder.is_dir() and any(folder.iterdir())
    if replaces and not _is_export(folder):
        raise ValueError(f"{folder} is not an earlier export, so --overwrite leaves it alone; give another folder")
    judge = options.load_judge(options.judge_arguments(ctx))
    if replaces:
        _replace(folder, judge, export)
    else:
        export(judge, folder)
    _say(folder)
    if given["check"] or given["check_python"]:
        _check(folder, judge, prompt, given["check_python"])


def _is_export(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(config, dict) and "latent_rewards" in config


def _replace(folder: Path, judge: HFJudge, export: Callable[[HFJudge, Path], Path]) -> None:
    """Export beside an earlier export, which stays as it is unless all went well."""
    from latent_rewards.engine.loading import judge_source
    from latent_rewards.files.atomic import publish_folder

    folder = folder.resolve()  # a link stays one
    source = judge_source(judge.model_name, **{k: judge._load_options[k] for k in ("revision", "adapter")})
    for own in filter(None, (source.model, source.adapter)):
        if Path(own).resolve().is_relative_to(folder):
            raise ValueError(f"{folder} holds the judge {own}, which --overwrite would delete; give another folder")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temp:
        publish_folder(export(judge, Path(temp) / "new"), folder, Path(temp) / "old")


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
