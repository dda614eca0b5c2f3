"""`latent-rewards evaluate`: measure a judge's scores and ratings on benchmarks, and write the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_rewards.cli import options
from latent_rewards.cli.errors import user_errors

if TYPE_CHECKING:
    from latent_rewards.evaluation.config import EvaluateConfig
    from latent_rewards.files.types import JsonObject

_SAME = (
    "output", "cache", "limit", "max_chars", "likert_limit", "samples", "resamples", "robustness_items",
    "consistency_items", "stability", "per_prompt", "part", "read",
)  # fmt: skip


@options.takes(options.REWARDS, options.JUDGE)
def evaluate(
    ctx: typer.Context,
    benchmarks: Annotated[
        str, typer.Option(help="Comma-separated files, names under $LATENT_REWARDS_DATA ('pairwise/*'), or 'hub/...'.")
    ] = "open_ended",
    output: Annotated[Path, typer.Option(help="Folder of the report and the cache.")] = Path("runs/eval"),
    cache: Annotated[Path | None, typer.Option(help="Folder of the cache; default OUTPUT/cache.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items of a benchmark.")] = None,
    max_chars: Annotated[int | None, typer.Option(min=1, help="Leave out items with longer texts.")] = None,
    per_prompt: Annotated[int | None, typer.Option(min=1, help="Most items of one prompt.")] = None,
    part: Annotated[
        str | None, typer.Option(help="'2/4' reads the second of four parts into the cache, and gives no figures.")
    ] = None,
    read: Annotated[bool, typer.Option("--read/--no-read", help="No: figures of what the cache holds.")] = True,
    likert_limit: Annotated[int | None, typer.Option(min=1, help="Most items that Likert judges rate.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Ratings sampled per response.")] = 10,
    keep_layers: Annotated[str, typer.Option(help="Comma-separated layers whose states go to the cache.")] = "",
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap draws.")] = 1000,
    robustness_items: Annotated[int, typer.Option(min=0, help="Items per benchmark for attacks and edits.")] = 0,
    stability: Annotated[
        bool | None,
        typer.Option("--stability/--no-stability", help="Read again in other batches; default: judges under 1B."),
    ] = None,
    consistency_items: Annotated[int, typer.Option(min=0, help="Items per benchmark for pairwise prompts.")] = 0,
    config: options.Config = None,
) -> None:
    """Compare latent scores with Likert ratings; a run that was stopped goes on where it was."""
    from latent_rewards.evaluation.benchmarks import expand
    from latent_rewards.evaluation.report import write as report
    from latent_rewards.evaluation.run import EvaluateConfig
    from latent_rewards.evaluation.run import evaluate as measure
    from latent_rewards.evaluation.verdict import verdict

    with user_errors():
        settings = EvaluateConfig(**_settings(ctx, EvaluateConfig))
        settings.benchmarks = expand(settings.benchmarks)
        results = measure(settings)
        written = [] if results is None else report.write(results, settings.output)
    for path in written:
        typer.echo(path)
    for sentence in [] if results is None else verdict(results):
        typer.echo(sentence)


def _settings(ctx: typer.Context, kind: type[EvaluateConfig]) -> JsonObject:
    """Arguments of the configuration, by the file and the flags over it."""
    known = [f.name for f in dataclasses.fields(kind)]
    out = options.read_settings(ctx.params["config"], [*known, "judge_kwargs"])
    judge, extra = out.get("judge", {}), out.pop("judge_kwargs", None) or {}
    base = {"model": judge} if isinstance(judge, str) else dict(judge)
    rewards = out.get("rewards") or kind().rewards
    wanted = options.wanted_rewards(ctx, rewards)
    plain = all(not one.options and one.own == one.reward for one in wanted)
    out |= {
        "judge": options.judge_arguments(ctx, base | extra),
        "rewards": [one.own for one in wanted] if plain else {o.own: {"reward": o.reward, **o.options} for o in wanted},
    }
    if options.is_given(ctx, "benchmarks") or "benchmarks" not in out:
        out["benchmarks"] = split(ctx.params["benchmarks"])
    if options.is_given(ctx, "keep_layers"):
        out["keep_layers"] = [int(x) for x in split(ctx.params["keep_layers"])]
    return options.over(ctx, out, _SAME)


def split(text: str) -> list[str]:
    """Parts of a comma-separated text."""
    return [part.strip() for part in text.split(",") if part.strip()]
