"""Finding the decoder of a causal LM, and making sure that it is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def find_decoder(model: Any, n_layers: int) -> tuple[Any, nn.ModuleList]:
    """The decoder and its blocks.

    `get_decoder` gives the model itself where it does not know better (Llama 4); then it is the innermost module that
    holds both the embedding and the blocks.

    Args:
        model: any `PreTrainedModel` for causal language modelling.
        n_layers: number of its decoder blocks.

    Raises:
        ValueError: the model has no list of decoder blocks that can be found.
    """
    decoder = model.get_decoder()
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not lists:
        name = type(model).__name__
        raise ValueError(f"{name}: no list of {n_layers} decoder blocks found; this judge cannot be read")
    blocks = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
    if decoder is model:
        embedding = model.get_input_embeddings()
        around = [m for m in model.modules() if m is not model and {blocks, embedding} <= set(m.modules())]
        decoder = min(around, key=lambda m: len(list(m.modules())), default=None)
        if decoder is None:
            raise ValueError(f"{type(model).__name__}: no decoder apart from its head; this judge cannot be read")
    return decoder, blocks


@torch.no_grad()
def refuse_if_not_causal(name: str, decoder: Any, vocab: int, device: torch.device) -> None:
    """Changing a token must leave every state before it as it is.

    Args:
        name: of the model, for the message.
        decoder: gives `last_hidden_state` for `input_ids`.
        vocab: number of token ids.
        device: where token ids go.

    Raises:
        ValueError: the model looks ahead (BERT, XLNet), so a label's probability is not that of the next token.
    """
    row = [(7 * i + 3) % vocab for i in range(12)]
    ids = torch.tensor([row, [*row[:-1], (row[-1] + 1) % vocab]], device=device)
    states: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].float()
    moved = float((states[0] - states[1]).norm() / states[0].norm().clamp(min=1e-20))
    if moved > 1e-2:
        raise ValueError(
            f"{name} is not a causal language model as configured: a later token changes earlier states by "
            f"{moved:.1e} (relative), so it cannot judge; take a decoder model, or set what makes it one, such as "
            "is_decoder=True"
        )
