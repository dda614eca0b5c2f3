"""Rotary frequencies that the model picks by the longest position of a call: which texts may share one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class RopeSwitch:
    """Where a model's rotary frequencies change with the length of the text, and how to keep calls on one side.

    "longrope" (Phi-3) has two sets of frequencies, one for calls of more than `original_max_position_embeddings`
    tokens; "dynamic" (NTK) has one for every length beyond `max_position_embeddings`. transformers chooses by the
    largest position id of the *call* and, for "dynamic", keeps what it chose: whatever is read together, and before,
    would move a text's numbers. So only texts with the same `regime` are read together.

    Args:
        model: the model, or its decoder.
        config: its text config.
    """

    def __init__(self, model: nn.Module, config: PretrainedConfig) -> None:
        self._at: dict[str, set[int]] = {"longrope": set(), "dynamic": set()}
        for rope in _rope_dicts(config):
            kind = rope.get("rope_type", rope.get("type")) or "default"
            most = int(getattr(config, "max_position_embeddings", None) or 0)
            if kind in ("longrope", "su"):
                original = getattr(config, "original_max_position_embeddings", None)
                self._at["longrope"].add(int(rope.get("original_max_position_embeddings") or original or most))
            elif "dynamic" in kind:
                self._at["dynamic"].add(most)
        self._stateful = [m for m in model.modules() if hasattr(m, "max_seq_len_cached")] if self._at["dynamic"] else []

    def __bool__(self) -> bool:
        return any(self._at.values())

    def regime(self, n: int) -> int:
        """Length of the shortest text that has the frequencies of one of n tokens; 0 for those of short texts."""
        beyond = [at + 1 for at in self._at["longrope"] if n > at]
        return max([0, *beyond, *(n for at in self._at["dynamic"] if n > at)])

    def reset(self) -> None:
        """Forget what "dynamic" has kept from longer calls."""
        for module in self._stateful:
            for layer_type in _dynamic_types(module):
                prefix = f"{layer_type}_" if layer_type else ""
                inv_freq = getattr(module, f"{prefix}inv_freq", None)
                original = getattr(module, f"{prefix}original_inv_freq", None)
                if inv_freq is not None and original is not None:
                    fresh = original.to(inv_freq.device, copy=True)  # "longrope" writes into such buffers
                    module.register_buffer(f"{prefix}inv_freq", fresh, persistent=False)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    def batches(self, lengths: Sequence[int], more: int) -> Iterator[list[int]]:
        """Groups of texts that `more` generated tokens leave in each other's regime; alike in length where not so."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, n in enumerate(lengths):
            stays = self.regime(n) == self.regime(n + more)
            groups.setdefault((self.regime(n), 0 if stays else n), []).append(i)
        yield from groups.values()


def stretch(config: PretrainedConfig) -> float:
    """How many times longer than `max_position_embeddings` texts may be: what "dynamic" frequencies are there for."""
    ropes = [rope for rope in _rope_dicts(config) if "dynamic" in str(rope.get("rope_type", rope.get("type")))]
    return max([1.0, *(float(rope.get("factor") or 1.0) for rope in ropes)])


def _rope_dicts(config: PretrainedConfig) -> Iterator[dict[str, Any]]:
    """The rotary parameters of a config: one dict, or one for each type of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(config, name, None) or {}
        yield from (
            [rope] if "rope_type" in rope or "type" in rope else [r for r in rope.values() if isinstance(r, dict)]
        )


def _dynamic_types(module: nn.Module) -> list[str]:
    """Layer types of a rotary module whose frequencies are "dynamic"; one empty name where it has a single set."""
    kinds = getattr(module, "rope_type", None)
    return [name for name, kind in kinds.items() if "dynamic" in str(kind)] if isinstance(kinds, dict) else [""]
