"""Finding the decoder of a causal LM, and making sure that it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latent_rewards import compat
from latent_rewards.engine.rope_switch import stretch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def embedding(model: PreTrainedModel) -> Tensor:
    """(V, D) rows of a model's input embedding."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def find_decoder(model: PreTrainedModel, config: PretrainedConfig) -> tuple[PreTrainedModel, nn.ModuleList]:
    """The decoder and its blocks.

    `get_decoder` gives the model itself (Llama 4) or its head (ModernBERT) where it does not know better; then it is
    the innermost module that holds both the embedding and the blocks.

    Args:
        model: any `PreTrainedModel` for causal language modelling.
        config: its text config.

    Raises:
        ValueError: the model has no list of decoder blocks that can be found.
    """
    name, decoder = type(model).__name__, model.get_decoder()
    # LongCat counts two attentions a block in `num_hidden_layers`.
    counts = [n for n in (config.num_hidden_layers, getattr(config, "num_layers", None)) if n]
    lists = [m for n in counts for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n]
    inside = [m for m in lists if m in set(decoder.modules())] or lists
    if not inside:
        raise ValueError(f"{name}: no list of {counts[0]} decoder blocks found; this judge cannot be read")
    blocks = max(inside, key=lambda m: sum(p.numel() for p in m.parameters()))
    if decoder is model or blocks not in set(decoder.modules()) or compat.holds_a_decoder(decoder, blocks):
        inputs = model.get_input_embeddings()
        around = [m for m in model.modules() if m is not model and {blocks, inputs} <= set(m.modules())]
        decoder = min(around, key=lambda m: len(list(m.modules())), default=None)
        if decoder is None:
            raise ValueError(f"{name}: no decoder apart from its head; this judge cannot be read")
    return decoder, blocks


@torch.no_grad()
def refuse_if_not_causal(name: str, decoder: nn.Module, vocab: int, device: torch.device) -> None:
    """Changing a token must leave every state before it as it is.

    Args:
        name: of the model, for the message.
        decoder: gives `last_hidden_state` for `input_ids`.
        vocab: number of token ids.
        device: where token ids go.

    Raises:
        ValueError: the decoder wants more than token ids, or looks ahead (BERT, XLNet), so that a label's probability
            would not be that of the next token.
    """
    row = [(7 * i + 3) % vocab for i in range(12)]
    ids = torch.tensor([row, [*row[:-1], (row[-1] + 1) % vocab]], device=device)
    try:
        states: Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    except (AttributeError, IndexError, TypeError, ValueError) as err:
        raise ValueError(
            f"{name}: its decoder does not read token ids alone ({err}); this judge cannot be read"
        ) from err
    moved = float((states[0] - states[1]).float().norm() / states[0].float().norm().clamp(min=1e-20))
    if moved > (1e-4 if states.dtype == torch.float32 else 1e-2):
        raise ValueError(
            f"{name} is not a causal language model as configured: a later token changes earlier states by "
            f"{moved:.1e} (relative), so it cannot judge; take a decoder model, or set what makes it one, such as "
            "is_decoder=True"
        )


def longest_text(decoder: nn.Module, config: PretrainedConfig) -> int:
    """Most tokens that a model can read: its config's word, and no more than it has learned positions for.

    Args:
        decoder: of the model.
        config: its text config; some say None or -1 for "any length" (XLNet, state-space models).
    """
    most = getattr(config, "max_position_embeddings", None)
    limits = [int(most * stretch(config)) if isinstance(most, int) and most > 0 else 1 << 30]
    for name, module in decoder.named_modules():
        own = name.rsplit(".", 1)[-1]
        if "position" in own and "rel" not in own and isinstance(module, nn.Embedding):
            # RoBERTa counts from the place after its padding token, OPT and BART from `offset`.
            padding = -1 if module.padding_idx is None else module.padding_idx
            limits.append(module.num_embeddings - max(padding + 1, int(getattr(module, "offset", 0))))
    return min(limits)
