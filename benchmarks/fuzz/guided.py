"""One target under atheris: `python -m benchmarks.fuzz.guided TARGET [libFuzzer options]`, for benchmarks.fuzz."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["latent_rewards", "jinja2.parser", "jinja2.lexer", "yaml"]):
    from benchmarks.fuzz.__main__ import find
from benchmarks.fuzz.draw import Draw

if __name__ == "__main__":
    target = find(sys.argv.pop(1))
    atheris.Setup(sys.argv, lambda data: target(Draw(data)))
    atheris.Fuzz()
