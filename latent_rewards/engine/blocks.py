"""The forward: hidden states of a frozen causal LM at chosen positions, and its head on a few rows."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latent_rewards.compat import keep_softcap
from latent_rewards.engine.decoder import embedding, find_decoder, longest_text, refuse_if_not_causal
from latent_rewards.engine.head import Head
from latent_rewards.engine.pretrained import check_model
from latent_rewards.engine.rope_switch import RopeSwitch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm", "layer_norm")


@dataclass
class States:
    """States at P positions, in the order asked for.

    Attributes:
        final: (P, D) output of the whole decoder, after its final norm; None when no readout needs it.
        inner: layer l -> (P, D) residual stream after block l (0 is the embedding), before any final norm.
    """

    final: Tensor | None = None
    inner: dict[int, Tensor] = field(default_factory=dict)


class Blocks:
    """What the forward needs to know of a Hugging Face causal LM: decoder, blocks, final norm, head.

    Args:
        model: any `PreTrainedModel` for causal language modelling.

    Raises:
        ValueError: no causal LM, an adapter that cannot be read, or no list of decoder blocks that can be found.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        check_model(model)
        keep_softcap(model)
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.decoder, self.layers = find_decoder(model, self.config)
        self.rope = RopeSwitch(self.decoder, self.config)
        norms = [getattr(self.decoder, name) for name in _NORM_NAMES if hasattr(self.decoder, name)]
        self.norm: nn.Module = norms[0] if norms else nn.Identity()
        self.head = Head(model, self.decoder, self.config)

    @property
    def plain_head(self) -> bool:
        """Whether the head is read by its rows, without (P, V) logits."""
        return self.head.why_own is None

    @property
    def head_kind(self) -> str:
        """How the head is read, in a line."""
        return self.head.kind

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks, L."""
        return len(self.layers)

    @functools.cached_property
    def longest_text(self) -> int:
        """Most tokens that the model can read."""
        return longest_text(self.decoder, self.config)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return embedding(self.model).device

    def decode(self, **batch: Tensor) -> Tensor:
        """(B, T, D) the decoder's output, whatever was read before."""
        self.rope.reset()
        return self.decoder(**batch, use_cache=False).last_hidden_state

    @torch.no_grad()
    def self_check(self) -> None:
        """Small forwards: no NaN, no sharded weights, no look ahead, and our head equals the model's own.

        Raises:
            ValueError: weights are missing, sharded or NaN, or the model is not causal; the message says what to do.
        """
        empty = [n for n, p in self.model.named_parameters() if p.numel() == 0 or hasattr(p, "ds_id")]
        if empty:
            raise ValueError(
                f"judge weights are sharded or empty ({empty[0]} and {len(empty) - 1} more), as happens to a model "
                "loaded inside a ZeRO-3 run; load the judge before the trainer, or use a judge server"
            )
        refuse_if_not_causal(type(self.model).__name__, self.decoder, self.config.vocab_size, self.device)
        ids = torch.arange(1, 5, device=self.device)[None] % self.config.vocab_size
        out = self.model(input_ids=ids, output_hidden_states=True, use_cache=False)
        logits = out.logits[0].float()
        if not torch.isfinite(logits).all():
            raise ValueError(_not_finite(self.model))
        last = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        with torch.autocast(self.device.type, enabled=False):
            self.head.choose(last, logits)

    def head_logits(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """Logits of final (normed) states, float32.

        Args:
            states: (P, D) states after the final norm.
            ids: vocabulary rows wanted; None is all of them.

        Returns:
            (P, len(ids)) or (P, V).
        """
        return self.head.logits(states, ids)

    def log_normaliser(self, states: Tensor, *, chunk: int = 16_384) -> Tensor:
        """(P,) log-sum-exp over the whole vocabulary, float32, without a (P, V) tensor in float32 at once."""
        return self.head.log_normaliser(states, chunk=chunk)

    def token_log_probs(self, states: Tensor, tokens: Sequence[int]) -> Tensor:
        """(P,) ln p(tokens[i]) at final (normed) state i, float32; memory does not grow with P x V."""
        return self.head.log_probs(states, tokens)


@contextlib.contextmanager
def catch_inner(blocks: Blocks, layers: Sequence[int], pick: Callable[[Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """While active, `pick(hidden)` of the residual stream after each wanted block lands in the yielded dict."""
    caught: dict[int, Tensor] = {}

    def after(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            caught[layer] = pick(output[0] if isinstance(output, tuple) else output)

        return hook

    def before(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        caught[0] = pick(args[0] if args else kwargs["hidden_states"])

    handles = [blocks.layers[i - 1].register_forward_hook(after(i)) for i in layers if i > 0]
    if 0 in layers:
        handles.append(blocks.layers[0].register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


class Stop(Exception):
    """Leaves the decoder once the deepest wanted layer has run."""


@contextlib.contextmanager
def stop_after(blocks: Blocks, layer: int) -> Iterator[None]:
    """While active, the decoder raises `Stop` after so many blocks; hooks that were there before have run."""

    def stop(*_: object) -> None:
        raise Stop

    module: nn.Module = blocks.layers[max(layer, 1) - 1]
    handle = module.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _not_finite(model: PreTrainedModel) -> str:
    """What to say of a judge whose logits are not numbers."""
    dtype = next(model.parameters()).dtype
    way_out = (
        "float16 ends at 65504, which many models of bfloat16 exceed: load it with dtype='bfloat16' or 'float32'"
        if dtype == torch.float16
        else "its weights hold NaN or values that overflow; compare the files with their source, or try 'float32'"
    )
    return f"the judge gives NaN or infinite logits on a short text, in {str(dtype).removeprefix('torch.')}; {way_out}"


@torch.no_grad()
def reference_states(
    blocks: Blocks,
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] = (),
) -> tuple[Tensor, States]:
    """The plain one-by-one forward with the stock interface, for tests and measurements.

    Returns:
        (P, V) the model's own logits in float32, and the states. The last inner layer comes already normed from
        `output_hidden_states`, so only layers 0..L-1 are given as inner states.
    """
    logits, final, inner = [], [], {layer: [] for layer in layers if layer < blocks.n_layers}  # type: ignore[var-annotated]
    for ids, at in zip(sequences, positions, strict=True):
        batch = torch.tensor([list(ids)], device=blocks.device)
        blocks.rope.reset()
        out = blocks.model(input_ids=batch, output_hidden_states=True, use_cache=False)
        for p in at:
            logits.append(out.logits[0, p].float())
            final.append(out.hidden_states[-1][0, p])
            for layer, rows in inner.items():
                rows.append(out.hidden_states[layer][0, p])
    return torch.stack(logits), States(torch.stack(final), {k: torch.stack(v) for k, v in inner.items()})
