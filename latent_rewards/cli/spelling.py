"""What every command takes: `--debug`, and the spellings of last version, with a hint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from latent_rewards.cli.errors import debug

if TYPE_CHECKING:
    pass

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
