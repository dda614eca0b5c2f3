"""`latent-rewards evaluate`: measure a judge's scores and ratings on benchmarks, and write the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml


def evaluate(
    judge: Annotated[str, typer.Option(help="Hub id or folder of the judge, or 'embedded'.")] = "embedded",
    rewards: Annotated[
        str, typer.Option(help="Comma-separated; 'probe:PATH' for a saved probe, 'weighted:PROMPT' for another prompt.")
    ] = "weighted,verifier,cross_layer,likert10,likert5",
    benchmarks: Annotated[
        str, typer.Option(help="Comma-separated files, names under $LATENT_REWARDS_DATA ('pairwise/*'), or 'hub/...'.")
    ] = "open_ended",
    output: Annotated[Path, typer.Option(help="Folder of the report and the cache.")] = Path("runs/eval"),
    cache: Annotated[Path | None, typer.Option(help="Folder of the cache; default OUTPUT/cache.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items of a benchmark.")] = None,
    max_chars: Annotated[int | None, typer.Option(min=1, help="Leave out items with longer texts.")] = None,
    likert_limit: Annotated[int | None, typer.Option(min=1, help="Most items that Likert judges rate.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Ratings sampled per response.")] = 10,
    keep_layers: Annotated[str, typer.Option(help="Comma-separated layers whose states go to the cache.")] = "",
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap draws.")] = 1000,
    robustness_items: Annotated[int, typer.Option(min=0, help="Items per benchmark for attacks and edits.")] = 0,
    consistency_items: Annotated[int, typer.Option(min=0, help="Items per benchmark for pairwise prompts.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Revision of the judge.")] = None,
    device: Annotated[str | None, typer.Option(help="Device of the judge.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the judge.")] = "auto",
    config: Annotated[Path | None, typer.Option(help="YAML file instead of all this; see configs/evaluate.")] = None,
) -> None:
    """Compare latent scores with Likert ratings; a run that was stopped goes on where it was."""
    from latent_rewards.evaluation.benchmarks import expand
    from latent_rewards.evaluation.report import write as report
    from latent_rewards.evaluation.run import EvaluateConfig
    from latent_rewards.evaluation.run import evaluate as measure

    try:
        given: dict[str, Any] = {
            "judge": {"model": judge, "revision": revision, "device": device, "dtype": dtype},
            "rewards": _list(rewards), "benchmarks": _list(benchmarks), "output": str(output),
            "cache": None if cache is None else str(cache), "limit": limit, "max_chars": max_chars,
            "likert_limit": likert_limit, "keep_layers": [int(x) for x in _list(keep_layers)], "samples": samples,
            "resamples": resamples, "robustness_items": robustness_items,
            "consistency_items": consistency_items,
        }  # fmt: skip
        settings = EvaluateConfig(**(given if config is None else _read(config, EvaluateConfig)))
        settings.benchmarks = expand(settings.benchmarks)
        results = measure(settings)
    except (ValueError, OSError) as err:
        typer.echo(f"Error: {err}", err=True)
        raise typer.Exit(2) from err
    if results is not None:
        for path in report.write(results, settings.output):
            typer.echo(path)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read(path: Path, kind: Any) -> dict[str, Any]:
    """Settings of a YAML file; unknown keys are errors."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    known = {f.name for f in dataclasses.fields(kind)} | {"judge_kwargs"}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise ValueError(f"{path}: unknown keys {unknown}; known are {sorted(known)}")
    extra = raw.pop("judge_kwargs", None) or {}
    if extra:
        raw["judge"] = {"model": raw.get("judge", "embedded"), **extra}
    return dict(raw)
