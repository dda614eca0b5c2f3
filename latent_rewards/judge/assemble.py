"""From states at the rating position to a `Reading`: lenses, label rows of the head, exact label log-probs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.judge.labels import LabelTrie
from latent_rewards.judge.reading import Lens, Need, Reading


def absolute_layers(need: Need, n_layers: int) -> dict[int, int]:
    """Asked-for layer -> layer 1..L, for the hidden states of a need.

    Raises:
        ValueError: a layer that the model does not have.
    """
    layers = {layer: layer + n_layers + 1 if layer < 0 else layer for layer in need.hidden}
    for asked, layer in layers.items():
        if not 1 <= layer <= n_layers:
            raise ValueError(f"this judge has layers 1..{n_layers}; layer {asked} was asked for")
    return layers


def states_needed(need: Need, n_layers: int) -> tuple[list[int], bool]:
    """Inner layers that the forward must catch for a need, and whether it must run to the end."""
    wanted = set(absolute_layers(need, n_layers).values())
    inner = set(range(n_layers)) if need.layer_logits else set(wanted)
    if need.hidden_lens == "normed":
        inner.discard(n_layers)
    else:
        inner |= wanted
    return sorted(inner), need.labels or need.target or bool(need.layer_logits) or (
        n_layers in wanted and need.hidden_lens == "normed"
    )


@torch.no_grad()
def assemble(
    blocks: Blocks,
    trie: LabelTrie,
    states: States,
    need: Need,
    rows: Sequence[int | None],
    reasons: Sequence[str | None],
    *,
    alone: bool = False,
) -> Reading:
    """The reading of B rows.

    Args:
        blocks: the judge.
        trie: its labels; `states` holds, for each distinct text, the positions of `trie.chains()` in order.
        states: what the forward gave.
        need: what was asked.
        rows: for each row the index of its distinct text, None for a row that was not read.
        reasons: why rows were not read.
        alone: run the head for one text at a time: its products round differently for more rows.
    """
    n, size = 1 + max(i for i in rows if i is not None), sum(len(contexts) for _, contexts in trie.chains())
    parts = [(i, i + 1) for i in range(n)] if alone else [(0, n)]
    found = [_of_texts(blocks, trie, slice_of(states, a * size, b * size), need, b - a) for a, b in parts]
    return Reading.join(found).map(_Spread(rows), reasons)


@torch.no_grad()
def assemble_targets(
    blocks: Blocks,
    states: States,
    targets: Sequence[Sequence[int]],
    rows: Sequence[int | None],
    reasons: Sequence[str | None],
    *,
    alone: bool = False,
) -> Reading:
    """The reading of B rows whose targets are read.

    Args:
        blocks: the judge.
        states: at the token before each token of the targets, text after text.
        targets: token ids of the target of each distinct text.
        rows: as for `assemble`.
        reasons: as for `assemble`.
        alone: run the head for one text at a time.
    """
    assert states.final is not None
    parts = [[t] for t in targets] if alone else [list(targets)]
    ends = np.cumsum([0, *(sum(map(len, part)) for part in parts)])
    found = [
        blocks.token_log_probs(states.final[a:b], [i for ids in part for i in ids]).cpu()
        for part, (a, b) in zip(parts, itertools.pairwise(ends), strict=True)
    ]
    own = torch.cat(found).split([len(ids) for ids in targets])
    padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=torch.nan)
    padded[[bool(x.isnan().any()) for x in own]] = torch.nan
    return Reading(target_logprobs=padded).map(_Spread(rows), reasons)


def slice_of(states: States, first: int, end: int) -> States:
    """States at positions first..end, end exclusive."""
    final = None if states.final is None else states.final[first:end]
    return States(final, {layer: x[first:end] for layer, x in states.inner.items()})


def _of_texts(blocks: Blocks, trie: LabelTrie, states: States, need: Need, n: int) -> Reading:
    """The reading of n distinct texts."""
    at = [c for _, contexts in trie.chains() for c in contexts]
    pick = [torch.arange(n) * len(at) + at.index(c) for c in range(len(trie.contexts))]
    hidden = {
        asked: _lens(blocks, states, layer, need.hidden_lens, pick[0])
        for asked, layer in absolute_layers(need, blocks.n_layers).items()
    }
    logprobs = mass = None
    lensed: dict[str, Tensor] = {}
    if need.labels or need.layer_logits:
        assert states.final is not None
        norms = [blocks.log_normaliser(states.final[index]).cpu() for index in pick]
        logits = [blocks.head_logits(states.final[pick[c]], ids).cpu() for c, ids in enumerate(trie.children)]
        if need.labels:
            logprobs = trie.log_probs(logits, norms).float()
            mass = logprobs.exp().sum(-1)
        norms[0] = torch.zeros(n)
        for lens in sorted(need.layer_logits):
            lensed[lens] = _layer_label_logits(blocks, trie, states, lens, pick[0], logits, norms)
    return Reading(logprobs, mass, hidden, lensed, (None,) * n)


class _Spread:
    """Puts values of distinct texts into all B rows, NaN where a row was not read, float32 on the CPU."""

    def __init__(self, rows: Sequence[int | None]) -> None:
        self.read = [b for b, i in enumerate(rows) if i is not None]
        self.source = [i for i in rows if i is not None]
        self.total = len(rows)

    def __call__(self, values: Tensor) -> Tensor:
        out = torch.full((self.total, *values.shape[1:]), float("nan"))
        out[self.read] = values.float().cpu()[self.source]
        return out


def _lens(blocks: Blocks, states: States, layer: int, lens: Lens, index: Tensor) -> Tensor:
    """States after block `layer`; the last layer's normed state is the decoder's own output."""
    if lens == "normed" and layer == blocks.n_layers and states.final is not None:
        return states.final[index]
    raw = states.inner[layer][index]
    if lens == "raw":
        return raw
    weight = next(blocks.norm.parameters(), None)
    return blocks.norm(raw if weight is None else raw.to(weight.device))


def _layer_label_logits(
    blocks: Blocks,
    trie: LabelTrie,
    states: States,
    lens: Lens,
    root: Tensor,
    logits: list[Tensor],
    norms: list[Tensor],
) -> Tensor:
    """(B, L+1, K). The last entry is the model's own output under both lenses."""
    per_layer = []
    for layer in range(blocks.n_layers + 1):
        view: Lens = "normed" if layer == blocks.n_layers else lens
        first = blocks.head_logits(_lens(blocks, states, layer, view, root), trie.children[0]).cpu()
        per_layer.append(trie.log_probs([first, *logits[1:]], norms))
    return torch.stack(per_layer, dim=1)
