"""Reading a judge's checkpoint tensor by tensor and writing another one, never more than one shard in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latent_rewards.compat import ONE_LOAD
from latent_rewards.engine import loading
from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.pretrained import auto_class
from latent_rewards.judge.hf import HFJudge


class Source:
    """The weights of a judge: its checkpoint on disk, or the loaded model where there is none.

    A judge with an adapter, or one built around a loaded model, is read from memory.
    """

    def __init__(self, judge: HFJudge) -> None:
        self._files: dict[str, Path] = {}
        self._loaded: Mapping[str, Tensor] = {}
        in_memory = held_in_memory(judge)
        if in_memory or judge._blocks is not None:
            model = judge.blocks.model
            self.revision = judge.revision
        if in_memory:
            if getattr(model, "peft_config", None):
                raise ValueError(
                    f"{judge!r} has an adapter that is not merged, so its weights are not those of a plain checkpoint; "
                    "give model.merge_and_unload()"
                )
            self._loaded = model.state_dict()
        else:
            options = judge._load_options
            folder = _checkpoint_folder(judge.model_name, options["revision"])
            self._files = _tensor_files(folder)
            model = _skeleton(folder, trust_remote_code=bool(options["trust_remote_code"]))
            if judge._blocks is None:
                self.revision = str(options["revision"] or "")
        self.config = model.config
        blocks = Blocks(model)
        self.n_layers = blocks.n_layers
        names = {id(m): name for name, m in model.named_modules()}
        self._layers = re.compile(re.escape(names[id(blocks.layers)]) + r"\.(\d+)\.")
        self._head = names[id(model.get_output_embeddings())]
        self._embedding = names[id(model.get_input_embeddings())]

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files or self._loaded)

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        if name not in self._files:
            return self._loaded[name].detach().cpu()
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def decoder_tensors(self, layers: int) -> Iterator[tuple[str, Tensor]]:
        """All tensors but the LM head's and those of blocks beyond `layers`."""
        for name in self.names():
            block = self._layers.match(name)
            if name.startswith(f"{self._head}.") or (block and int(block[1]) >= layers):
                continue
            yield name, self.tensor(name)

    def head_rows(self, ids: list[int]) -> tuple[Tensor, Tensor | None]:
        """Rows of the LM head, (K, D), and its biases; the embedding's rows where they are tied."""
        own = f"{self._head}.weight"
        tied = own not in self.names() or (self._loaded and self.config.tie_word_embeddings)
        weight = self.tensor(f"{self._embedding}.weight" if tied else own)[ids]
        bias = f"{self._head}.bias"
        return weight, (self.tensor(bias)[ids] if bias in self.names() else None)


def held_in_memory(judge: HFJudge) -> bool:
    """Whether an export takes the loaded weights, since no checkpoint on disk has them: adapters and loaded models."""
    source = {k: judge._load_options[k] for k in ("revision", "adapter")}
    return judge._given is not None or loading.judge_source(judge.model_name, **source).adapter is not None


def write_shards(
    folder: Path, tensors: Iterator[tuple[str, Tensor]], extra: Mapping[str, Tensor], shard_bytes: int
) -> None:
    """Write tensors as safetensors shards of at most `shard_bytes` (or one tensor), with their index."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal size
        save_file(pending, folder / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()
        size = 0

    for name, tensor in extra.items():
        pending[name] = tensor.contiguous()
        size += tensor.numel() * tensor.element_size()
    for name, tensor in tensors:
        n = tensor.numel() * tensor.element_size()
        total += n
        if pending and size + n > shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
        size += n
    flush()
    if len(shards) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, file in enumerate(files):
        (folder / f"part-{i}.safetensors").rename(folder / file)
    where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _checkpoint_folder(model: str, revision: str | None) -> Path:
    name = loading.resolve_model(model)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def _tensor_files(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        strange = sorted(f for f in set(files.values()) if f != Path(f).name or not f.endswith(".safetensors"))
        if strange:
            raise ValueError(f"{index}: weights must be safetensors files beside it, not {strange[0]!r}")
        return {name: folder / file for name, file in files.items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        raise ValueError(f"{folder} has no safetensors weights; save the judge with save_pretrained first")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _skeleton(folder: Path, *, trust_remote_code: bool) -> Any:
    """The model without weights, to learn its names."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"), ONE_LOAD:
        return auto_class(config, str(folder)).from_config(config, trust_remote_code=trust_remote_code)
