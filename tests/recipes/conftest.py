"""What the tests of several recipes watch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def head_states() -> Iterator[list[tuple[tuple[int, ...], bool]]]:
    """Of all that goes through an LM head of a tiny model in this process: its shape, and whether it is contiguous."""
    import torch

    seen: list[tuple[tuple[int, ...], bool]] = []

    def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...], _: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features > 200:  # tiny models are narrower elsewhere
            seen.append((tuple(args[0].shape), args[0].is_contiguous()))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    yield seen
    handle.remove()
