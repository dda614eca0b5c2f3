"""How completions are drawn, and what draws them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from latent_rewards.files.types import JsonObject, Prompt, as_messages

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        n: completions per prompt.
        temperature: 0 is greedy, where all n are the same.
        top_p: smallest set of tokens that holds this share of the probability.
        top_k: most probable tokens only; 0 takes all.
        max_new_tokens: longest completion, tokens.
        seed: with a prompt and its key it decides the draws, on one backend and one kind of machine.
    """

    n: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.max_new_tokens < 1:
            raise ValueError(f"need n >= 1 and max_new_tokens >= 1, got {self.n} and {self.max_new_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "need temperature >= 0, top_p in (0, 1] and top_k >= 0, got "
                f"{self.temperature}, {self.top_p} and {self.top_k}"
            )

    def seed_of(self, key: str) -> int:
        """A 31-bit seed for the prompt of this key."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{key}".encode()).digest()[:4], "little") >> 1


class Generator(Protocol):
    """Draws N completions per prompt."""

    sampling: Sampling

    @property
    def facts(self) -> JsonObject:
        """What the completions depend on, as plain data, for manifests; loads the model where it must."""
        ...

    def generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str] | None]:
        """N completions of each of B prompts, None for one that the model cannot take.

        `keys` (B, distinct) name the prompts and enter their seeds.
        """
        ...


def plain_text(prompt: Prompt) -> str:
    """A prompt for a model without a chat template: its contents, one below the other."""
    return prompt if isinstance(prompt, str) else "\n\n".join(str(m["content"]) for m in as_messages(prompt))
