"""What a run is told in a file or on a command line, and the versions it ran with."""

from __future__ import annotations

import subprocess
from importlib import metadata

import yaml

from latent_rewards.files.types import JsonObject

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


def versions(*packages: str) -> dict[str, str | None]:
    """Version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
