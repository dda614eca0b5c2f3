"""When two rows have the same prompt."""

from __future__ import annotations

import hashlib
import json


def prompt_key(prompt: object) -> str:
    """Equal for prompts, text or messages, of equal content.

    What must keep texts apart that differ in case or white space alone, as a split for training does, takes
    `latent_rewards.probes.examples.prompt_group`.
    """
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()[:16]
