"""Judge prompt files: where the shipped ones lie, and their keys as fields of a `JudgePrompt`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_rewards.judge.labels import Labels

_KEYS = {
    "name", "kind", "source", "system", "body", "prefill", "labels", "spellings", "scale", "pattern", "completion",
    "target", "optional", "reasoning", "unfinished", "opened", "thought_tags",
}  # fmt: skip


def prompt_file(name_or_path: str | Path) -> Path:
    """The file of a shipped prompt by its name, or of one's own by its path.

    Raises:
        FileNotFoundError: neither.
    """
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        path = prompt_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        shipped = sorted(p.stem for p in prompt_folder().glob("*.yaml"))
        raise FileNotFoundError(f"no judge prompt {str(name_or_path)!r}: shipped are {shipped}, or give a file path")
    return path


def prompt_folder() -> Path:
    """Folder of the shipped prompts: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    inside = package / "_prompts"
    return inside if inside.is_dir() else package.parent / "prompts"


def fields_of(raw: object, path: Path, fence: str | None = None) -> dict[str, Any]:
    """The fields of a `JudgePrompt` from what its file holds.

    Args:
        raw: the file as YAML reads it.
        path: of the file.
        fence: see `JudgePrompt.load`.

    Raises:
        ValueError: an unknown or missing key, or a value of another type than its key wants.
    """
    if not isinstance(raw, dict):
        raise ValueError("expected a mapping of keys")
    unknown = sorted(str(k) for k in set(raw) - _KEYS)
    if unknown:
        raise ValueError(f"unknown keys {unknown}; known are {sorted(_KEYS)}")
    _check_types(raw)
    data = {k: v for k, v in raw.items() if k not in ("labels", "spellings")}
    fence = fence or os.environ.get("LATENT_REWARDS_FENCE") or hashlib.sha256(raw["body"].encode()).hexdigest()[:12]
    for key in ("body", "system"):
        if isinstance(data.get(key), str):
            data[key] = re.sub(r"\{\{ *fence *\}\}", lambda _: f"=={fence}==", data[key])
    if "labels" in raw:
        data["labels"] = Labels.from_mapping(
            {_word(k): v for k, v in dict(raw["labels"]).items()},
            {_word(k): [_word(x) for x in v] for k, v in dict(raw.get("spellings") or {}).items()},
        )
    elif "spellings" in raw:
        raise ValueError("'spellings' needs 'labels'")
    if "scale" in data:
        low, high = (int(x) for x in data["scale"])
        if not low < high:
            raise ValueError(f"'scale' must be [lowest, highest], got {[low, high]}")
        data["scale"] = (low, high)
    data["optional"] = tuple(data.get("optional") or ())
    if "thought_tags" in data:
        data["thought_tags"] = tuple(map(tuple, data["thought_tags"] or ()))
    data.setdefault("name", path.stem)
    return data


def _check_types(raw: Mapping[str, object]) -> None:
    """Every value of a prompt file is of the type that its key wants."""
    for key in ("kind", "body"):
        if not isinstance(raw.get(key), str):
            raise ValueError(f"key {key!r} is missing or not text")
    for key in ("name", "source", "system", "prefill", "pattern", "target"):
        if not isinstance(raw.get(key, ""), str):
            raise ValueError(f"key {key!r} must be text, got {type(raw[key]).__name__}")
    tags = raw.get("thought_tags") or []
    if not isinstance(tags, list) or not all(isinstance(pair, list) for pair in tags):
        raise ValueError("key 'thought_tags' must be a list of pairs: an opening tag and a closing one")
    if not isinstance(raw.get("completion", True), bool):
        raise ValueError(f"key 'completion' must be true or false, got {type(raw['completion']).__name__}")
    optional = raw.get("optional")
    if optional is not None and not (isinstance(optional, list) and all(isinstance(s, str) for s in optional)):
        raise ValueError("key 'optional' must be a list of slot names")


def _word(value: object) -> str:
    """A label or spelling; YAML reads a bare yes or no as a truth value, which nobody means here."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"YAML reads a bare yes, no or null as {value!r}; quote labels and spellings")
    if not isinstance(value, str | int | float):
        raise ValueError(f"labels and spellings must be text, got {type(value).__name__}; quote them")
    return str(value)
