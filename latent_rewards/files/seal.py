"""A checksum over a saved description and its tensors, so that damage on disk is an error and never another number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from latent_rewards.files.outputs import to_json
from latent_rewards.files.types import JsonObject

_KEY = "sha256"


def sealed(raw: Mapping[str, object], tensors: Path | None = None) -> JsonObject:
    """The description with the checksum of itself and of the tensor file beside it."""
    plain = json.loads(to_json(dict(raw)))
    return {**plain, _KEY: _digest(plain, tensors)}


def unsealed(raw: Mapping[str, object], tensors: Path | None = None) -> JsonObject:
    """The description without its checksum, which is compared; descriptions of older versions have none.

    Raises:
        ValueError: something was changed or damaged after it was saved.
    """
    plain = {k: v for k, v in raw.items() if k != _KEY}
    if _KEY in raw and raw[_KEY] != _digest(plain, tensors):
        raise ValueError(
            "the checksum does not fit: it was damaged or edited after it was saved; copy it again, or save it again"
        )
    return plain


def _digest(raw: Mapping[str, object], tensors: Path | None) -> str:
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode())
    if tensors is not None:
        digest.update(tensors.read_bytes())
    return digest.hexdigest()
