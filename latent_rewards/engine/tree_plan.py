"""What the attention of one packed forward follows: the nodes of its prefix tree, and what is kept of them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from latent_rewards.engine.local import Local, Paths

KeyValue = tuple[Tensor, Tensor]

_active = threading.local()


class CannotShareError(RuntimeError):
    """This model's attention does something that a packed prefix tree does not reproduce."""


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

    @property
    def path(self) -> range:
        """The positions of its tokens on their path."""
        return range(self.end - (self.stop - self.start), self.end)


class SpanGroup(NamedTuple):
    """Siblings: spans that lie below the same tokens, side by side; `first` is the index of the first."""

    first: int
    spans: list[Span]

    @property
    def tokens(self) -> slice:
        """Where their tokens lie in the pack."""
        return slice(self.spans[0].start, self.spans[-1].stop)

    def sees_all(self, local: Local | None) -> bool:
        """Whether every token sees its whole path."""
        return local is None or not any(local.first(span.end - 1) for span in self.spans)


@dataclass
class TreePlan:
    """What the attention of one packed forward needs; filled with keys and values as the layers run.

    Attributes:
        spans: nodes in packed order, siblings side by side. `past` holds, for nodes whose ancestors are not in this
            batch, the ancestors' (K, V) per layer, outermost first.
        kept: span -> one (K, V) pair per layer run so far, for spans with `keep`.
        n_layers: how many attention layers there shall be.
        masked: whether the model asked for masks, which then say what a layer shows.
        layer: how many attention layers have run.
        caught: keys and values of all tokens at a layer that was left there, see `catching`.
        rows: packed tokens whose queries alone come next, to meet `caught`.
    """

    spans: list[Span]
    kept: dict[int, list[KeyValue]] = field(default_factory=dict)
    n_layers: int = 1 << 30
    masked: bool = False
    layer: int = 0
    caught: KeyValue | None = None
    rows: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = {i: [] for i, s in enumerate(self.spans) if s.keep}
        self.longest = max(s.end for s in self.spans)
        self.ends: Tensor | None = None
        self.paths: dict[Local, Paths] = {}
        self._catch = False
        self.groups: list[SpanGroup] = []
        for i, span in enumerate(self.spans):
            last = self.groups[-1].spans[0] if self.groups else None
            if last is not None and (last.parent, id(last.past)) == (span.parent, id(span.past)):
                self.groups[-1].spans.append(span)
            else:
                self.groups.append(SpanGroup(i, [span]))

    @functools.cached_property
    def positions(self) -> list[int]:
        """Of all tokens on their paths."""
        return [p for span in self.spans for p in span.path]

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
