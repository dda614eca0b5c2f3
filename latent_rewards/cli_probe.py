"""Command line: `latent-rewards probe train|show|push` and `latent-rewards export probe|verifier|labels`."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from latent_rewards.judge import HFJudge
from latent_rewards.layouts import BadRow
from latent_rewards.prompts import JudgePrompt
from latent_rewards.rowout import to_json

app = typer.Typer(help="Train, look at and publish probes.", no_args_is_help=True)
export_app = typer.Typer(help="Write a standard sequence-classification reward model.", no_args_is_help=True)

Judge = Annotated[str, typer.Option(help="Judge: hub id, folder or 'embedded'.")]
Prompt = Annotated[str, typer.Option(help="Judge prompt: shipped name or file.")]
Out = Annotated[Path, typer.Argument(help="Folder to write; new or empty.")]


@app.command()
def train(
    data: Annotated[list[Path], typer.Argument(help="JSON Lines or Parquet files: pairs, lists or ratings.")],
    out: Annotated[Path, typer.Option(help="Folder of the probe; features go into it too.")],
    judge: Judge = "embedded",
    prompt: Prompt = "weighted",
    layers: Annotated[str, typer.Option(help="Layers to try, e.g. '8,12,16'; empty for all.")] = "",
    objective: Annotated[str, typer.Option(help="bce, kto, bradley_terry, regression or ordinal.")] = "bradley_terry",
    architecture: Annotated[str, typer.Option(help="linear, mlp or orthogonal.")] = "linear",
    guards: Annotated[str, typer.Option(help="Length guards: erase, nuisance, balance.")] = "erase,balance",
    select: Annotated[str, typer.Option(help="What picks the layer: accuracy, matched, balanced, r.")] = "balanced",
    limit: Annotated[int | None, typer.Option(help="Most rows of each file.")] = None,
    test_share: Annotated[float, typer.Option(help="Share of prompts kept for the figures.")] = 0.2,
    seed: int = 42,
) -> None:
    """Train a probe on data files and say how good it is, against the prompted judge and against length alone."""
    from latent_rewards.examples import gather, sources
    from latent_rewards.probe_card import table
    from latent_rewards.probe_run import RunOptions, train_probe
    from latent_rewards.probe_training import FitOptions

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = tuple(int(x) for x in layers.split(",") if x.strip())
    fit = FitOptions(
        architecture=architecture, objective=objective, seed=seed,  # type: ignore[arg-type]
        guards=tuple(g for g in guards.split(",") if g),  # type: ignore[misc]
    )  # fmt: skip
    run = RunOptions(layers=chosen, select=select, test_share=test_share)  # type: ignore[arg-type]
    bad: list[BadRow] = []
    try:
        examples = gather(data, limit=limit, bad=bad)
        about = {"data": sources(data, bad), "command": "latent-rewards " + shlex.join(sys.argv[1:])}
        probe, rows = train_probe(
            HFJudge(judge), JudgePrompt.load(prompt), examples, features_folder=out / "features", fit=fit,
            run=run, training=about,
        )  # fmt: skip
    except (ValueError, OSError) as err:
        typer.echo(f"Error: {err}", err=True)
        raise typer.Exit(2) from err
    probe.save(out)
    (out / "sweep.json").write_text(to_json(rows, indent=1), encoding="utf-8")
    typer.echo(table(probe.config.training["metrics"]) if probe.config.training.get("metrics") else "no test prompts")
    typer.echo(f"ProbeReward(HFJudge({judge!r}), {str(out)!r})")


@app.command()
def show(path: Annotated[str, typer.Argument(help="Folder of a probe, or the name of a shipped one.")]) -> None:
    """Print a probe's card: judge, layer, data, figures, limits."""
    from latent_rewards.probe_card import model_card
    from latent_rewards.probes import Probe

    typer.echo(model_card(Probe.load(path)))


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="Folder of a probe.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, user/name.")],
    private: bool = False,
) -> None:
    """Publish a probe on the hub, with its card."""
    from latent_rewards.probes import Probe

    typer.echo(str(Probe.load(path).push_to_hub(repo, private=private)))


@export_app.command("probe")
def export_probe_command(
    path: Annotated[str, typer.Argument(help="Folder of a linear probe, or the name of a shipped one.")],
    out: Out,
    judge: Judge = "embedded",
) -> None:
    """The judge cut to the probe's layer, with the probe as score head."""
    from latent_rewards.export import export_probe
    from latent_rewards.probes import Probe

    _say(export_probe(HFJudge(judge), Probe.load(path), out))


@export_app.command("verifier")
def export_verifier_command(out: Out, judge: Judge = "embedded", prompt: Prompt = "verifier") -> None:
    """The judge with the log-odds of yes as score head."""
    from latent_rewards.export import export_verifier

    _say(export_verifier(HFJudge(judge), out, prompt=prompt))


@export_app.command("labels")
def export_labels_command(out: Out, judge: Judge = "embedded", prompt: Prompt = "four_rubric") -> None:
    """The judge with one logit per label, for vLLM's /classify."""
    from latent_rewards.export import export_labels

    _say(export_labels(HFJudge(judge), out, prompt=prompt))


def _say(folder: Path) -> None:
    from latent_rewards.export import usage

    for stack, line in usage(folder).items():
        typer.echo(f"{stack:9} {line}")
