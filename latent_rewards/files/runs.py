"""What a run is told in a file or on a command line, and the versions and machine it ran with."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml

from latent_rewards.files.types import JsonObject

_PATH = re.compile(r"(?<![\w<>.:/-])/[^\s,'\"{}\[\]]+")  # absolute ones

# What the figures of a training run depend on.
PACKAGES = ("latent-rewards", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def as_options(entry: object, key: str) -> JsonObject:
    """Options of a judge, reward or model given as a name, a mapping, or YAML text of either.

    Raises:
        ValueError: neither, or the mapping lacks `key`.
    """
    value = yaml.safe_load(entry) if isinstance(entry, str) else entry
    options = {key: value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not isinstance(options.get(key), str):
        raise ValueError(f"expected a name or a mapping with the key {key!r}, got {entry!r}")
    return dict(options)


def commit() -> str:
    """What is checked out here, short, with a + for local changes; empty outside of git."""
    try:
        head, changed = (
            subprocess.run(["git", *what], capture_output=True, text=True).stdout.strip()
            for what in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except FileNotFoundError:  # no git on this machine
        return ""
    return head + ("+" if changed else "")


def command(module: str, argv: Sequence[str] | None = None) -> str:
    """The command line of a result file; absolute paths, which another machine does not have, by their names alone.

    Args:
        module: that was run, e.g. "benchmarks.gpu".
        argv: its arguments; None for those of this process.
    """
    shown = [_PATH.sub(_folded, word) for word in (sys.argv[1:] if argv is None else argv)]
    return " ".join(["python", "-m", module, *(shlex.quote(w) if re.search(r"[\s{}\"']", w) else w for w in shown)])


def _folded(path: re.Match[str]) -> str:
    *_, folder, name = ["", *path[0].rstrip("/").split("/")]
    return f"<folder>/{'bin/' if folder == 'bin' else ''}{name}"


def provenance(module: str, argv: Sequence[str] | None = None) -> JsonObject:
    """What every result file says of itself: `command`, `commit` and `machine`, see the functions of these names."""
    return {"command": command(module, argv), "commit": commit(), "machine": machine()}


def versions(*packages: str) -> dict[str, str | None]:
    """Version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> str:
    """Processor name, its bfloat16 unit and the number of cores."""
    return f"{_cpuinfo('model name') or platform.processor()}, {bf16_unit()}, {os.cpu_count()} cores"


def cpu_kind() -> str:
    """Maker and bfloat16 unit, for file names: figures of one kind say little about another."""
    makers = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
    maker = _cpuinfo("vendor_id")
    return f"{makers.get(maker, maker or platform.machine())}-{bf16_unit()}"


def bf16_unit() -> str:
    """What multiplies bfloat16 matrices here: amx, avx512_bf16, bf16 (Arm) or no-bf16."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return "amx" if "amx_bf16" in flags else next((f for f in ("avx512_bf16", "bf16") if f in flags), "no-bf16")


def _cpuinfo(field: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.split(":")[0].strip() == field), "")
