"""Float32 or bfloat16 on this processor: the judge's own layer shapes are timed once for a kind of machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from latent_rewards.engine.embedded import cache_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

Name = Literal["float32", "bfloat16"]
Timing = dict[Name, float]
Shapes = tuple[tuple[int, int], ...]

FORMAT = 1  # raised whenever the probe measures something else
_MARGIN = 1.1  # bfloat16 has to be so much faster: near a tie the exact one, and the same one on every machine
_TOKENS = 64  # of a forward of the probe
_WIDEST = 1024  # sides of a layer beyond that are cut: the rate is that of the whole layer
_SECONDS = 0.04  # in all, the first call of each layer apart
_MOST_MEMORY = 0.6  # of the machine, for weights in float32
_WAIT = 60.0  # seconds for another process that measures
_known: dict[str, Choice] = {}


@dataclass(frozen=True)
class Choice:
    """What a judge computes in, and why.

    Attributes:
        name: "float32" or "bfloat16".
        why: in a line.
    """

    name: Name
    why: str

    @property
    def dtype(self) -> torch.dtype:
        """The type of torch."""
        return torch.float32 if self.name == "float32" else torch.bfloat16


def choose(
    config: PretrainedConfig, *, quantised: bool = False, measure: Callable[[Shapes], Timing] | None = None
) -> Choice:
    """The faster arithmetic for a model on this machine's CPU, the same one each time.

    Where the processor lacks bfloat16 instructions, there is nothing to ask. Else both are timed on the shapes of one
    block; bfloat16 is taken where it is at least 1.1 times as fast, or where float32 weights would not leave room in
    memory. What was found is kept in the cache folder, by processor, version of torch, number of threads
    and shapes: processes that start together wait for the first, so ranks on one kind of machine agree. Ranks on
    different kinds may not, nor may those that cannot write the cache folder: give them a `dtype`.

    Args:
        config: of the model.
        quantised: weights are held in something else, and bfloat16 is what such layers are made for.
        measure: seconds of one block in each type, for tests.
    """
    text = config.get_text_config(decoder=True)
    shapes, weights = layer_shapes(text), _weights(text)
    if not cpu_has_bf16():
        return Choice("float32", "the processor has no instructions for bfloat16")
    if quantised or getattr(config, "quantization_config", None) is not None:
        return Choice("bfloat16", "quantised weights")
    if 4 * weights > _MOST_MEMORY * _memory():
        return Choice("bfloat16", f"some {4 * weights / 1e9:.0f} GB in float32 are too much for this machine's memory")
    key = machine() | {"shapes": [list(s) for s in shapes]}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    if digest not in _known:
        _known[digest] = faster(_kept(digest, key, shapes, measure or probe), machine())
    return _known[digest]


def faster(timing: Mapping[Name, float], where: Mapping[str, object]) -> Choice:
    """The choice that follows from seconds in each type, measured on a machine."""
    name: Name = "bfloat16" if timing["float32"] > _MARGIN * timing["bfloat16"] else "float32"
    other: Name = "float32" if name == "bfloat16" else "bfloat16"
    return Choice(
        name,
        f"a block took {1e3 * timing[name]:.2f} ms, {1e3 * timing[other]:.2f} in {other} "
        f"({where['processor']}, {where['threads']} threads, torch {where['torch']})",
    )


def machine() -> dict[str, object]:
    """What the speed of arithmetic depends on: the kind of processor, torch, and its threads."""
    return {
        "format": FORMAT, "processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


def layer_shapes(config: PretrainedConfig) -> Shapes:
    """(in, out) of the linear layers of one block, by the names that most configs use, cut to what a probe can pay."""
    width = _number(config, "hidden_size", default=1024)
    heads = _number(config, "num_attention_heads", default=16)
    head = _number(config, "head_dim", default=max(1, width // heads))
    inner = _number(config, "moe_intermediate_size", "intermediate_size", default=4 * width)
    keys = _number(config, "num_key_value_heads", default=heads) * head
    shapes = [(width, heads * head), (width, 2 * keys), (heads * head, width)]
    shapes += [(width, inner), (width, inner), (inner, width)]
    return tuple((min(a, _WIDEST), min(b, _WIDEST)) for a, b in shapes)


@torch.no_grad()
def probe(shapes: Shapes) -> Timing:
    """Seconds of one block's layers on 64 tokens in each type, the best of several turns that take turns."""
    blocks: dict[Name, list[tuple[Tensor, Tensor]]] = {
        "float32": [_layer(*s, torch.float32) for s in shapes], "bfloat16": [_layer(*s, torch.bfloat16) for s in shapes]
    }  # fmt: skip
    for block in blocks.values():
        _run(block)  # builds the kernels
    best: Timing = {name: float("inf") for name in blocks}
    started = time.perf_counter()
    turns = 0
    while turns < 3 or time.perf_counter() - started < _SECONDS:
        for name, block in blocks.items():
            before = time.perf_counter()
            _run(block)
            best[name] = min(best[name], time.perf_counter() - before)
        turns += 1
    return best


