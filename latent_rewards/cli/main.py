"""The command line: `score` rates a file of prompts and completions, `evaluate` measures a judge."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from tqdm import tqdm

from latent_rewards.cli import probe as cli_probe
from latent_rewards.cli.best_of_n import best_of_n
from latent_rewards.cli.evaluate import evaluate
from latent_rewards.cli.serve import serve
from latent_rewards.files.outputs import check_output, open_output
from latent_rewards.files.sources import RAW, InputError, Source, open_source
from latent_rewards.judge.hf import HFJudge
from latent_rewards.judge.prompts import JudgePrompt, prompt_folder
from latent_rewards.judge.transcripts import PEEK, hold_prompts
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.build import REWARDS, build_reward
from latent_rewards.rewards.scorer import SHOWN, Scorer, required_slots
from latent_rewards.version import __version__

_LOADING = (ValueError, OSError, ImportError, RuntimeError, AssertionError)  # what transformers and torch raise

app = typer.Typer(
    help="Scores from the probabilities and hidden states of a frozen judge model.",
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
)  # fmt: skip


app.command()(evaluate)
app.command()(best_of_n)
app.command()(serve)
app.add_typer(cli_probe.app, name="probe")
app.add_typer(cli_probe.export_app, name="export")


class NothingScoredError(Exception):
    """No row has a score, and an output that existed is better than one full of nulls."""


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Scores from the probabilities and hidden states of a frozen judge model."""
    if version:
        print(f"latent-rewards {__version__}")
        raise typer.Exit


