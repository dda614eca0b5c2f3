"""`latent-rewards probe train|show|push`."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_rewards.cli import options
from latent_rewards.cli.errors import user_errors
from latent_rewards.cli.evaluate import split

if TYPE_CHECKING:
    from latent_rewards.files.types import Row
    from latent_rewards.judge.layouts import BadRow
    from latent_rewards.probes.probe import Probe

app = typer.Typer(help="Train, look at and publish probes.", no_args_is_help=True, rich_markup_mode=None)


@app.command(cls=options.Command)
@options.takes(options.JUDGE)
def train(
    ctx: typer.Context,
    data: Annotated[list[Path], typer.Argument(help="JSON Lines or Parquet files: pairs, lists or ratings.")],
    output: Annotated[Path, typer.Option(help="Folder of the probe; features go into it too.")],
    prompt: Annotated[str, typer.Option(help="Judge prompt: name of a shipped one, or a file.")] = "weighted",
    aspects: Annotated[
        str, typer.Option(help="Columns of ratings, e.g. 'accuracy,clarity', for a probe with one output for each.")
    ] = "",
    layers: Annotated[str, typer.Option(help="Layers to try, e.g. '8,12,16'; empty for all.")] = "",
    objective: Annotated[
        str | None,
        typer.Option(help="bce, kto, bradley_terry (the default), regression (that of aspects) or ordinal."),
    ] = None,
    architecture: Annotated[str, typer.Option(help="linear, mlp or orthogonal.")] = "linear",
    guards: Annotated[
        str | None, typer.Option(help="Length guards: erase, nuisance, balance; default erase,balance; aspects: erase.")
    ] = None,
    select: Annotated[str, typer.Option(help="What picks the layer: accuracy, matched, balanced, r.")] = "balanced",
    limit: Annotated[int | None, typer.Option(min=1, help="Most rows of each file.")] = None,
    test_share: Annotated[float, typer.Option(help="Share of prompts kept for the figures.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Collect anew where the output has features.")] = False,
) -> None:
    """Train a probe on data files and say how good it is, against the prompted judge and against length alone."""
    with user_errors():
        from latent_rewards.judge.prompts import JudgePrompt
        from latent_rewards.probes.examples import gather, sources
        from latent_rewards.probes.fit import FitOptions
        from latent_rewards.probes.train import RunOptions, check_objective, check_prompts, train_probe

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        names = tuple(split(aspects))
        bad: list[BadRow] = []
        fit = FitOptions(
            architecture=architecture, seed=seed,  # type: ignore[arg-type]
            objective=objective or ("regression" if names else "bradley_terry"),  # type: ignore[arg-type]
            guards=tuple(split(("erase" if names else "erase,balance") if guards is None else guards)),  # type: ignore[arg-type]
        )  # fmt: skip
        run = RunOptions(layers=tuple(map(int, split(layers))), select=select, test_share=test_share)  # type: ignore[arg-type]
        loaded = JudgePrompt.load(prompt)
        examples = gather(data, limit=limit, bad=bad, aspects=names)
        check_objective(examples, fit.objective)  # before a large judge is loaded
        check_prompts(examples, run)
        about = {"data": sources(data, bad), "command": "latent-rewards " + shlex.join(sys.argv[1:])}
        frozen = options.load_judge(options.judge_arguments(ctx))
        if overwrite and (output / "features" / "features.json").is_file():
            shutil.rmtree(output / "features")
        probe, rows = train_probe(
            frozen, loaded, examples, features_folder=output / "features", fit=fit, run=run, training=about,
            outputs=names or ("score",),
        )  # fmt: skip
        _write(probe, rows, output)
    typer.echo(f"ProbeReward(HFJudge({ctx.params['judge']!r}), {str(output)!r})")


def _write(probe: Probe, rows: list[Row], output: Path) -> None:
    from latent_rewards.files.outputs import to_json
    from latent_rewards.probes.card import table
    from latent_rewards.probes.verdict import verdict

    probe.save(output)
    (output / "sweep.json").write_text(to_json(rows, indent=1), encoding="utf-8")
    metrics = probe.config.training.get("metrics")
    typer.echo(table(metrics) if metrics else "no test prompts")
    for sentence in verdict(metrics or []):
        typer.echo(sentence)


@app.command(cls=options.Command)
def show(path: Annotated[str, typer.Argument(help="Folder of a probe, or the name of a shipped one.")]) -> None:
    """Print a probe's card: judge, layer, data, figures, limits."""
    with user_errors():
        from latent_rewards.probes.card import model_card
        from latent_rewards.probes.probe import Probe

        typer.echo(model_card(Probe.load(path)))


@app.command(cls=options.Command)
def push(
    path: Annotated[Path, typer.Argument(help="Folder of a probe.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Seen by yourself only.")] = False,
) -> None:
    """Publish a probe on the hub, with its card."""
    with user_errors():
        from latent_rewards.probes.probe import Probe

        typer.echo(str(Probe.load(path).push_to_hub(repo, private=private)))
