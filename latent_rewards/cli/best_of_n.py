"""`latent-rewards best-of-n`: from prompts or stored completions to selected data."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_rewards.cli import options
from latent_rewards.cli.errors import fail, user_errors

if TYPE_CHECKING:
    from latent_rewards.best_of_n import BestOfNConfig
    from latent_rewards.files.types import JsonObject

RUN: options.Group = {
    "completions_column": (Annotated[str, typer.Option(help="Column with a list of completions.")], "completions"),
    "id_column": (Annotated[str, typer.Option(help="Column whose values must be unique, where there is one.")], "id"),
    "score_column": (Annotated[str, typer.Option(help="Name of the combined score.")], "score"),
    "shard_size": (Annotated[int, typer.Option(min=1, help="Completions per shard: the most that a kill loses.")], 512),
    "threads": (Annotated[int | None, typer.Option(min=1, help="CPU threads per process.")], None),
    "format": (Annotated[str, typer.Option(help="Of the results: jsonl or parquet.")], "jsonl"),
    "engine": (Annotated[str, typer.Option(help="local, also under a launcher, or ray.")], "local"),
    "workers": (Annotated[int, typer.Option(min=1, help="Actors of the Ray engine.")], 2),
    "gpus_per_worker": (Annotated[float, typer.Option(min=0, help="Of the Ray engine.")], 0.0),
}
POLICY: options.Group = {
    "generator": (Annotated[str | None, typer.Option(help="Policy that writes completions, if none are given.")], None),
    "backend": (Annotated[str, typer.Option(help="What runs the policy: hf, vllm or server.")], "hf"),
    "generator_option": (Annotated[list[str] | None, typer.Option(
        help="key=value for the backend, such as url=http://host:8000/v1.",
    )], None),
}  # fmt: skip
SAMPLING: options.Group = {
    "n": (Annotated[int, typer.Option("-n", "--n", min=1, help="Completions to generate per prompt.")], 8),
    "sampling_temperature": (Annotated[float, typer.Option(min=0, help="Of generation.")], 1.0),
    "top_p": (Annotated[float, typer.Option(help="Of generation.")], 1.0),
    "max_new_tokens": (Annotated[int, typer.Option(min=1, help="Of generation.")], 512),
    "seed": (Annotated[int, typer.Option(help="Of generation and of random selection.")], 0),
}
SELECTION: options.Group = {
    "select": (Annotated[str, typer.Option(help="best, top-k, threshold, top-fraction, soft, pairs or none.")], "best"),
    "k": (Annotated[int, typer.Option(min=1, help="For top-k.")], 1),
    "threshold": (Annotated[float | None, typer.Option(help="For threshold: lowest score kept.")], None),
    "fraction": (Annotated[float, typer.Option(help="For top-fraction.")], 0.1),
    "over": (Annotated[str, typer.Option(help="For top-fraction: of each prompt, or of all.")], "prompt"),
    "temperature": (Annotated[float, typer.Option(help="For soft, in units of the score.")], 1.0),
    "against": (Annotated[str, typer.Option(help="For pairs: reject the worst or the middling.")], "worst"),
    "margin": (
        Annotated[
            float | None,
            typer.Option(
                min=0,
                help="For pairs: smallest difference of scores; default 2.5 % of the span of the run's scores.",
            ),
        ],
        None,
    ),
    "ties": (Annotated[str, typer.Option(help="Of equal scores: first, shortest or random.")], "first"),
    "combine": (Annotated[str, typer.Option(help="Several rewards into one score: mean, z, rank or worst.")], "mean"),
}
_OTHERWISE = {"select": "method", "sampling_temperature": "temperature"}  # as settings call them


@options.takes(options.INPUT, options.REWARDS, options.JUDGE, POLICY, SAMPLING, SELECTION, RUN)
def best_of_n(
    ctx: typer.Context,
    output: Annotated[
        Path | None, typer.Option(help="Required: folder of the run; the same command again goes on in it.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Comma-separated, one per reward.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where the output holds a run.")] = False,
    config: options.Config = None,
) -> None:
    """Score completions, given or generated here, and write what is selected; a stopped run goes on where it was."""
    from latent_rewards.best_of_n import best_of_n as run
    from latent_rewards.best_of_n.servers import PolicyFailedError
    from latent_rewards.best_of_n.work import JudgeFailedError

    with user_errors(ValueError, FileNotFoundError, ImportError):
        settings = _config(ctx)
    failed = (JudgeFailedError, PolicyFailedError)
    try:
        if overwrite:
            _clear(Path(settings.output))
        with user_errors(ValueError, FileNotFoundError, ImportError), user_errors(*failed, code=1):
            summary = run(settings)
    except OSError as err:
        full = "; what is done is kept: make room and run the same command again"
        fail(f"{err}{full if err.errno in (errno.ENOSPC, errno.EDQUOT) else ''}", 3)
    _tell(summary, settings.output, settings.format)


def _config(ctx: typer.Context) -> BestOfNConfig:
    """The run, by the file and the flags over it."""
    from latent_rewards.best_of_n import BestOfNConfig, Selection

    file = options.read_settings(ctx.params["config"], [f.name for f in dataclasses.fields(BestOfNConfig)])
    out = options.over(ctx, file, ["output", *options.INPUT, *RUN])
    if not out["input"] or not out["output"]:
        raise ValueError("best-of-n needs --input and --output")
    policy, drawn, chosen = (dict(file.get(key) or {}) for key in ("generator", "sampling", "selection"))
    known = [f.name for f in dataclasses.fields(Selection)]
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"{ctx.params['config']}: unknown keys of selection {unknown}; known are {known}")
    policy = options.over(ctx, policy, {"backend": "backend", "generator": "model"})
    policy |= options.key_values(ctx.params["generator_option"], "--generator-option")
    chosen = {"seed": ctx.params["seed"]} | options.over(ctx, chosen, _keys(SELECTION))
    if options.is_given(ctx, "seed"):
        chosen["seed"] = ctx.params["seed"]
    if ctx.params["weights"] is not None:
        chosen["weights"] = [float(w) for w in ctx.params["weights"].split(",")]
    wanted = options.wanted_rewards(ctx, out.get("rewards") or ["weighted"], among=["aspects"])
    return BestOfNConfig(
        **out | {
            "rewards": [(o.reward, {**({"column": o.own} if o.own != o.reward else {}), **o.options}) for o in wanted],
            "judge": options.judge_arguments(ctx, file.get("judge")),
            "generator": policy if policy["model"] else None,
            "sampling": options.over(ctx, drawn, _keys(SAMPLING)) if policy["model"] else {},
            "selection": Selection(**chosen),
        }
    )  # fmt: skip


def _keys(group: options.Group) -> dict[str, str]:
    """Parameter -> key in the settings."""
    return {name: _OTHERWISE.get(name, name) for name in group}


def _clear(folder: Path) -> None:
    """Remove a run, and nothing that is no part of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fail("--overwrite is for one process: remove the run by hand before a launch of several")
    if not (folder / "manifest.json").is_file():
        return
    for name in ("shards", "manifest.json", "summary.json"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in [*folder.glob("scored.*"), *folder.glob("selected.*")]:
        path.unlink()


def _tell(summary: JsonObject | None, output: str, format: str) -> None:
    if summary is None:
        return
    counts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in summary.items() if isinstance(v, int))
    typer.echo(f"{counts}; written to {output}/selected.{format} and {output}/scored.{format}", err=True)
    if not summary["scored"]:
        fail("nothing could be scored; the column 'reason' says why", 1)
