"""Collecting features: every example read once, all layers in one forward, into shards; a stopped run goes on."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from latent_rewards.files.atomic import replacing, write_text
from latent_rewards.files.seal import sealed
from latent_rewards.judge.fingerprint import facts_of, layout_of
from latent_rewards.judge.hf import Judge, Lens, Need, Reading, Request
from latent_rewards.judge.prompts import JudgePrompt, to_text
from latent_rewards.probes.examples import Example, fingerprint, prompt_group
from latent_rewards.probes.features import META, FeatureInfo, Features, check_same, checksum, read_info, shard_paths

logger = logging.getLogger(__name__)


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
    if (path / META).is_file():
        check_same(read_info(path), info, path)
    else:
        write_text(path / META, json.dumps(sealed(dataclasses.asdict(info)), indent=1))
    need = Need(prompt.labels is not None, frozenset(wanted), lens, frozenset(info.layer_logits))  # type: ignore[arg-type]
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    shards = shard_paths(path, info)
    for k in range(rank, len(shards), world):
        if not shards[k].is_file():
            _collect_shard(judge, prompt, examples[k * shard_rows : (k + 1) * shard_rows], need, info, shards[k])
            logger.info("features: shard %d of %d", k + 1, len(shards))
    if world > 1:
        _wait_for(shards, patience)
    return Features(path)


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
    facts |= {f"crc32:{name}": checksum(tensor) for name, tensor in tensors.items()}
    try:
        with replacing(shard) as temp:
            save_file(tensors, temp, metadata=facts)
    except (OSError, SafetensorError) as err:
        raise OSError(f"cannot write {shard}: {err}; shards before it are kept, so make room and run again") from err
