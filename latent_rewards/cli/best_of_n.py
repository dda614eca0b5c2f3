"""`latent-rewards best-of-n`: from prompts or stored completions to selected data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml


def best_of_n(
    input: Annotated[str, typer.Option(help="JSONL[.gz] or Parquet file, datasets folder, or hub data set[:config].")],
    output: Annotated[Path, typer.Option(help="Folder of the run; the same command again goes on in it.")],
    reward: Annotated[
        list[str] | None,
        typer.Option(help="weighted, verifier, probe:PATH, weighted:PROMPT, likert10:bare, aspects; may be repeated."),
    ] = None,
    reward_option: Annotated[
        list[str] | None, typer.Option(help="key=value for every reward, or reward.key=value for one.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Hub id or folder of the judge, or 'embedded' (for trials).")] = "embedded",
    judge_option: Annotated[list[str] | None, typer.Option(help="key=value for HFJudge, such as dtype=bfloat16.")] = (
        None
    ),
    generator: Annotated[
        str | None, typer.Option(help="Policy that writes the completions, if none are given.")
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs the policy: hf, vllm or server.")] = "hf",
    generator_option: Annotated[
        list[str] | None, typer.Option(help="key=value for the backend, such as url=http://host:8000/v1.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Completions to generate per prompt.")] = 8,
    sampling_temperature: Annotated[float, typer.Option(min=0, help="Of generation.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Of generation.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of generation.")] = 512,
    seed: Annotated[int, typer.Option(help="Of generation and of random selection.")] = 0,
    select: Annotated[str, typer.Option(help="best, top-k, threshold, top-fraction, soft, pairs or none.")] = "best",
    k: Annotated[int, typer.Option(min=1, help="For top-k.")] = 1,
    threshold: Annotated[float | None, typer.Option(help="For threshold: lowest score kept.")] = None,
    fraction: Annotated[float, typer.Option(help="For top-fraction.")] = 0.1,
    over: Annotated[str, typer.Option(help="For top-fraction: of each prompt, or of all.")] = "prompt",
    temperature: Annotated[float, typer.Option(help="For soft, in units of the score.")] = 1.0,
    against: Annotated[str, typer.Option(help="For pairs: reject the worst or the middling.")] = "worst",
    margin: Annotated[float, typer.Option(min=0, help="For pairs: smallest difference of scores.")] = 0.0,
    ties: Annotated[str, typer.Option(help="Of equal scores: first, shortest or random.")] = "first",
    combine: Annotated[str, typer.Option(help="Several rewards into one score: mean, z, rank or worst.")] = "mean",
    weights: Annotated[str | None, typer.Option(help="Comma-separated, one per reward.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first so many rows.")] = None,
    prompt_column: Annotated[str, typer.Option(help="Column with the prompt, text or messages.")] = "prompt",
    completion_column: Annotated[str, typer.Option(help="Column with one completion.")] = "completion",
    completions_column: Annotated[str, typer.Option(help="Column with a list of completions.")] = "completions",
    id_column: Annotated[str, typer.Option(help="Column whose values must be unique, where there is one.")] = "id",
    score_column: Annotated[str, typer.Option(help="Name of the combined score.")] = "score",
    batch_size: Annotated[int, typer.Option(min=1, help="Completions per call of the judge.")] = 64,
    shard_size: Annotated[int, typer.Option(min=1, help="Completions per shard: the most that a kill loses.")] = 512,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads per process.")] = None,
    format: Annotated[str, typer.Option(help="Of the results: jsonl or parquet.")] = "jsonl",
    engine: Annotated[str, typer.Option(help="local, also under a launcher, or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Actors of the Ray engine.")] = 2,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="Of the Ray engine.")] = 0.0,
) -> None:
    """Score completions, given or generated here, and write what is selected; a stopped run goes on where it was."""
    from latent_rewards.best_of_n import BestOfNConfig, Selection
    from latent_rewards.best_of_n import best_of_n as run
    from latent_rewards.best_of_n.work import JudgeFailedError

    try:
        drawn = {
            "n": n, "temperature": sampling_temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed
        }  # fmt: skip
        chosen = Selection(
            method=select, k=k, threshold=threshold, fraction=fraction, over=over, temperature=temperature,  # type: ignore[arg-type]
            against=against, margin=margin, ties=ties, combine=combine,  # type: ignore[arg-type]
            weights=None if weights is None else [float(w) for w in weights.split(",")], seed=seed,
        )  # fmt: skip
        policy = {"backend": backend, "model": generator, **_options(generator_option, "--generator-option")}
        config = BestOfNConfig(
            input=input, output=str(output), rewards=_rewards(reward or ["weighted"], reward_option or []),
            judge={"model": judge, **_options(judge_option, "--judge-option")},
            generator=policy if generator else None, sampling=drawn if generator else {}, selection=chosen,
            split=split, limit=limit, prompt_column=prompt_column, completion_column=completion_column,
            completions_column=completions_column, id_column=id_column, score_column=score_column,
            batch_size=batch_size, shard_size=shard_size, threads=threads, format=format,  # type: ignore[arg-type]
            engine=engine, workers=workers, gpus_per_worker=gpus_per_worker,  # type: ignore[arg-type]
        )  # fmt: skip
        summary = run(config)
    except (ValueError, FileNotFoundError, ImportError) as err:
        typer.echo(f"error: {err}", err=True)
        raise typer.Exit(2) from err
    except OSError as err:
        typer.echo(f"error: {err}; what is done is kept: make room and run the same command again", err=True)
        raise typer.Exit(3) from err
    except JudgeFailedError as err:
        typer.echo(f"error: {err}", err=True)
        raise typer.Exit(1) from err
    _tell(summary, output, format)


def _tell(summary: dict[str, Any] | None, output: Path, format: str) -> None:
    if summary is None:
        return
    counts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in summary.items() if isinstance(v, int))
    typer.echo(f"{counts}; written to {output}/selected.{format} and {output}/scored.{format}", err=True)
    if not summary["scored"]:
        typer.echo("error: nothing could be scored; the column 'reason' says why", err=True)
        raise typer.Exit(1)


def _options(given: list[str] | None, flag: str) -> dict[str, Any]:
    out = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{flag} {text!r}: expected key=value")
        try:
            out[key] = yaml.safe_load(value)
        except yaml.YAMLError as err:
            raise ValueError(f"{flag} {text!r}: the value is no YAML: {err}") from err
    return out


def _rewards(names: list[str], given: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Reward specs with their options; `reward.key=value` is for rewards of that name, with or without argument."""
    out: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in names]
    for key, value in _options(given, "--reward-option").items():
        target, _, option = key.rpartition(".")
        meant = [options for name, options in out if not target or target in (name, name.partition(":")[0])]
        if not meant or not option:
            raise ValueError(f"--reward-option {key}=...: expected key or reward.key, reward of {names}")
        for options in meant:
            options[option] = value
    return out
