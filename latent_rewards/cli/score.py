"""`latent-rewards score`: rate the rows of a file of prompts and completions."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_rewards.cli import options
from latent_rewards.cli.errors import LOADING, fail, user_errors

if TYPE_CHECKING:
    from latent_rewards.files.sources import Source
    from latent_rewards.judge.hf import HFJudge
    from latent_rewards.rewards.base import Reward
    from latent_rewards.rewards.build import Wanted
    from latent_rewards.rewards.scorer import Scorer


class NothingScoredError(Exception):
    """No row has a score, and an output that existed is better than one full of nulls."""


@options.takes(options.INPUT, options.REWARDS, options.JUDGE)
def score(
    ctx: typer.Context,
    output: Annotated[
        Path | None, typer.Option(help="Required: JSONL[.gz], Parquet, or (no suffix) a datasets folder.")
    ] = None,
    criteria_column: Annotated[
        str | None, typer.Option(help="Column with each row's criteria, for the reward rubric_list; default rubrics.")
    ] = None,
    with_uncertainty: Annotated[
        bool, typer.Option("--with-uncertainty", help="A column NAME_sd beside each weighted and verifier reward.")
    ] = False,
    score_column: Annotated[list[str] | None, typer.Option(help="Output column, one per reward; default its name.")] = (
        None
    ),
    on_overflow: Annotated[
        str, typer.Option(help="Too long: none (null score), error (stop), truncate (cut the completion's middle).")
    ] = "none",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print what is used of the judge and how, with a self-check, and stop.")
    ] = False,
) -> None:
    """Score every row; rows that cannot be scored are kept with a null score and reported by number (from 1)."""
    given = ctx.params
    with user_errors():
        arguments = options.judge_arguments(ctx)
        wanted = _with_criteria(options.wanted_rewards(ctx, ["weighted"]), criteria_column)
        if describe:
            return _describe(options.load_judge(arguments, weights=False), wanted)
        if given["input"] is None or output is None:
            raise ValueError("score needs --input and --output; or --describe")
        from latent_rewards.files.outputs import check_output
        from latent_rewards.files.sources import open_source
        from latent_rewards.judge.layouts import key_of

        path = output.resolve()
        check_output(path, overwrite=overwrite)
        source = open_source(given["input"], given["split"])
        names = _score_columns([one.column for one in wanted], score_column)
        frozen = options.load_judge(arguments, weights=False)
        rewards = {name: _build(one, frozen) for name, one in zip(names, wanted, strict=True)}
        if with_uncertainty:
            rewards |= _uncertainties(rewards, frozen)
        columns = {slot: key_of(slot, source.columns, given[f"{slot}_column"]) for slot in ("prompt", "completion")}
        both = _check_columns(rewards, columns, source)
    with user_errors(*LOADING, about=f"judge {frozen.model_name!r}: "):
        frozen.blocks  # noqa: B018  load now, so that a wrong model, type or device is told before anything is written
    total = min(given["limit"] or source.total, source.total)
    _run(source, path, rewards, columns, total, given["batch_size"], both=both)


def _build(one: Wanted, judge: HFJudge) -> Reward:
    from latent_rewards.rewards.build import build_reward

    name, arguments = one.parsed()
    return build_reward(name, judge, **arguments)


def _uncertainties(rewards: dict[str, Reward], judge: HFJudge) -> dict[str, Reward]:
    """For each reward that is read from one label distribution its standard deviation; no further forward."""
    from latent_rewards.rewards.latent import ProbabilityWeightedReward, VerifierReward

    kinds = (ProbabilityWeightedReward, VerifierReward)
    found: dict[str, Reward] = {
        f"{name}_sd": ProbabilityWeightedReward(judge, prompt=reward.prompt, readout="sd")
        for name, reward in rewards.items()
        if isinstance(reward, kinds)
    }
    if not found:
        raise ValueError("--with-uncertainty is for the rewards weighted and verifier, which are not among the rewards")
    return found


def _with_criteria(wanted: list[Wanted], column: str | None) -> list[Wanted]:
    """The rewards, those that take a rubric list told the column that holds it."""
    if column is None:
        return wanted
    lists = [one for one in wanted if one.parsed()[0] == "rubric_list"]
    if not lists:
        raise ValueError("--criteria-column is for the reward rubric_list, which is not among the rewards")
    for one in lists:
        one.options.setdefault("criteria_column", column)
    return wanted


def _describe(judge: HFJudge, wanted: list[Wanted]) -> None:
    """The load report of a judge, once for every prompt that the rewards read."""
    with user_errors(*LOADING, about=f"judge {judge.model_name!r}: "):
        prompts = {r.prompt.hash: r.prompt for r in (_build(one, judge) for one in wanted)}
        typer.echo("\n\n".join(judge.describe(p) for p in prompts.values() if p.labels is not None))


def _run(
    source: Source, path: Path, rewards: dict[str, Reward], columns: dict[str, str], total: int, batch_size: int, *,
    both: bool,
) -> None:  # fmt: skip
    import torch
    from tqdm import tqdm

    from latent_rewards.files.sources import InputError
    from latent_rewards.rewards.scorer import PairScorer, Scorer

    existed, started = path.exists(), time.perf_counter()
    with (
        user_errors(InputError, torch.OutOfMemoryError),
        _clean_end_on_sigterm(),
        tqdm(total=total, unit="pair", file=sys.stderr, dynamic_ncols=True) as bar,
    ):
        scorer = (PairScorer if both else Scorer)(rewards, columns, bar)
        _write(source, path, scorer, total, batch_size)
    _tell(scorer, path, time.perf_counter() - started, existed=existed)


def _write(source: Source, path: Path, scorer: Scorer, total: int, batch_size: int) -> None:
    """Score and write `total` rows; nothing is written over an output that existed where none has a score."""
    from latent_rewards.files.outputs import open_output

    existed = path.exists()
    with contextlib.suppress(NothingScoredError), open_output(path, source, scorer.names) as write:
        for chunk in scorer.chunks(source, batch_size):
            part = chunk.first(total - scorer.rows)
            write(part, scorer(part))
            if scorer.rows >= total:
                break
        if existed and not scorer.scored:
            raise NothingScoredError


def _tell(scorer: Scorer, path: Path, seconds: float, *, existed: bool) -> None:
    from latent_rewards.rewards.scorer import SHOWN

    if scorer.bad > SHOWN:
        typer.echo(f"and {scorer.bad - SHOWN} more rows with a missing score", err=True)
    where = f"{path} left as it was" if existed and not scorer.scored else f"written to {path}"
    null, rate = scorer.rows - scorer.scored, scorer.rows / max(seconds, 1e-9)
    partly = f" ({scorer.partly} in part)" if scorer.partly else ""
    counts = f"rows {scorer.rows}, scored {scorer.scored}{partly}, null {null}"
    typer.echo(f"{counts}, {rate:.1f} pairs/s, {where}", err=True)
    if not scorer.scored:
        fail("nothing could be scored", 1)


def _score_columns(rewards: list[str], given: list[str] | None) -> list[str]:
    names = given or rewards
    if len(names) != len(rewards):
        raise ValueError(f"{len(rewards)} rewards {rewards} but {len(names)} score columns {names}; give one for each")
    if len(set(names)) < len(names):
        raise ValueError(f"score columns {names} are not distinct; name them with --score-column")
    return names


def _check_columns(rewards: dict[str, Reward], columns: dict[str, str], source: Source) -> bool:
    """Whether each row has two completions to score, chosen and rejected.

    Raises:
        InputError: a column is missing, or would be written over.
    """
    from latent_rewards.files.sources import RAW, InputError
    from latent_rewards.judge.layouts import ACCEPTED, key_of
    from latent_rewards.judge.transcripts import PEEK, SIDES, hold_prompts

    if not source.total:
        raise InputError("the input has no rows")
    named = columns["completion"] != "completion" or "completion" in source.columns
    both = not named and set(SIDES) <= set(source.columns)
    lists = key_of("completions", source.columns)
    if not named and not both and lists in source.columns:
        raise InputError(
            f"{lists!r} holds lists, and score rates one completion a row, or chosen and rejected: "
            "`latent-rewards best-of-n` scores every one of a list"
        )
    names = {f"{name}_{side}" for name in rewards for side in SIDES} if both else set(rewards)
    taken = sorted(names & set(source.columns))
    if taken:
        raise InputError(f"the input already has the columns {taken}; name the new ones with --score-column")
    for slot in sorted({slot for r in rewards.values() for slot in r.required}):
        column = columns.get(slot, slot)
        if both and slot == "completion":
            continue
        if slot == "prompt" and hold_prompts(
            next(source.chunks(PEEK)).rows, SIDES[0] if both else columns["completion"]
        ):
            continue
        if column not in source.columns and set(source.columns) - {RAW}:
            how = f"; name it with --{slot}-column" if slot in columns else ""
            known = f"; {ACCEPTED}" if slot in columns else ""
            raise InputError(
                f"no column {column!r}, which the judge prompt needs; there are {source.columns}{how}{known}"
            )
    return both


@contextlib.contextmanager
def _clean_end_on_sigterm() -> Iterator[None]:
    """What a batch system sends ends the program the way Ctrl-C does: temporary files go."""
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
