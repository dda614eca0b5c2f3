"""What a token sees of its own path where a layer does not show it all: a sliding window, or a chunk."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from latent_rewards.engine.tree_plan import CannotShareError, Span

_KINDS: tuple[Literal["window", "chunk"], ...] = ("window", "chunk")
_PLAIN = ("causal_mask_function", "packed_sequence_mask_function")
_AROUND = ("and_masks", "remap_positions_for_packed_sequence")


class Local(NamedTuple):
    """The last `size` tokens up to the own one ("window"), or those from the last multiple of `size` on ("chunk")."""

    kind: Literal["window", "chunk"]
    size: int

    def first(self, position: int) -> int:
        """The first position that a token sees."""
        return max(0, position - self.size + 1) if self.kind == "window" else position // self.size * self.size

    def pieces(self, path: range) -> list[range]:
        """Parts of a path in which all queries begin to see at one place, or at a window's."""
        if self.kind == "window":
            return [path]
        cuts = [path.start, *range(self.first(path.start) + self.size, path.stop, self.size), path.stop]
        return [range(a, b) for a, b in itertools.pairwise(cuts)]

    def mask(self, queries: range, keys: range, device: torch.device) -> Tensor:
        """(Q, K) float32 zeros where a query sees a key, else -inf.

        Args:
            queries: positions of queries on their path.
            keys: positions of keys on the same path.
            device: where it is wanted.
        """
        q = torch.arange(queries.start, queries.stop, device=device)[:, None]
        k = torch.arange(keys.start, keys.stop, device=device)
        first = q - self.size + 1 if self.kind == "window" else q // self.size * self.size
        return torch.zeros(len(queries), len(keys), device=device).masked_fill_((k > q) | (k < first), -torch.inf)

    def marker(self) -> Tensor:
        """Stands for the mask on its way through the model's layers; on CPU, so that reading it never waits."""
        return torch.tensor([_KINDS.index(self.kind), self.size]).view(1, 1, 1, 2)


class Paths(NamedTuple):
    """What the pieces of a pack's nodes see, for one launch of variable-length attention.

    Attributes:
        rows: of the keys, those of each piece one after the other.
        query_ends: (1 + pieces,) int32 ends of the queries of each piece in the pack.
        key_ends: (1 + pieces,) int32 ends of the keys of each piece in `rows`.
        most_queries: of one piece.
        most_keys: of one piece.
    """

    rows: Tensor
    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int


def paths_of(spans: Sequence[Span], local: Local, device: torch.device) -> Paths:
    """Paths of all nodes of a pack.

    Args:
        spans: the nodes, parents first.
        local: what a token sees.
        device: where the tensors are wanted.

    Returns:
        Rows of the keys that lie above the pack (each `past` once, in the order in which the spans name them), followed
        by those of the pack.
    """
    above, n_above = {}, 0
    for span in spans:
        if span.past and id(span.past) not in above:
            n = sum(layers[0][0].shape[1] for layers in span.past)
            above[id(span.past)] = torch.arange(n_above, n_above + n)
            n_above += n
    none, wholes, rows, queries = torch.arange(0), list[Tensor](), list[Tensor](), list[int]()
    for span in spans:
        before = wholes[span.parent] if span.parent >= 0 else above.get(id(span.past), none)
        wholes.append(torch.cat([before, torch.arange(n_above + span.start, n_above + span.stop)]))
        start = span.end - len(wholes[-1])
        for piece in local.pieces(span.path):
            rows.append(wholes[-1][max(0, local.first(piece.start) - start) : piece.stop - start])
            queries.append(len(piece))
    keys = [len(r) for r in rows]
    query_ends, key_ends = (
        torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32, device=device) for n in (queries, keys)
    )
    return Paths(torch.cat(rows).to(device), query_ends, key_ends, max(queries), max(keys))


def is_marker(mask: Tensor) -> bool:
    """Whether a mask is a `Local`'s marker; true masks hold numbers or booleans."""
    return mask.dtype == torch.int64 and mask.shape == (1, 1, 1, 2)


def from_marker(mask: Tensor) -> Local:
    """What a marker stands for."""
    kind, size = mask.flatten().tolist()
    return Local(_KINDS[kind], size)


def wanted_local(mask_function: Callable[..., Any]) -> Local | None:
    """What one of transformers' mask functions leaves of a causal mask; None is all of it.

    Args:
        mask_function: as `transformers.masking_utils` puts it together.

    Raises:
        CannotShareError: it masks something else.
    """
    found: set[Local] = set()
    for name, inside in _parts(mask_function):
        if name == "sliding_window_overlay":
            found.add(Local("window", int(inside["sliding_window"])))
        elif name == "chunked_overlay":
            found.add(Local("chunk", int(inside["chunk_size"])))
        elif name not in _PLAIN:
            raise CannotShareError(f"it masks its attention in a way of its own ({name})")
    if len(found) > 1:
        raise CannotShareError("it masks its attention by a window and a chunk at once")
    return next(iter(found), None)


def _parts(mask_function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mask functions that one is the intersection of: the name of what made each, and what it holds."""
    name = mask_function.__qualname__.split(".")[0]
    inside = dict(inspect.getclosurevars(mask_function).nonlocals)
    if name not in _AROUND:
        yield name, inside
        return
    for part in inside.get("mask_functions", (inside.get("mask_function"),)):
        yield from _parts(part)
