"""Comparisons of replies: which rows are one group, who meets whom, and the table of what was read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from latent_rewards.files.keys import prompt_key
from latent_rewards.judge.reading import Row


class Game(NamedTuple):
    """One comparison: row `a` against row `b`, or against a text of the data (then `b` is -1)."""

    a: int
    b: int
    opponent: object


def groups_of(rows: Sequence[Row], slots: Iterable[str]) -> list[list[int]]:
    """Rows with the same prompt and further slots, in order."""
    shared = {"prompt", *slots} - {"completion", "other"}
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(prompt_key({slot: row.get(slot) for slot in shared}), []).append(i)
    return list(found.values())


def table_of(rows: Sequence[Row], group: Sequence[int], games: Sequence[Game], d: np.ndarray, tied: bool) -> np.ndarray:
    """(N, N) log-odds of a group, nats; identical replies share what one of them was read for, and tie.

    Args:
        rows: all.
        group: which of them.
        games: all comparisons; each between the first rows of their content.
        d: (G,) log-odds of each, NaN where it could not be read.
        tied: replies tie that are all the same and were not read.
    """
    keys = [content_of(rows[i]) for i in group]
    place = {key: at for at, key in enumerate(sorted(set(keys)))}
    node = np.array([place[key] for key in keys])
    table = np.full((len(place), len(place)), np.nan)
    read = np.zeros(len(place), dtype=bool)
    members = set(group)
    for game, value in zip(games, d, strict=True):
        if game.a in members:
            a, b = place[content_of(rows[game.a])], place[content_of(rows[game.b])]
            table[a, b], table[b, a] = value, -value
            read[[a, b]] |= not np.isnan(value)
    np.fill_diagonal(table, np.where(read | (tied and len(place) == 1), 0.0, np.nan))
    return table[np.ix_(node, node)]


def in_both_orders(row: Mapping[str, Any], a: object, b: object) -> list[dict[str, Any]]:
    """A comparison's two texts: a shown first, then b."""
    return [{**row, "completion": a, "other": b}, {**row, "completion": b, "other": a}]


def content_of(row: Row) -> str:
    """Equal for rows of equal completions."""
    return json.dumps(row["completion"], sort_keys=True, default=str)


def opponents_of(value: object) -> list[object]:
    """The opponents that a column's value holds: a text or a list of messages is one."""
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str) and not any(isinstance(v, Mapping) for v in value):
        return list(value)
    return [value]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), of log-odds in nats."""
    return 0.5 * (1 + np.tanh(0.5 * x))
