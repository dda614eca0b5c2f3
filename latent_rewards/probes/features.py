"""Hidden states of judged texts on disk: collected in one forward per batch, in safetensors shards, resumable."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latent_rewards.files.seal import unsealed
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.fingerprint import changed
from latent_rewards.judge.hf import Judge
from latent_rewards.judge.prompts import JudgePrompt

META = "features.json"


@dataclass(frozen=True)
class FeatureInfo:
    """What a folder of features was collected from.

    `reader` is all that changes what the judge reads: its facts, and the layout of the prompt; older folders lack it.
    """

    judge: str
    revision: str
    prompt: str
    prompt_hash: str
    layers: tuple[int, ...]
    lens: str
    layer_logits: tuple[str, ...]
    dtype: str
    fingerprint: str
    rows: int
    shard_rows: int
    sources: tuple[str, ...]
    reader: JsonObject = field(default_factory=dict)


def shard_paths(folder: Path, info: FeatureInfo) -> list[Path]:
    """Where each shard lies, or will."""
    return [folder / f"shard-{k:05d}.safetensors" for k in range(-(-info.rows // info.shard_rows))]


def checksum(tensor: Tensor) -> str:
    """CRC of a tensor's bytes, in hexadecimal."""
    return f"{zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().tobytes()):08x}"


class Features:
    """A folder of collected features; each column is read from the shards when it is asked for.

    Attributes:
        info: what they were collected from.

    Raises:
        FileNotFoundError: no features there.
        ValueError: shards are missing, cut short, or of another data set; names the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / META).is_file():
            raise FileNotFoundError(f"no {META} in {self.folder}: collect features there first")
        self.info = read_info(self.folder)
        self._shards = shard_paths(self.folder, self.info)
        missing = [s.name for s in self._shards if not s.is_file()]
        if missing:
            raise ValueError(
                f"{self.folder}: {len(missing)} of {len(self._shards)} shards are missing (first {missing[0]}); "
                "collect again"
            )

    def __len__(self) -> int:
        return self.info.rows

    def column(self, name: str) -> np.ndarray:
        """(N, ...) one column of all rows: group, pair, label, length, source, read, label_logprobs, layer_<l>, ...

        Raises:
            ValueError: unknown column, or a broken shard.
        """
        out, filled = None, 0
        for shard in self._shards:
            part = self._shard_column(shard, name)
            if out is None:  # filled in place: many small pieces would leave holes in the heap
                out = np.empty((len(self), *part.shape[1:]), dtype=part.dtype)
            out[filled : filled + len(part)] = part[: len(self) - filled]
            filled += len(part)
        if out is None or filled != len(self):
            raise ValueError(f"{self.folder} holds {filled} rows of {name!r}, not {len(self)}")
        return out

    def _shard_column(self, shard: Path, name: str) -> np.ndarray:
        try:
            with safe_open(shard, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != self.info.fingerprint:
                    raise ValueError(f"{shard} belongs to another data set than {self.folder / META}")
                if name not in file.keys():
                    raise ValueError(f"{shard} has no column {name!r}; it has {sorted(file.keys())}")
                part = file.get_tensor(name)
                if checksum(part) != (file.metadata() or {}).get(f"crc32:{name}", checksum(part)):
                    raise SafetensorError(f"column {name!r} does not fit its checksum")
        except (SafetensorError, UnicodeDecodeError) as err:
            raise ValueError(f"{shard} is corrupt or cut short ({err}); delete it and collect again") from err
        return (part.float() if part.is_floating_point() and part.dtype != torch.float64 else part).numpy()

    def states(self, layers: Sequence[int]) -> np.ndarray:
        """(N, len(layers) * D) float32, the layers side by side.

        Raises:
            ValueError: a layer was not collected.
        """
        self._check_layers(layers)
        return np.concatenate([self.column(f"layer_{layer}") for layer in layers], axis=1)

    def shard_states(self, number: int, layers: Sequence[int]) -> np.ndarray:
        """(rows of the shard, len(layers) * D) float32 of one shard; raises as `states` does."""
        self._check_layers(layers)
        return np.concatenate([self._shard_column(self._shards[number], f"layer_{n}") for n in layers], axis=1)

    @cached_property
    def width(self) -> int:
        """D, the size of a state."""
        return self.shard_states(0, self.info.layers[:1]).shape[1]

    def _check_layers(self, layers: Sequence[int]) -> None:
        lacks = sorted(set(layers) - set(self.info.layers))
        if lacks:
            raise ValueError(f"{self.folder} has layers {list(self.info.layers)}, not {lacks}")

    def check(self, judge: Judge | None = None, prompt: JudgePrompt | None = None, **expected: Any) -> None:
        """Fail if these features are of something else.

        Args:
            judge: judge they should come from.
            prompt: judge prompt they should come from.
            **expected: further fields of `FeatureInfo`, e.g. `lens="normed"` or `fingerprint=...`.

        Raises:
            ValueError: names what is there and what was expected.
        """
        if judge is not None:
            expected |= {"judge": judge.name, "revision": str(judge.revision)}
        if prompt is not None:
            expected |= {"prompt_hash": prompt.hash}
        check_same(self.info, dataclasses.replace(self.info, **expected), self.folder)


def check_same(found: FeatureInfo, expected: FeatureInfo, folder: Path) -> None:
    """Raise ValueError, with all that differs, unless a folder holds the features that are expected."""
    names = [f.name for f in dataclasses.fields(FeatureInfo) if f.name != "reader"]
    pairs = [(n, getattr(found, n), getattr(expected, n)) for n in names]
    if wrong := [f"{n} {a!r}, but {b!r} was expected" for n, a, b in pairs if a != b]:
        raise ValueError(f"{folder} holds features with " + "; ".join(wrong))
    if found.reader and (differ := changed(found.reader, expected.reader)):
        raise ValueError(f"{folder} holds features of a judge that reads otherwise; changed: " + "; ".join(differ))


def read_info(folder: Path) -> FeatureInfo:
    """What a folder was collected from; ValueError where its description is none."""
    try:
        raw = unsealed(json.loads((folder / META).read_text(encoding="utf-8")))
        fields: JsonObject = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        info = FeatureInfo(**fields)
        if not all(type(n) is int and n > 0 for n in (info.rows, info.shard_rows)):
            raise ValueError(f"rows {info.rows!r} and shard_rows {info.shard_rows!r} must be whole numbers above 0")
        return info
    except (ValueError, TypeError, AttributeError, RecursionError) as err:
        raise ValueError(f"{folder / META} is not a description of features: {err}") from err
