"""Which prompts a probe was trained on, in few numbers, so that nobody is misled by figures on its own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from latent_rewards.files.types import JsonObject, Prompt
from latent_rewards.probes.examples import prompt_group

MOST = 2000


def sketch(groups: np.ndarray) -> JsonObject:
    """The smallest hashes of the prompts, all of them where there are at most `MOST`.

    Args:
        groups: (N,) prompt groups, which are hashes.

    Source: Broder 1997, bottom-k sketches: among prompts whose hash is small enough, membership is exact.
    """
    known = np.unique(groups)
    return {"n": len(known), "lowest": [f"{int(g):x}" for g in known[:MOST]]}


def share_seen(prompts: Sequence[Prompt], kept: Mapping[str, object] | None) -> float:
    """Share of prompts that are among those of a sketch, estimated from those whose hash it could hold.

    0 where there is no sketch (a probe of an earlier version) or no prompt that it could hold.
    """
    lowest = (kept or {}).get("lowest")
    if not isinstance(lowest, list) or not lowest:
        return 0.0
    known = {int(str(h), 16) for h in lowest}
    whole = len(known) == (kept or {}).get("n")
    asked = [g for g in map(prompt_group, prompts) if whole or g <= max(known)]
    return float(np.mean([g in known for g in asked])) if asked else 0.0
