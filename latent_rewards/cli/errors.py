"""One manner of failing: `error: message` on stderr, exit code 2, and the traceback only with `--debug`."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from latent_rewards.compat import NEEDS_JUDGE

LOADING = (ValueError, OSError, ImportError, RuntimeError, AssertionError)  # what transformers and torch raise
USER = (ValueError, OSError, ImportError)
ClickError: Any = typer.BadParameter.__mro__[2]  # typer has a click of its own from 0.29 on

INTERRUPTED = 130  # exit code after Ctrl-C
_GOES_ON = "what was read is kept: the same command goes on from there"
_AFTER = {"evaluate": _GOES_ON, "probe": _GOES_ON, "best-of-n": _GOES_ON, "score": "nothing was written"}

debug: ContextVar[bool] = ContextVar("debug", default=False)


def fail(message: str, code: int = 2) -> NoReturn:
    """Say what is wrong and end with `code`; with `--debug` the traceback of what is being handled comes first."""
    if debug.get() and sys.exc_info()[0] is not None:
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def user_errors(*kinds: type[Exception], about: str = "", code: int = 2) -> Iterator[None]:
    """Errors of the user's making become one message; others keep their traceback.

    Args:
        *kinds: which; default `USER`.
        about: what the message starts with.
        code: exit code.
    """
    caught = kinds or USER
    try:
        yield
    except caught as err:
        lacks = isinstance(err, ModuleNotFoundError) and err.name in ("torch", "transformers")
        fail(NEEDS_JUDGE if lacks else f"{about}{err}", code)


class Group(TyperGroup):
    """The root of the command line: what is wrong with the arguments is told like every other error."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """See click; in standalone mode the process ends with the exit code."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            if not standalone_mode:
                return code
        except ClickError as err:
            if not standalone_mode:
                raise
            if type(err).__name__ == "NoArgsIsHelpError":
                err.show()
            else:
                with contextlib.suppress(typer.Exit):
                    fail(err.format_message().rstrip(".?") + _allowed(err))
            sys.exit(err.exit_code)
        if code == INTERRUPTED:
            word = next(iter(sys.argv[1:] if args is None else args), "")
            typer.echo(f"\nstopped; {_AFTER.get(word, 'run the same command to begin anew')}", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def _allowed(err: Any) -> str:
    """What could have been written instead of an option or a command that does not exist."""
    command = getattr(getattr(err, "ctx", None), "command", None)
    if getattr(err, "option_name", None) and "No such option" in err.message and not err.possibilities:
        if commands := getattr(command, "commands", None):
            return f"; one of these comes first: {', '.join(commands)}"
        known = sorted({o for p in command.params for o in p.opts if o.startswith("--")}) if command else []
        return f"; known are {', '.join(known)}"
    if "unexpected extra argument" in err.message and getattr(command, "name", "") == "evaluate":
        return "; what is measured goes with --benchmarks"
    if "No such command" in err.message and command is not None:
        return f"; known are {', '.join(command.commands)}"
    return ""
