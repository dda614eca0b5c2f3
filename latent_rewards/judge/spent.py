"""Where a judge's time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass
class Spent:
    """Seconds of wall time so far, loading and what was remembered apart.

    Attributes:
        encoding: from rows to tokens.
        forward: of the model.
        readout: from states to label probabilities and what else was asked for.
    """

    encoding: float = 0.0
    forward: float = 0.0
    readout: float = 0.0

    @contextlib.contextmanager
    def on(self, what: Literal["encoding", "forward", "readout"], device: torch.device | None = None) -> Iterator[None]:
        """Count what runs inside, on an accelerator until it has done so."""
        began = time.perf_counter()
        try:
            yield
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - began)

    @property
    def total(self) -> float:
        """All of it."""
        return self.encoding + self.forward + self.readout

    def __str__(self) -> str:
        parts = {"encoding": self.encoding, "forward": self.forward, "readout": self.readout}
        shares = (f"{name} {s:.2f} s ({s / (self.total or 1):.0%})" for name, s in parts.items())
        return ", ".join(shares)
