"""What metrics are computed of: the scores, gold and lengths of one scorer on one benchmark."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Table:
    """One scorer on one benchmark: N items with up to M responses, padded with NaN.

    Attributes:
        scores: (N, M) NaN where there is none.
        gold: (N, M) higher is better; a pair has the chosen response first.
        lengths: (N, M) characters.
        score_range: lowest and highest possible score; None when unbounded.
        gold_range: lowest and highest possible gold; None when unknown.
    """

    scores: np.ndarray
    gold: np.ndarray
    lengths: np.ndarray
    score_range: tuple[float, float] | None = None
    gold_range: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: np.ndarray) -> Table:
        """The same table with other rows."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Table(**{k: v[index] if isinstance(v, np.ndarray) else v for k, v in parts.items()})

    @property
    def complete(self) -> np.ndarray:
        """(N,) items all of whose responses have a score."""
        return ~(np.isnan(self.scores) & ~np.isnan(self.gold)).any(1)
