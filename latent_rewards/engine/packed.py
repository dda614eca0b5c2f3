"""One forward over a packed prefix tree: our attention in the model, no layer too many, the last one for few rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latent_rewards.engine.attention import NAME, attention_forward, mask_forward
from latent_rewards.engine.blocks import Blocks, States, Stop, catch_inner, stop_after
from latent_rewards.engine.schedule import Wanted
from latent_rewards.engine.tree_plan import CannotShareError, CaughtKeysError, TreePlan, following


class Pack(NamedTuple):
    """Nodes that are run together: their plan, T tokens, T positions, and R indices of tokens whose state is read."""

    plan: TreePlan
    ids: list[int]
    at: list[int]
    reads: list[int]


@dataclass
class Call:
    """A packed forward: what the decoder takes; its output, once it is there; and what was read.

    Attributes:
        inputs: of the decoder.
        hidden: (1, T, D) its output.
        states: at the R places, after the call.
    """

    inputs: dict[str, Tensor]
    hidden: Tensor | None = None
    states: States = field(default_factory=States)


@contextlib.contextmanager
def packed(blocks: Blocks, pack: Pack, wanted: Wanted, *, few_rows: bool) -> Iterator[Call]:
    """While active, the decoder attends to a packed tree and stops at the deepest layer that is wanted.

    Whoever enters runs the decoder itself, so that nothing of ours lies between the two.

    Args:
        blocks: the judge.
        pack: what is run.
        wanted: what is read.
        few_rows: run the deepest layer for the R rows only (its keys and values still for all).

    Raises:
        CannotShareError: the model's attention does something that a packed tree does not reproduce.
    """
    device, plan, reads = blocks.device, pack.plan, pack.reads
    call = Call({"input_ids": torch.tensor([pack.ids], device=device)})
    call.inputs["position_ids"] = torch.tensor([pack.at], device=device)
    depth = wanted.depth(blocks.n_layers)
    plan.n_layers = blocks.n_layers
    few = few_rows and depth > 1 and 2 * (len(reads) + 1) <= len(pack.ids)
    # Two equal rows rather than one, which would be a special case for torch.compile.
    where = torch.tensor(reads * 2 if len(reads) == 1 else reads, device=device, dtype=torch.long)

    def pick(hidden: Tensor) -> Tensor:
        return hidden[0] if few and hidden.shape[1] == len(where) else hidden[0, where.to(hidden.device)]

    rows = _last_layer_for(blocks, depth, plan, where) if few else contextlib.nullcontext()
    stop = contextlib.nullcontext() if wanted.final else stop_after(blocks, depth)
    blocks.rope.reset()
    with _tree_attention(blocks), following(plan), catch_inner(blocks, wanted.layers, pick) as inner, stop, rows:
        call.states.inner = inner
        try:
            yield call
        except Stop:
            return
    if plan.layer != blocks.n_layers:
        raise CannotShareError(
            f"only {plan.layer} of its {blocks.n_layers} layers use transformers' attention interface"
        )
    if wanted.final and call.hidden is not None:
        call.states.final = pick(call.hidden)


@contextlib.contextmanager
def _last_layer_for(blocks: Blocks, layer: int, plan: TreePlan, rows: Tensor) -> Iterator[None]:
    """While active, this layer's block runs for these rows alone."""
    module = blocks.layers[layer - 1]
    blocks.layers[layer - 1] = _FewRows(module, plan, rows)
    try:
        yield
    finally:
        blocks.layers[layer - 1] = module


class _FewRows(nn.Module):
    """Stands in for a decoder block: runs it up to its keys and values for all rows, then again for R rows.

    Of the first run only norm, projections and position embedding happen: our attention leaves it. The second is the
    block's own forward on R rows, whose queries meet the keys and values of the first.
    """

    def __init__(self, block: nn.Module, plan: TreePlan, rows: Tensor) -> None:
        super().__init__()
        # Not a submodule: torch.compile shall not see a new module around a known one.
        self.__dict__["block"] = block
        self.plan, self.rows = plan, rows

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        plan, n, block = self.plan, hidden.shape[1], self.__dict__["block"]
        with contextlib.suppress(CaughtKeysError), plan.catching():
            block(hidden, *args, **kwargs)
        if plan.caught is None:
            raise CannotShareError("one of its layers does not use transformers' attention interface")
        if not len(self.rows):
            raise Stop
        plan.rows = self.rows.tolist()
        return block(*(_rows_of(x, self.rows, n) for x in (hidden, *args)),
                          **{k: _rows_of(x, self.rows, n) for k, x in kwargs.items()})  # fmt: skip


def _rows_of(x: object, rows: Tensor, n: int) -> object:
    """Rows of whatever has one for each of n tokens: (1, n, ...) or (n,) tensors, also inside tuples."""
    if isinstance(x, tuple):
        return tuple(_rows_of(y, rows, n) for y in x)
    if not isinstance(x, Tensor):
        return x
    if x.dim() > 1 and x.shape[1] == n:
        return x[:, rows.to(x.device)]
    return x[rows.to(x.device)] if x.shape == (n,) else x


@contextlib.contextmanager
def _tree_attention(blocks: Blocks) -> Iterator[None]:
    """Our attention and mask in the model's config while active."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_forward)
    config = blocks.decoder.config
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before
