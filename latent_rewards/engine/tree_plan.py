"""What the attention of one packed forward follows: the nodes of its prefix tree, and what is kept of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

KeyValue = tuple[Tensor, Tensor]

_active = threading.local()


class CannotShareError(RuntimeError):
    """This model's attention does something that a packed prefix tree does not reproduce."""


class WindowError(CannotShareError):
    """A layer sees less than the whole text; shorter texts can share."""


class CaughtKeysError(RuntimeError):
    """Leaves a layer once its keys and values are caught."""


@dataclass
class Span:
    """One node of the packed batch: tokens start..stop, below `parent` (index into the spans, -1: none)."""

    start: int
    stop: int
    parent: int
    past: Sequence[list[KeyValue]] = ()
    keep: bool = False
    end: int = 0

    @property
    def tokens(self) -> slice:
        """Where its tokens lie in the pack."""
        return slice(self.start, self.stop)


@dataclass
class TreePlan:
    """What the attention of one packed forward needs; filled with keys and values as the layers run.

    Attributes:
        spans: nodes in packed order, siblings side by side. `past` holds, for nodes whose ancestors are not in this
            batch, the ancestors' (K, V) per layer, outermost first.
        kept: span -> one (K, V) pair per layer run so far, for spans with `keep`.
        n_layers: how many attention layers there shall be.
        window: most tokens that every layer sees, as far as the layers that ran have said.
        layer: how many attention layers have run.
        caught: keys and values of all tokens at a layer that was left there, see `catching`.
        rows: packed tokens whose queries alone come next, to meet `caught`.
    """

    spans: list[Span]
    kept: dict[int, list[KeyValue]] = field(default_factory=dict)
    n_layers: int = 1 << 30
    window: int = 1 << 62
    layer: int = 0
    caught: KeyValue | None = None
    rows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = {i: [] for i, s in enumerate(self.spans) if s.keep}
        self.longest = max(s.end for s in self.spans)
        self.ends: Tensor | None = None
        self._catch = False
        self.groups: list[tuple[int, int, int]] = []
        for i, span in enumerate(self.spans):
            last = self.spans[self.groups[-1][0]] if self.groups else None
            if last is not None and (last.parent, id(last.past)) == (span.parent, id(span.past)):
                first, start, _ = self.groups[-1]
                self.groups[-1] = (first, start, span.stop)
            else:
                self.groups.append((i, span.start, span.stop))

    def see(self, window: int) -> None:
        """Note that some layer sees so many tokens only.

        Raises:
            WindowError: they are fewer than the longest text has.
        """
        self.window = min(self.window, window)
        if window < self.longest:
            raise WindowError(f"a layer sees a sliding window or chunk of {window} tokens, shorter than the texts")

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """The next attention leaves its layer with CaughtKeysError; its keys and values are in `caught`."""
        self._catch = True
        try:
            yield
        finally:
            self._catch = False


def active_plan(what: str) -> TreePlan:
    """The plan that this thread follows."""
    plan: TreePlan | None = getattr(_active, "plan", None)
    if plan is None:
        raise RuntimeError(f"{what} outside a packed forward")
    return plan


class following:
    """Context in which this thread's tree attention follows a plan."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan

    def __enter__(self) -> TreePlan:
        _active.plan = self.plan
        return self.plan

    def __exit__(self, *_: object) -> None:
        _active.plan = None