@app.command()
def prompts() -> None:
    """List the shipped judge prompts: name, kind, first line of its file."""
    for path in sorted(prompt_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{path.stem:<16} {JudgePrompt.load(path).kind:<9} {first}")


@app.command()
def score(
    input: Annotated[
        str | None,
        typer.Option(help="JSONL[.gz] or Parquet file, datasets folder, or hub data set[:config]; required."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Required: JSONL[.gz], Parquet, or (no suffix) a datasets folder.")
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(REWARDS)}; may be repeated; default weighted.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Hub id or folder of the judge, or 'embedded' (for trials).")] = "embedded",
    prompt_column: Annotated[str, typer.Option(help="Column with the prompt, text or messages.")] = "prompt",
    completion_column: Annotated[str, typer.Option(help="Column with the completion.")] = "completion",
    score_column: Annotated[list[str] | None, typer.Option(help="Output column, one per reward; default its name.")] = (
        None
    ),
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N rows.")] = None,
    judge_prompt: Annotated[str | None, typer.Option(help="Prompt file, or name of a shipped prompt.")] = None,
    reward_option: Annotated[
        list[str] | None, typer.Option(help="key=value for every reward, or reward.key=value for one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cuda:1; default the first accelerator, else cpu.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub commit, tag or branch of the judge.")] = None,
    on_overflow: Annotated[
        str, typer.Option(help="Too long: none (null score), error (stop), truncate (cut the completion's middle).")
    ] = "none",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per call of the judge.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print what is used of the judge and how, with a self-check, and stop.")
    ] = False,
) -> None:
    """Score every row; rows that cannot be scored are kept with a null score and reported by number (from 0)."""
    if describe:
        _describe(HFJudge(judge, dtype=dtype, device=device, revision=revision, on_overflow=on_overflow),  # type: ignore[arg-type]
                  _reward_options(reward or ["weighted"], reward_option or [], judge_prompt))  # fmt: skip
        return
    with _user_errors(ValueError, OSError):
        if input is None or output is None:
            raise InputError("score needs --input and --output; or --describe")
        path = output.resolve()
        check_output(path, overwrite=overwrite)
        source = open_source(input, split)
        reward = reward or ["weighted"]
        names = _score_columns(reward, score_column or reward)
        options = _reward_options(reward, reward_option or [], judge_prompt)
        frozen = HFJudge(judge, dtype=dtype, device=device, revision=revision, on_overflow=on_overflow)  # type: ignore[arg-type]
    with _user_errors(*_LOADING, about=f"judge {judge!r}: "):
        frozen.encoder  # noqa: B018
    with _user_errors(ValueError, OSError):
        rewards = {n: build_reward(r, frozen, **options[r]) for n, r in zip(names, reward, strict=True)}
        columns = {"prompt": prompt_column, "completion": completion_column}
        _check_columns(rewards, columns, source)
    with _user_errors(*_LOADING, about=f"judge {judge!r}: "):
        frozen.blocks  # noqa: B018  load now, so that a wrong model, type or device is told before anything is written
    with _user_errors(InputError, torch.OutOfMemoryError), _clean_end_on_sigterm():
        _run(source, path, rewards, columns, min(limit or source.total, source.total), batch_size)


def _describe(judge: HFJudge, options: dict[str, dict[str, Any]]) -> None:
    """The load report of a judge, once for every prompt that the rewards read."""
    with _user_errors(*_LOADING, about=f"judge {judge.model_name!r}: "):
        prompts = {r.prompt.hash: r.prompt for r in (build_reward(n, judge, **o) for n, o in options.items())}
        print("\n\n".join(judge.describe(p) for p in prompts.values() if p.labels is not None))


def _run(
    source: Source, path: Path, rewards: dict[str, Reward], columns: dict[str, str], total: int, batch_size: int
) -> None:
    existed, started = path.exists(), time.perf_counter()
    with tqdm(total=total, unit="pair", file=sys.stderr, dynamic_ncols=True) as bar:
        scorer = Scorer(rewards, columns, bar)
        try:
            with open_output(path, source, list(rewards)) as write:
                for chunk in source.chunks(batch_size):
                    part = chunk.first(total - scorer.rows)
                    write(part, scorer(part))
                    if scorer.rows >= total:
                        break
                if existed and not scorer.scored:
                    raise NothingScoredError
        except NothingScoredError:
            pass
    null = scorer.rows - scorer.scored
    if scorer.bad > SHOWN:
        typer.echo(f"and {scorer.bad - SHOWN} more rows with a missing score", err=True)
    rate = scorer.rows / max(time.perf_counter() - started, 1e-9)
    kept = existed and not scorer.scored
    where = f"{path} left as it was" if kept else f"written to {path}"
    typer.echo(f"rows {scorer.rows}, scored {scorer.scored}, null {null}, {rate:.1f} pairs/s, {where}", err=True)
    if not scorer.scored:
        typer.echo("error: nothing could be scored", err=True)
        raise typer.Exit(1)


def _score_columns(rewards: list[str], names: list[str]) -> list[str]:
    if len(names) != len(rewards):
        raise InputError(f"{len(rewards)} rewards {rewards} but {len(names)} score columns {names}; give one for each")
    if len(set(names)) < len(names):
        raise InputError(f"score columns {names} are not distinct; name them with --score-column")
    return names


def _reward_options(rewards: list[str], given: list[str], judge_prompt: str | None) -> dict[str, dict[str, Any]]:
    shared: dict[str, Any] = {} if judge_prompt is None else {"prompt": judge_prompt}
    out = {name: dict(shared) for name in rewards}
    for text in given:
        key, equals, value = text.partition("=")
        name, dot, option = key.rpartition(".")
        if not equals or not option or (dot and name not in out):
            raise InputError(f"--reward-option {text!r}: expected key=value or reward.key=value, reward of {rewards}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as err:
            raise InputError(f"--reward-option {text!r}: the value is no YAML: {err}") from err
        for target in [name] if dot else rewards:
            out[target][option] = parsed
    return out


def _check_columns(rewards: dict[str, Reward], columns: dict[str, str], source: Source) -> None:
    if not source.total:
        raise InputError("the input has no rows")
    taken = sorted(set(rewards) & set(source.columns))
    if taken:
        raise InputError(f"the input already has the columns {taken}; name the new ones with --score-column")
    for slot in sorted({slot for r in rewards.values() for slot in required_slots(r)}):
        column = columns.get(slot, slot)
        if slot == "prompt" and hold_prompts(next(source.chunks(PEEK)).rows, columns["completion"]):
            continue
        if column not in source.columns and set(source.columns) - {RAW}:
            how = f"; name it with --{slot}-column" if slot in columns else ""
            raise InputError(f"no column {column!r}, which the judge prompt needs; there are {source.columns}{how}")


@contextlib.contextmanager
def _clean_end_on_sigterm() -> Iterator[None]:
    """What a batch system sends ends the program the way Ctrl-C does: temporary files go."""
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _user_errors(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Errors of the user's making become one message and exit code 2; others keep their traceback."""
    try:
        yield
    except kinds as err:
        typer.echo(f"error: {about}{err}", err=True)
        raise typer.Exit(2) from err