def cpu_has_bf16() -> bool:
    """Whether this processor has instructions for products of bfloat16 (AMX, or AVX-512 BF16), fast or not."""
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    wide = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool((tiles and tiles()) or (wide and wide()))


def _layer(n_in: int, n_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.full((_TOKENS, n_in), 0.5, dtype=dtype), torch.full((n_out, n_in), 0.01, dtype=dtype)


def _run(block: Sequence[tuple[Tensor, Tensor]]) -> None:
    """A block's linear layers, and what stands between them that is paid by the element."""
    for x, weight in block:
        y = torch.nn.functional.linear(x, weight)
        torch.nn.functional.silu(y).mul_(y)


def _kept(digest: str, key: Mapping[str, object], shapes: Shapes, measure: Callable[[Shapes], Timing]) -> Timing:
    """The timing of the cache folder; measured, and kept there, where it has none that can be read."""
    from filelock import FileLock, Timeout

    path = cache_folder() / "arithmetic" / f"{digest}.json"
    if (found := _read(path)) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=_WAIT):
            if (found := _read(path)) is not None:
                return found
            timing = measure(shapes)
            _write(path, {"seconds": timing, "of": key})
            return timing
    except (OSError, Timeout) as err:
        logger.info("the arithmetic is measured anew by each process: %s cannot be written (%s)", path, err)
        return measure(shapes)


def _read(path: Path) -> Timing | None:
    """A kept timing; None where there is none, or no two positive numbers in it."""
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        timing: Timing = {"float32": float(seconds["float32"]), "bfloat16": float(seconds["bfloat16"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return timing if all(0 < t < float("inf") for t in timing.values()) else None


def _write(path: Path, record: Mapping[str, object]) -> None:
    """Whole or not at all."""
    handle, temp = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        os.replace(temp, path)
    finally:
        Path(temp).unlink(missing_ok=True)


def _weights(config: PretrainedConfig) -> int:
    """Weights of a model, roughly, experts included."""
    width = _number(config, "hidden_size", default=1024)
    inner = _number(config, "intermediate_size", default=4 * width)
    experts = _number(config, "num_local_experts", "num_experts", "n_routed_experts", default=0)
    if experts:
        inner = experts * _number(config, "moe_intermediate_size", "intermediate_size", default=inner)
    block = 3 * width * inner + 4 * width * width
    return _number(config, "num_hidden_layers", default=12) * block + 2 * width * _number(
        config, "vocab_size", default=32_000
    )


def _number(config: PretrainedConfig, *names: str, default: int) -> int:
    """The first whole number above 0 that a config has under one of the names; lists (one a block): the first's."""
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int) and value > 0:
            return value
    return default


def _memory() -> float:
    """Bytes of this machine."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _processor() -> str:
    """The processor's model, in its maker's words and numbers."""
    return " ".join(_cpuinfo()) or f"{platform.machine()} {platform.processor()}".strip()


def _cpuinfo() -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = (part.strip() for part in line.partition(":"))
        if name in ("vendor_id", "cpu family", "model", "model name", "stepping"):
            yield value
