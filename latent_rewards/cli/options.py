"""The options that commands share, each said once, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from typer.core import TyperCommand

from latent_rewards.cli.errors import LOADING, debug, user_errors

if TYPE_CHECKING:
    from latent_rewards.judge.hf import HFJudge
    from latent_rewards.rewards.build import Wanted

NAMES = (  # as in `latent_rewards.rewards.build`, which `--help` should not wait for
    "weighted", "verifier", "cross_layer", "likert5", "likert10", "probe", "guarded", "contrastive", "ensemble",
    "rubric_list", "reasoned", "calibrated",
)  # fmt: skip

Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward", metavar="NAME[:PROMPT]",
        help=f"Of {', '.join(NAMES)}; likert10:bare, probe:PATH, or a YAML file of rewards; may be repeated.",
    ),
]  # fmt: skip
RewardOption = Annotated[
    list[str] | None, typer.Option(metavar="[REWARD.]KEY=VALUE", help="Argument of every reward, or of one; as YAML.")
]
Prompt = Annotated[str | None, typer.Option(help="Judge prompt: name of a shipped one, or a file.")]
ReasoningOption = Annotated[
    str | None,
    typer.Option(
        "--reasoning", metavar="strip|keep|only",
        help="Thoughts in completions: set aside (the default), shown, or shown alone.",
    ),
]  # fmt: skip
Unfinished = Annotated[
    str | None,
    typer.Option(
        metavar="none|keep|FLOOR", help="Of a reply that ends in its thought: no score, as it is, or a floor."
    ),
]
Judge = Annotated[str, typer.Option(help="Hub id or folder of the judge, or 'embedded' (for trials).")]
JudgeOption = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any argument of HFJudge, such as quantization=4bit.")
]
Device = Annotated[str | None, typer.Option(help="Such as cuda:1; default the first accelerator, else cpu.")]
Dtype = Annotated[str | None, typer.Option(help="auto (the default), float32, bfloat16 or float16.")]
Revision = Annotated[str | None, typer.Option(help="Hub commit, tag or branch of the judge.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take only the first so many rows.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; what flags say comes first.")]

_OLD = {"--rewards": "--reward", "--judge-prompt": "--prompt", "--out": "--output"}


class Command(TyperCommand):
    """A command that takes `--debug` as well, and last version's spellings with a hint."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            debug.set(True)
        known = {o for p in self.params for o in p.opts}
        words = [w for a in args[:end] if a != "--debug" for w in _modern(a, known)]
        return super().parse_args(ctx, _split(words) + args[end:])


def _modern(word: str, known: set[str]) -> list[str]:
    """An option in today's spelling."""
    name, equals, value = word.partition("=")
    new = _OLD.get(name)
    if new is None or new not in known or name in known:
        return [word]
    shown = f"{new} once for each" if name == "--rewards" else new
    hint(f"{name} is now {shown}")
    marked = f"{new}," if name == "--rewards" else new  # the comma asks for a value to be split
    return [marked, value] if equals else [marked]


def _split(words: list[str]) -> list[str]:
    """`--reward, a,b` becomes `--reward a --reward b`."""
    out: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--reward,":
            for part in str(next(rest, "")).split(","):
                out += ["--reward", part.strip()] if part.strip() else []
        else:
            out.append(word)
    return out


def hint(text: str) -> None:
    """Tell of a spelling that goes with the next version."""
    typer.echo(f"hint: {text}; the old spelling goes with the next version", err=True)


def key_values(given: Iterable[str] | None, flag: str) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are YAML.

    Raises:
        ValueError: no `=`, no key, or no YAML.
    """
    out = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip("."):
            raise ValueError(f"{flag} {text!r}: expected key=value{' or reward.key=value' * ('reward' in flag)}")
        try:
            out[key] = yaml.safe_load(value)
        except yaml.YAMLError as err:
            raise ValueError(f"{flag} {text!r}: the value is no YAML: {err}") from err
    return out


def judge_arguments(ctx: typer.Context, file: str | Mapping[str, Any] | None = None, **defaults: Any) -> dict[str, Any]:
    """Arguments of `HFJudge` by --judge, --device, --dtype, --revision and --judge-option, over those of a file.

    Args:
        ctx: of the command.
        file: what `--config` says of the judge.
        **defaults: what holds where neither says anything.

    Raises:
        ValueError: no such argument (names those there are), or one that is given twice.
    """
    from inspect import signature

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
    known = list(signature(HFJudge).parameters)
    if unknown := sorted(set(out) - set(known)):
        raise ValueError(f"unknown judge options {unknown}; known are {known}")
    return out


def load_judge(arguments: Mapping[str, Any], *, weights: bool = True) -> HFJudge:
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
    ctx: typer.Context, default: Iterable[Any] | Mapping[str, Any], *, among: Iterable[str] = ()
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


def over(ctx: typer.Context, file: Mapping[str, Any], names: Mapping[str, str] | Iterable[str]) -> dict[str, Any]:
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


def read_settings(path: Path | None, known: Iterable[str]) -> dict[str, Any]:
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
