"""The options that commands share, each said once, and what is made of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from latent_rewards.cli.errors import LOADING, user_errors
from latent_rewards.cli.spelling import Command as Command
from latent_rewards.cli.spelling import hint as hint

if TYPE_CHECKING:
    from latent_rewards.files.types import JsonObject
    from latent_rewards.judge.hf import HFJudge
    from latent_rewards.rewards.build import Wanted

NAMES = (  # as in `latent_rewards.rewards.build`, which `--help` should not wait for
    "weighted", "verifier", "cross_layer", "likert5", "likert10", "probe", "guarded", "contrastive", "ensemble",
    "rubric_list", "pairwise", "steps", "likelihood", "panel", "reasoned", "calibrated", "revised",
)  # fmt: skip

Judge = Annotated[str, typer.Option(help="Hub id or folder of the judge, or 'embedded' (for trials).")]
JudgeOption = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any argument of HFJudge, such as quantization=4bit.")
]
Device = Annotated[str | None, typer.Option(help="Such as cuda:1; default the first accelerator, else cpu.")]
Dtype = Annotated[str | None, typer.Option(help="auto (the default), float32, bfloat16 or float16.")]
Revision = Annotated[str | None, typer.Option(help="Hub commit, tag or branch of the judge.")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; what flags say comes first.")]

Group = Mapping[str, tuple[object, object]]  # parameter -> its annotation and its default

REWARDS: Group = {
    "reward": (Annotated[list[str] | None, typer.Option(
        "--reward", metavar="NAME[:PROMPT]",
        help=f"Of {', '.join(NAMES)}; likert10:bare, probe:PATH, or a YAML file of rewards; may be repeated.",
    )], None),
    "reward_option": (Annotated[list[str] | None, typer.Option(
        metavar="[REWARD.]KEY=VALUE", help="Argument of every reward, or of one; as YAML.",
    )], None),
    "prompt": (Annotated[str | None, typer.Option(help="Judge prompt: name of a shipped one, or a file.")], None),
    "reasoning": (Annotated[str | None, typer.Option(
        "--reasoning", metavar="strip|keep|only",
        help="Thoughts in completions: set aside (the default), shown, or shown alone.",
    )], None),
    "unfinished": (Annotated[str | None, typer.Option(
        metavar="none|keep|FLOOR", help="Of a reply that ends in its thought: no score, as it is, or a floor.",
    )], None),
}  # fmt: skip
JUDGE: Group = {
    "judge": (Judge, "embedded"), "judge_option": (JudgeOption, None), "device": (Device, None), "dtype": (Dtype, None),
    "revision": (Revision, None),
}  # fmt: skip
INPUT: Group = {
    "input": (Annotated[str | None, typer.Option(
        help="JSONL[.gz] or Parquet file, datasets folder, or hub data set[:config]; required.",
    )], None),
    "split": (Annotated[str | None, typer.Option(help="Split of a data set.")], None),
    "limit": (Annotated[int | None, typer.Option(min=1, help="Take only the first so many rows.")], None),
    "prompt_column": (Annotated[str, typer.Option(help="Column with the prompt, text or messages.")], "prompt"),
    "completion_column": (Annotated[str, typer.Option(help="Column with one completion.")], "completion"),
    "batch_size": (Annotated[int, typer.Option(min=1, help="Completions per call of the judge.")], 64),
}  # fmt: skip


def takes(*groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some groups, before its own; it finds them in `ctx.params`."""
    shared = {name: of for group in groups for name, of in group.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        ctx, *others = own.parameters.values()
        extra = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in shared.items()
        ]

        @functools.wraps(command)
        def run(**given: object) -> None:
            command(**{name: value for name, value in given.items() if name not in shared})

        vars(run)["__signature__"] = own.replace(
            parameters=[ctx, *extra, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others)]
        )
        return run

    return decorate


def key_values(given: Iterable[str] | None, flag: str) -> JsonObject:
    """`key=value` texts as a mapping; values are YAML.

    Raises:
        ValueError: no `=`, no key, or no YAML.
    """
    out = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip("."):
            raise ValueError(f"{flag} {text!r}: expected key=value{' or reward.key=value' * ('reward' in flag)}")
        if not value.strip():
            raise ValueError(f"{flag} {text!r}: no value; write null for none")
        try:
            out[key] = yaml.safe_load(value)
        except yaml.YAMLError as err:
            raise ValueError(f"{flag} {text!r}: the value is no YAML: {err}") from err
    return out


