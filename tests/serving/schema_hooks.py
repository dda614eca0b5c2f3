"""For schemathesis: deadlines that the server has to keep.

A deadline of a second may pass on a busy machine, and 504 is then right. Every valid one is a minute or more here, so
that a 504 is a fault.
"""

from __future__ import annotations

from typing import Any

import schemathesis

SECONDS = 60.0


def kept(deadline: object) -> object:
    """A deadline that the server would take, made longer where it is short; all else as it is."""
    if isinstance(deadline, str):  # of the URL
        try:
            return str(SECONDS) if 1 <= float(deadline) < SECONDS else deadline
        except ValueError:
            return deadline
    if isinstance(deadline, int | float) and not isinstance(deadline, bool) and 1 <= deadline < SECONDS:
        return SECONDS
    return deadline


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Of the body, or of the URL."""
    for part in (case.body, case.query):
        if isinstance(part, dict) and "deadline" in part:
            part["deadline"] = kept(part["deadline"])
