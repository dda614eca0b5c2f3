"""Hidden states of judged texts on disk: collected in one forward per batch, in safetensors shards, resumable."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latent_rewards.files.atomic import replacing, write_text
from latent_rewards.files.seal import sealed, unsealed
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.fingerprint import changed, facts_of, layout_of
from latent_rewards.judge.hf import Judge, Lens, Need, Reading, Request
from latent_rewards.judge.prompts import JudgePrompt, to_text
from latent_rewards.probes.examples import Example, fingerprint, prompt_group

logger = logging.getLogger(__name__)

_META = "features.json"


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


def collect_features(
    judge: Judge,
    prompt: JudgePrompt,
    examples: Sequence[Example],
    layers: Iterable[int],
    *,
    folder: str | Path,
    lens: Lens = "normed",
    layer_logits: Iterable[Lens] = (),
    dtype: str = "bfloat16",
    shard_rows: int = 512,
    patience: float = 3600,
) -> Features:
    """Read every example once, all layers in one forward, and keep the states in `folder`.

    Shards that are already there are not read again. Under `accelerate launch` each rank reads its share of the shards
    (RANK of WORLD_SIZE) into the same folder, then waits until the others' are there. Memory holds one shard.

    Args:
        judge: the judge.
        prompt: the judge prompt; if it has labels, their log-probabilities are kept too.
        examples: N examples.
        layers: layers 1..L; negative counts from the end.
        folder: where the shards go.
        lens: "normed" (can be exported) or "raw".
        layer_logits: lenses of label logits of every layer to keep, for the tuning of layer weights.
        dtype: in which states are kept.
        shard_rows: rows in one shard.
        patience: seconds without a new shard after which the other ranks count as lost.

    Raises:
        ValueError: the folder holds features of something else (names both), or a state is not finite in `dtype`.
        TimeoutError: the other ranks stopped writing.
    """
    depth = judge.n_layers
    wanted = sorted({depth + 1 + layer if layer < 0 else layer for layer in layers})
    info = FeatureInfo(
        judge.name, str(judge.revision), prompt.name, prompt.hash, tuple(wanted), lens,
        tuple(sorted(layer_logits)), dtype, fingerprint(examples), len(examples), shard_rows,
        tuple(sorted({e.source for e in examples})), {**facts_of(judge), "layout": layout_of(judge, prompt)},
    )  # fmt: skip
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if (path / _META).is_file():
        _same(_read_info(path), info, path)
    else:
        write_text(path / _META, json.dumps(sealed(dataclasses.asdict(info)), indent=1))
    need = Need(prompt.labels is not None, frozenset(wanted), lens, frozenset(info.layer_logits))  # type: ignore[arg-type]
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    shards = _shards(path, info)
    for k in range(rank, len(shards), world):
        if not shards[k].is_file():
            _collect_shard(judge, prompt, examples[k * shard_rows : (k + 1) * shard_rows], need, info, shards[k])
            logger.info("features: shard %d of %d", k + 1, len(shards))
    if world > 1:
        _wait_for(shards, patience)
    return Features(path)


def _shards(folder: Path, info: FeatureInfo) -> list[Path]:
    return [folder / f"shard-{k:05d}.safetensors" for k in range(-(-info.rows // info.shard_rows))]


def _wait_for(shards: Sequence[Path], patience: float) -> None:
    """Until all shards are there; the files are the only thing ranks need to share."""
    missing, since = len(shards), time.monotonic()
    while missing:
        now = sum(not s.is_file() for s in shards)
        if now < missing:
            missing, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise TimeoutError(
                f"{shards[0].parent}: {missing} of {len(shards)} shards are missing and no other rank has written one "
                f"for {patience:g} s; run again to go on"
            )
        else:
            time.sleep(0.05)


def _collect_shard(
    judge: Judge, prompt: JudgePrompt, rows: Sequence[Example], need: Need, info: FeatureInfo, shard: Path
) -> None:
    slots = [{"prompt": e.prompt, "completion": e.completion, **e.columns} for e in rows]
    (reading,) = judge.read([Request(prompt, slots, need)])
    write_shard(shard, reading, rows, info)


def write_shard(shard: Path, reading: Reading, rows: Sequence[Example], info: FeatureInfo) -> None:
    """One shard, atomically."""
    tensors: dict[str, Tensor] = {
        "group": torch.tensor([prompt_group(e.prompt) for e in rows]),
        "pair": torch.tensor([e.pair for e in rows]),
        "label": torch.tensor([e.label for e in rows], dtype=torch.float64),
        "length": torch.tensor([len(to_text(e.completion)) for e in rows]),
        "source": torch.tensor([info.sources.index(e.source) for e in rows]),
        "read": torch.tensor([r is None for r in reading.reasons]),
    }
    for layer in info.layers:
        state = reading.hidden[layer].to(getattr(torch, info.dtype))
        if not torch.isfinite(state[tensors["read"]]).all():
            raise ValueError(f"states of layer {layer} are not finite in {info.dtype}; use dtype='float32'")
        tensors[f"layer_{layer}"] = state.contiguous()
    if reading.label_logprobs is not None:
        tensors["label_logprobs"] = reading.label_logprobs.contiguous()
    for lens in info.layer_logits:
        tensors[f"layer_logits_{lens}"] = reading.layer_label_logits[lens].contiguous()
    facts = {"fingerprint": info.fingerprint, "prompt_hash": info.prompt_hash}
    facts |= {f"crc32:{name}": _checksum(tensor) for name, tensor in tensors.items()}
    try:
        with replacing(shard) as temp:
            save_file(tensors, temp, metadata=facts)
    except (OSError, SafetensorError) as err:
        raise OSError(f"cannot write {shard}: {err}; shards before it are kept, so make room and run again") from err


def _checksum(tensor: Tensor) -> str:
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
        if not (self.folder / _META).is_file():
            raise FileNotFoundError(f"no {_META} in {self.folder}: collect features there first")
        self.info = _read_info(self.folder)
        self._shards = _shards(self.folder, self.info)
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
                    raise ValueError(f"{shard} belongs to another data set than {self.folder / _META}")
                if name not in file.keys():
                    raise ValueError(f"{shard} has no column {name!r}; it has {sorted(file.keys())}")
                part = file.get_tensor(name)
                if _checksum(part) != (file.metadata() or {}).get(f"crc32:{name}", _checksum(part)):
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
        _same(self.info, dataclasses.replace(self.info, **expected), self.folder)


def _same(found: FeatureInfo, expected: FeatureInfo, folder: Path) -> None:
    names = [f.name for f in dataclasses.fields(FeatureInfo) if f.name != "reader"]
    pairs = [(n, getattr(found, n), getattr(expected, n)) for n in names]
    if wrong := [f"{n} {a!r}, but {b!r} was expected" for n, a, b in pairs if a != b]:
        raise ValueError(f"{folder} holds features with " + "; ".join(wrong))
    if found.reader and (differ := changed(found.reader, expected.reader)):
        raise ValueError(f"{folder} holds features of a judge that reads otherwise; changed: " + "; ".join(differ))


def _read_info(folder: Path) -> FeatureInfo:
    try:
        raw = unsealed(json.loads((folder / _META).read_text(encoding="utf-8")))
        fields: JsonObject = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        info = FeatureInfo(**fields)
        if not all(type(n) is int and n > 0 for n in (info.rows, info.shard_rows)):
            raise ValueError(f"rows {info.rows!r} and shard_rows {info.shard_rows!r} must be whole numbers above 0")
        return info
    except (ValueError, TypeError, AttributeError, RecursionError) as err:
        raise ValueError(f"{folder / _META} is not a description of features: {err}") from err
