"""What a forward may take of a device's memory, and giving it back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch

from latent_rewards.engine.blocks import Blocks


def default_batch_tokens(blocks: Blocks) -> int:
    """2048 on CPU, where more only costs memory; on an accelerator what fits a quarter of its free memory."""
    if blocks.device.type != "cuda":
        return 2048
    free, _ = torch.cuda.mem_get_info(blocks.device)
    config = blocks.config
    width = 6 * config.hidden_size + 4 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    return int(min(65_536, max(2048, free / 4 / (2 * width))))


def give_back(device: torch.device) -> None:
    """Let glibc return what a call has freed to the system; otherwise its heap stays as large as it ever was."""
    if _malloc_trim is not None and device.type == "cpu":
        _malloc_trim(0)


def _find_malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):  # another C library
        return None


_malloc_trim = _find_malloc_trim()