def judge_arguments(
    ctx: typer.Context, file: str | Mapping[str, object] | None = None, **defaults: object
) -> JsonObject:
    """Arguments of `HFJudge` by --judge, --device, --dtype, --revision and --judge-option, over those of a file.

    Args:
        ctx: of the command.
        file: what `--config` says of the judge.
        **defaults: what holds where neither says anything.

    Raises:
        ValueError: no such argument (names those there are), or one that is given twice.
    """
    from latent_rewards.judge.hf import HFJudge

    base = {"model": file} if isinstance(file, str) else dict(file or {})
    options = key_values(ctx.params.get("judge_option"), "--judge-option")
    short = {"model": "judge", **{n: n for n in ("device", "dtype", "revision", "on_overflow")}}
    flags = {key: ctx.params[name] for key, name in short.items() if is_given(ctx, name)}
    flags = {key: value for key, value in flags.items() if not isinstance(value, list | tuple)}  # several replicas
    twice = sorted(options.keys() & flags.keys())
    if twice:
        raise ValueError(f"--{twice[0].replace('_', '-')} and --judge-option {twice[0]}=...: give one of the two")
    out = {"model": "embedded", **defaults, **base, **flags, **options}
    known = list(inspect.signature(HFJudge).parameters)
    if unknown := sorted(set(out) - set(known)):
        raise ValueError(f"unknown judge options {unknown}; known are {known}")
    return out


def load_judge(arguments: JsonObject, *, weights: bool = True) -> HFJudge:
    """The judge, loaded now, so that a wrong model, type or device is told before anything is written."""
    from latent_rewards.judge.hf import HFJudge

    with user_errors():
        judge = HFJudge(**arguments)
    with user_errors(*LOADING, about=f"judge {judge.model_name!r}: "):
        judge.encoder  # noqa: B018
        if weights:
            judge.blocks  # noqa: B018
    return judge


def wanted_rewards(
    ctx: typer.Context, default: Iterable[object] | Mapping[str, object], *, among: Iterable[str] = ()
) -> list[Wanted]:
    """The rewards of --reward, else the default's, with --reward-option and --prompt.

    Args:
        ctx: of the command.
        default: specs as `read_rewards` takes them.
        among: further names.

    Raises:
        ValueError: unknown reward, or an option of none of them.
    """
    from latent_rewards.rewards.build import wanted

    out = wanted(list(ctx.params.get("reward") or []) or default, among=tuple(among))
    if ctx.params.get("prompt"):
        for one in out:
            if ":" not in one.reward:
                one.options.setdefault("prompt", ctx.params["prompt"])
    for name in ("reasoning", "unfinished"):
        if (value := ctx.params.get(name)) is not None:
            for one in out:
                one.options.setdefault(name, value if name == "reasoning" else _unfinished(value))
    names = [one.own for one in out]
    for key, value in key_values(ctx.params.get("reward_option"), "--reward-option").items():
        target, _, option = key.rpartition(".")
        meant = [o for o in out if not target or target in (o.own, o.reward, o.reward.partition(":")[0])]
        if not meant or not option:
            raise ValueError(f"--reward-option {key}=...: expected key=value or reward.key=value, reward of {names}")
        for one in meant:
            one.options[option] = value
    return out


def _unfinished(value: str) -> float | str:
    if value in ("none", "keep"):
        return value
    try:
        return float(value)
    except ValueError as err:
        raise ValueError(f"--unfinished {value!r}: expected none, keep or a number") from err


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether the command line itself says it."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def over(ctx: typer.Context, file: JsonObject, names: Mapping[str, str] | Iterable[str]) -> JsonObject:
    """Settings of a file with those of the command line over them; where neither speaks, the command's defaults.

    Args:
        ctx: of the command.
        file: settings.
        names: parameters of the command; or parameter -> key in the file.
    """
    keys = names if isinstance(names, Mapping) else {name: name for name in names}
    out = dict(file)
    for name, key in keys.items():
        if is_given(ctx, name) or key not in file:
            value = ctx.params[name]
            out[key] = str(value) if isinstance(value, Path) else value
    return out


def read_settings(path: Path | None, known: Iterable[str]) -> JsonObject:
    """Settings of a YAML file; none without a file.

    Raises:
        ValueError: no mapping, or unknown keys; names the known ones.
    """
    if path is None:
        return {}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as err:
        raise ValueError(f"{path}: no YAML: {err}") from err
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(raw).__name__}; known are {sorted(known)}")
    if unknown := sorted(map(str, set(raw) - set(known))):
        raise ValueError(f"{path}: unknown keys {unknown}; known are {sorted(known)}")
    return raw
