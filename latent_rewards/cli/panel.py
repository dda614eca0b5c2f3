"""`latent-rewards panel train|show`."""

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
    from latent_rewards.judge.layouts import BadRow
    from latent_rewards.judge.reading import Judge
    from latent_rewards.probes.questions import Question

app = typer.Typer(help="Train and look at panels.", no_args_is_help=True, rich_markup_mode=None)


@app.command(cls=options.Command)
@options.takes(options.JUDGE)
def train(
    ctx: typer.Context,
    data: Annotated[list[Path], typer.Argument(help="JSON Lines or Parquet files: pairs, lists or ratings.")],
    output: Annotated[Path, typer.Option(help="Folder of the panel; readings go into it too.")],
    prompts: Annotated[
        str,
        typer.Option(help="Judge prompts that are asked, e.g. 'weighted,verifier'; empty for the default questions."),
    ] = "",
    criteria: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of yes/no criteria that are asked, too; negative: against.")
    ] = None,
    statistics: Annotated[
        str, typer.Option(help="Taken of each reading: mean, sd, entropy, mass; normed and raw: mean of all layers.")
    ] = "mean,sd",
    objective: Annotated[
        str | None, typer.Option(help="logistic (pairs, or 0 and 1) or ridge (ratings); default by the labels.")
    ] = None,
    length: Annotated[str, typer.Option(help="ignore, or residual: take out what the length explains.")] = "ignore",
    limit: Annotated[int | None, typer.Option(min=1, help="Most rows of each file.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation; a prompt stands in one.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 42,
    server: Annotated[
        str | None, typer.Option(help="URL of a server to ask instead; --judge-option then takes its tokenizer, say.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What runs there: latent-rewards, vllm, sglang or llamacpp.")
    ] = "latent-rewards",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Read anew where the output has readings.")] = False,
) -> None:
    """Fit a panel on 50 to 500 labelled rows and say how good it is, against its best member and length alone."""
    with user_errors():
        from latent_rewards.probes.examples import gather, sources
        from latent_rewards.probes.panel_card import measured, weights
        from latent_rewards.probes.panel_fit import PanelOptions
        from latent_rewards.probes.panel_train import train_panel
        from latent_rewards.probes.questions import features_of

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        # Any words may come from a command line; PanelOptions refuses those that it does not know.
        fit = PanelOptions(objective=objective, length=length, folds=folds, seed=seed)  # type: ignore[arg-type]
        questions, taken = _questions(split(prompts), criteria), split(statistics)
        features_of(questions, taken)  # before a large judge is loaded
        bad: list[BadRow] = []
        examples = gather(data, limit=limit, bad=bad)
        judge = _judge(ctx, server, engine)
        if overwrite and (output / "readings").is_dir():
            shutil.rmtree(output / "readings")
        about = {"data": sources(data, bad), "command": "latent-rewards " + shlex.join(sys.argv[1:])}
        panel = train_panel(
            judge, questions, examples, statistics=taken, folder=output / "readings", options=fit, training=about
        )
        panel.save(output)
        typer.echo(weights(panel) + "\n" + measured(panel.training["metrics"]))
    typer.echo(f"PanelReward(judge, {str(output)!r})")


def _judge(ctx: typer.Context, server: str | None, engine: str) -> Judge:
    """The judge of --judge, or the one behind a server."""
    if server is None:
        return options.load_judge(options.judge_arguments(ctx))
    from latent_rewards.serving.server_judge import ServerJudge

    if given := [f"--{n}" for n in ("judge", "device", "dtype", "revision") if options.is_given(ctx, n)]:
        raise ValueError(f"{' and '.join(given)}: the server has its own judge; leave it out beside --server")
    return ServerJudge(server, engine=engine, **options.key_values(ctx.params["judge_option"], "--judge-option"))


def _questions(prompts: list[str], criteria: Path | None) -> tuple[Question, ...]:
    """The questions that are asked for; the default ones where none are."""
    from latent_rewards.judge.prompts import JudgePrompt
    from latent_rewards.probes.questions import Question, default_questions
    from latent_rewards.rewards.criteria import load_criteria

    loaded = [JudgePrompt.load(name) for name in prompts]
    asked = [Question(prompt.name, prompt) for prompt in loaded]
    if criteria is not None:
        criterion = JudgePrompt.load("criterion")
        for i, one in enumerate(load_criteria(criteria)):
            name = one.name or f"criterion {i + 1}"
            asked.append(Question(name, criterion, one.text, -1 if one.weight < 0 else 1))
    return tuple(asked) or default_questions()


@app.command(cls=options.Command)
def show(path: Annotated[Path, typer.Argument(help="Folder of a panel.")]) -> None:
    """Print a panel's card: judge, questions, weights, data, figures, limits."""
    with user_errors():
        from latent_rewards.probes.panel import Panel
        from latent_rewards.probes.panel_card import panel_card

        typer.echo(panel_card(Panel.load(path)))
