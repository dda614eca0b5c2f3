"""What can be wrong with a judge rather than with a row; clients without torch know it, too."""

from __future__ import annotations


class JudgeError(RuntimeError):
    """A judge failed that runs elsewhere.

    Attributes:
        outage: it did not answer, whatever it was asked; asking again later may help.
    """

    @property
    def outage(self) -> bool:
        """See the class."""
        return False


class NoAnswer(str):
    """A reason that says nothing of its row: the judge did not answer at all."""

    __slots__ = ()
