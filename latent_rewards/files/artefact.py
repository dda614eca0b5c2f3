"""Small fitted things on disk: a description, NAME.json, sealed over its tensors, NAME.safetensors; no pickle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latent_rewards.files.atomic import replacing, write_text
from latent_rewards.files.seal import sealed, unsealed
from latent_rewards.files.types import JsonObject

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def save(
    folder: str | Path, name: str, about: Mapping[str, object], tensors: Mapping[str, Tensor | np.ndarray]
) -> Path:
    """Write both files.

    Args:
        folder: made when it is missing.
        name: of the files, without suffix.
        about: plain data; format 1 is added.
        tensors: of torch or numpy.

    Returns:
        The folder.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / f"{name}.safetensors") as temp:
        save_file({k: torch.as_tensor(v).contiguous() for k, v in tensors.items()}, temp)
    raw = sealed({"format": 1, **about}, path / f"{name}.safetensors")
    write_text(path / f"{name}.json", json.dumps(raw, indent=1))
    return path


@contextlib.contextmanager
def opened(folder: str | Path, name: str, what: str) -> Iterator[tuple[JsonObject, dict[str, Tensor]]]:
    """Description and tensors that `save` wrote, to be built from in the block, whose errors name the folder.

    The checksum is compared at the end of the block, since what is wrong with a value says more.

    Args:
        folder: where they are.
        name: of the files, without suffix.
        what: "a probe", for messages.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: corrupt, cut short, edited or foreign files, or a block that cannot be built from them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, tensors = Path(folder), Path(folder) / f"{name}.safetensors"
    for file in (path / f"{name}.json", tensors):
        if not file.is_file():
            raise FileNotFoundError(f"{path} holds no {what.removeprefix('a ')}: {file.name} is missing")
    try:
        raw = json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        if found != 1:
            raise ValueError(f"expected a description of format 1, got {found!r}")
        try:
            loaded = load_file(tensors)
        except (SafetensorError, UnicodeDecodeError) as err:
            raise ValueError(f"{tensors.name} is corrupt or cut short ({err}); copy it again") from err
        yield {k: v for k, v in raw.items() if k not in ("format", "sha256")}, loaded
        unsealed(raw, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError, RecursionError) as err:
        raise ValueError(f"{path}: not {what}: {err}") from err
