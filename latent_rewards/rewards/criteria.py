"""Rubric lists: what a row's reply is to meet, as data sets publish it, as checked criteria."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

_TEXT = ("criterion", "description", "text")
_NAME = ("name", "title")
_WEIGHT = ("weight", "points")
_LISTS = ("rubrics", "criteria", "rubric")


@dataclass(frozen=True)
class Criterion:
    """One item of a rubric list.

    Attributes:
        text: what has to hold for the reply.
        weight: points for meeting it; negative for a penalty.
        name: short name, for logs; "" for none.
        essential: a reply that does not meet it gets the lowest score, whatever else it meets.
        reference: text that the criterion refers to, shown beside it.
    """

    text: str
    weight: float = 1.0
    name: str = ""
    essential: bool = False
    reference: str | None = None


Criteria = tuple[Criterion, ...]


def parse_criteria(value: object) -> Criteria:
    """Criteria of one row, or of all rows.

    Args:
        value: a list of items, each a text or a mapping with the text under "criterion" ("description", "text"), and
            optionally "weight" or "points", "name" ("title"), "essential", "reference"; other keys are ignored. Or such
            a list as JSON text, under the key "rubrics" ("criteria", "rubric") of a mapping, or as a mapping of names
            to items. A text that is no JSON list is one criterion.

    Raises:
        ValueError: no criteria, or an item that is no criterion; names the item, counted from 0.
    """
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, Mapping):
        inner = next((value[key] for key in _LISTS if key in value), None)
        if inner is not None:
            return parse_criteria(inner)
        if any(key in value for key in _TEXT):
            return parse_criteria([value])
        value = [{"name": name, **_as_mapping(item)} for name, item in value.items()]
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        raise ValueError(f"a rubric is a list of criteria, got {_shown(value)}")
    found = []
    for i, item in enumerate(value):
        try:
            found.append(item if isinstance(item, Criterion) else _item(_as_mapping(item)))
        except ValueError as err:
            raise ValueError(f"criterion {i}: {err}") from err
    if not any(c.weight > 0 for c in found):
        raise ValueError("no criterion has a positive weight, so no reply could score anything")
    return tuple(found)


def load_criteria(path: str | Path) -> Criteria:
    """Criteria of a YAML or JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: as `parse_criteria`; names the file.
    """
    try:
        return parse_criteria(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError as err:
        raise FileNotFoundError(f"no file of criteria {str(path)!r}") from err
    except (ValueError, yaml.YAMLError) as err:
        raise ValueError(f"{path}: {err}") from err


def subset(criteria: Criteria, dropout: float, key: object) -> Criteria:
    """The criteria that are left when each is dropped with some probability.

    Essential ones stay, and one of positive weight at least.

    Args:
        criteria: all of them.
        dropout: probability, 0 to below 1.
        key: plain data; equal keys give equal subsets, on any machine.
    """
    if not dropout:
        return criteria
    text = json.dumps([key, [c.text for c in criteria]], sort_keys=True, ensure_ascii=False, default=str)
    rng = random.Random(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    draws = [rng.random() for _ in criteria]
    last = max((i for i, c in enumerate(criteria) if c.weight > 0), key=draws.__getitem__)
    return tuple(c for i, c in enumerate(criteria) if c.essential or draws[i] >= dropout or i == last)


@functools.lru_cache(maxsize=4096)
def _parse_text(text: str) -> Criteria:
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return parse_criteria(json.loads(text))
        except json.JSONDecodeError as err:
            raise ValueError(f"a rubric in JSON that cannot be read: {err}") from err
    return parse_criteria([text])


def _as_mapping(item: object) -> Mapping[str, object]:
    if isinstance(item, str):
        return {"criterion": item}
    if not isinstance(item, Mapping):
        raise ValueError(f"expected a text or a mapping, got {_shown(item)}")
    return item


def _item(item: Mapping[str, object]) -> Criterion:
    text = next((item[key] for key in _TEXT if item.get(key) is not None), None)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no text under {' or '.join(map(repr, _TEXT))}, only {_shown(dict(item))}")
    weights = {key: item[key] for key in _WEIGHT if item.get(key) is not None}
    if len({str(w) for w in weights.values()}) > 1:
        raise ValueError(f"weight and points differ: {weights}")
    weight = next(iter(weights.values()), 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"its weight must be a finite number, got {weight!r}")
    essential, reference = item.get("essential", False), item.get("reference")
    if not isinstance(essential, bool | None):
        raise ValueError(f"'essential' must be true or false, got {essential!r}")
    if essential and weight <= 0:
        raise ValueError("a penalty cannot be essential")
    if not isinstance(reference, str | None):
        raise ValueError(f"'reference' must be text, got {_shown(reference)}")
    name = next((item[key] for key in _NAME if item.get(key) is not None), "")
    return Criterion(text, float(weight), str(name), bool(essential), reference or None)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
