"""What a selection keeps: of one prompt's completions, and of all rows by keys on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from latent_rewards.best_of_n import selection as rules
from latent_rewards.best_of_n.config import Selection

_CHUNK = 65_536


def pick(scores: np.ndarray, chosen: Selection, *, lengths: list[int], key: str) -> list[int]:
    """Positions of what a method other than "pairs" keeps of one prompt's completions, best first."""
    rule: rules.Rule = {"ties": chosen.ties, "lengths": lengths, "key": key}
    if chosen.method in ("best", "top-k"):
        return rules.top_k(scores, chosen.k if chosen.method == "top-k" else 1, **rule).tolist()
    if chosen.method == "threshold":
        assert chosen.threshold is not None
        return rules.above(scores, chosen.threshold).tolist()
    if chosen.method == "top-fraction":
        return rules.top_fraction(scores, chosen.fraction, **rule).tolist()
    if chosen.method == "soft":
        drawn = rules.softmax_choice(scores, chosen.temperature, key=key)
        return [] if drawn is None else [drawn]
    return []


def smallest_kept(path: Path, k: int) -> Iterator[bool]:
    """For every key in a file, in order, whether it is among the k smallest; of equal ones the first.

    The k-th is found in a copy beside it, on disk: memory does not grow with the file but for a byte a key.

    Args:
        path: complex128 keys without NaN: by real part, then by imaginary part.
        k: how many are kept; 0 keeps none.
    """
    edge, left = complex(-np.inf), 0
    if k:
        ranked = np.memmap(shutil.copyfile(path, path.with_name("ranked")), np.complex128, "r+")
        ranked.partition(k - 1)
        edge = ranked[k - 1]
        left = int(np.count_nonzero(ranked[:k] == edge))
    with path.open("rb") as file:
        while len(chunk := np.fromfile(file, np.complex128, _CHUNK)):
            same = chunk == edge
            yield from ((chunk < edge) | (same & (np.cumsum(same) <= left))).tolist()
            left -= int(same.sum())
