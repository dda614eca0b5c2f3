"""Who reads a judge: the rewards that a trainer calls on it, so that one forward serves all of them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any


class Readers:
    """The rewards that trainers have called on one judge, held weakly, and when each was called last.

    A trainer calls its rewards one after the other on the same rows, step after step. So what it will call next is
    what it called since it last called this one; nothing is known at the first step, and nothing read in advance.
    """

    def __init__(self) -> None:
        self._turns = itertools.count(1)
        self._last: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._owed: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def called(self, reward: Any) -> list[Any]:
        """Note that a trainer calls this reward.

        Returns:
            The rewards that it has called since it last called this one, this one included; this one alone at first.
        """
        before = self._last.get(reward)
        self._last[reward] = next(self._turns)
        if before is None:
            return [reward]
        return [other for other, turn in list(self._last.items()) if turn > before]

    def share(self, rewards: Sequence[Any], seconds: float) -> None:
        """Note what a forward took that served all these rewards: each answers for its part of it."""
        for reward in rewards:
            self._owed[reward] = self._owed.get(reward, 0.0) + seconds / len(rewards)

    def settle(self, reward: Any) -> float:
        """Seconds of shared forwards that a reward answers for since it was last asked."""
        return self._owed.pop(reward, 0.0)

    def __reduce__(self) -> tuple[type[Readers], tuple[()]]:
        return Readers, ()  # a copy in another process has callers of its own
