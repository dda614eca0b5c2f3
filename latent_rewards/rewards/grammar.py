"""How rewards are asked for in YAML, on the command line and in recipes: one grammar for all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Wanted(NamedTuple):
    """A reward that somebody asked for.

    Attributes:
        own: what they call it.
        reward: its short name, with what it needs after a colon; see `parse_reward`.
        options: further arguments.
    """

    own: str
    reward: str
    options: dict[str, Any]

    @property
    def column(self) -> str:
        """Its own name, fit for a column: "weighted:prompts/mine.yaml" is "weighted-mine"."""
        kind, _, argument = self.own.partition(":")
        return f"{kind}-{Path(argument).stem}" if argument else kind

    def parsed(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments for `build_reward`."""
        return parse_reward((self.reward, self.options))


def parse_reward(spec: str | tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Name and options of a reward by its short name, with what it needs after a colon.

    "weighted", "weighted:rubric" (another prompt, by name or path), "probe:runs/probe" or "panel:runs/panel" (a saved
    one), "likert10:bare" (the number without feedback), "likert10:guided" (the number under a choice constraint),
    "rubric_list:criteria.yaml" (criteria for all rows, in a file; another prompt for them is the option "prompt"),
    "guarded:weighted", "contrastive:verifier", "ensemble:weighted+verifier", or a pair of name and options.
    """
    name, options = (spec, {}) if isinstance(spec, str) else (spec[0], dict(spec[1]))
    name, _, argument = str(name).partition(":")
    if not argument:
        return name, options
    if re.fullmatch(r"\w+=.*", argument, re.DOTALL) and not Path(argument).exists():
        key, _, value = argument.partition("=")
        raise ValueError(
            f"{name}:{argument}: after the colon stands a prompt or a member, not an option; give it as "
            f"`--reward-option {name}.{key}={value}`, or as `{key}: {value}` under the reward's name in a YAML file"
        )
    if name.startswith("likert") and argument in ("bare", "guided"):
        how = {"feedback": False} if argument == "bare" else {"guided": True}
        return name, {**how, **options}
    if name in ("guarded", "contrastive", "ensemble", "reasoned", "calibrated", "revised"):
        return name, options | {"of": argument.split("+") if name == "ensemble" else argument}
    if name == "rubric_list" and argument.endswith((".yaml", ".yml", ".json")):
        return name, options | {"criteria": argument}
    return name, options | {"path" if name in ("probe", "panel") else "prompt": argument}


def wanted(specs: Iterable[object] | Mapping[str, object], known: Collection[str]) -> list[Wanted]:
    """Rewards as they stand in YAML or on a command line.

    Args:
        specs: a mapping of own names to options, of which "reward" names the reward where the own name does not; or a
            list of short names, YAML files of such, mappings of one entry, options with "reward", and (name, options).
        known: names of rewards.

    Raises:
        ValueError: unknown reward (names the known ones), options that are no mapping, or two of one name.
        OSError: a file that cannot be read.
    """
    entries = [(own, options) for own, options in specs.items()] if isinstance(specs, Mapping) else list(specs)
    out = [one for entry in entries for one in _entry(entry, known)]
    for one in out:
        if one.reward.partition(":")[0] not in known:
            raise ValueError(f"unknown reward {one.reward!r}; known are {sorted(known)}")
    return out


def read_rewards(path: str | Path, known: Collection[str]) -> list[Wanted]:
    """Rewards of a YAML file: what `wanted` takes, or that under the key "rewards".

    Raises:
        ValueError: no YAML of this kind; names the file.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        raw = raw["rewards"] if isinstance(raw, dict) and set(raw) <= {"judge", "rewards"} and "rewards" in raw else raw
        if not isinstance(raw, dict | list) or not raw:
            raise ValueError("expected rewards: a mapping of names to options, or a list")
        return wanted(raw, known)
    except (ValueError, yaml.YAMLError) as err:
        raise ValueError(f"{path}: {err}") from err


def _entry(entry: object, known: Collection[str]) -> list[Wanted]:
    if isinstance(entry, str):
        return (
            read_rewards(entry, known) if entry.endswith((".yaml", ".yml")) and ":" not in entry else [_made(entry, {})]
        )
    if isinstance(entry, Mapping):
        if "reward" in entry:
            return [_made(str(entry["reward"]), {k: v for k, v in entry.items() if k != "reward"})]
        return [one for pair in entry.items() for one in _entry(pair, known)]
    if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[1], Mapping | None):
        raise ValueError(f"expected a reward and its options as a mapping, got {entry!r}")
    own, options = str(entry[0]), dict(entry[1] or {})
    return [Wanted(own, str(options.pop("reward", own)), options)]


def _made(reward: str, options: dict[str, Any]) -> Wanted:
    return Wanted(reward, reward, options)
