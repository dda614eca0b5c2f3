"""Readings of a judge in one compressed file, and the tables that are made of it again without the judge."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latent_rewards import HFJudge
from latent_rewards.files.atomic import replacing
from latent_rewards.files.outputs import to_json

Arrays = dict[str, np.ndarray]
logger = logging.getLogger(__name__)


def save(path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
    """Write arrays of N rows each and what they are; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temp, temp.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)


def load(path: Path) -> tuple[dict[str, Any], Arrays]:
    """What `save` wrote."""
    with np.load(path) as found:
        arrays = {name: found[name] for name in found.files}
    return json.loads(str(arrays.pop("about"))), arrays


def load_all(paths: Sequence[Path]) -> tuple[dict[str, Any], Arrays]:
    """Several parts as one, rows in the order of `index`; their seconds and rows are added up.

    Raises:
        ValueError: no file, parts of different things, or a row that stands in two of them.
    """
    if not paths:
        raise ValueError("no file of readings")
    parts = [load(path) for path in sorted(paths)]
    same = [{k: v for k, v in about.items() if k not in ("part", "seconds", "rows")} for about, _ in parts]
    if any(about != same[0] for about in same):
        raise ValueError(f"{[p.name for p in sorted(paths)]} hold readings of different things")
    arrays = join([arrays for _, arrays in parts])
    if len(np.unique(arrays["index"])) < len(arrays["index"]):
        raise ValueError(f"{[p.name for p in sorted(paths)]} hold the same rows twice")
    order = np.argsort(arrays["index"], kind="stable")
    sums = {key: sum(about[key] for about, _ in parts) for key in ("seconds", "rows")}
    return same[0] | sums | {"parts": len(parts)}, {name: x[order] for name, x in arrays.items()}


def join(parts: Sequence[Arrays]) -> Arrays:
    """Rows of several sets of the same arrays, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def part_of(text: str) -> tuple[int, int]:
    """ "1/4" as the numbers 1 and 4: the second of four parts."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ValueError(f"a part is written 0/4 to 3/4, got {text!r}")
    return int(number), int(count)


def read_in_shards(
    args: argparse.Namespace, kind: str, rows: Sequence[Any], read: Callable[[HFJudge, list[Any], np.ndarray], Arrays]
) -> Path:
    """Read every so many-th row with the judge of a command line, and save what is there after each shard.

    Args:
        args: of the command line: judge, dtype, batch_tokens, threads, part, root, shard.
        kind: what is read, the beginning of the file's name.
        rows: of all parts.
        read: gives the arrays of some rows and their places among all.

    Returns:
        The file.
    """
    torch.set_num_threads(args.threads)
    number, count = part_of(args.part)
    judge = HFJudge(args.judge, dtype=args.dtype, batch_tokens=args.batch_tokens)
    index = np.arange(number, len(rows), count)
    path: Path = args.root / f"{kind}-{judge.name}-{number}of{count}.npz"
    about = {"part": args.part, "of": len(rows), **circumstances(judge)}
    parts: list[Arrays] = []
    seconds = 0.0
    for start in range(0, len(index), args.shard):
        some, began = index[start : start + args.shard], time.perf_counter()
        parts.append(read(judge, [rows[i] for i in some], some))
        seconds += time.perf_counter() - began
        done = sum(len(part["index"]) for part in parts)
        save(path, about | {"seconds": seconds, "rows": done}, join(parts))
        logger.info("%s: %d of %d, %.1f s", path.name, start + len(some), len(index), seconds)
    return path


def write(out: Path, result: Mapping[str, Any], page: str) -> None:
    """A result and its page as `out` with .json and .md; the page on the screen, too."""
    out.with_name(f"{out.name}.json").write_text(to_json(result, indent=1), encoding="utf-8")
    out.with_name(f"{out.name}.md").write_text(page, encoding="utf-8")
    print(page)


def cell(value: Any) -> str:
    """A figure, or one with its interval, as tables show it."""
    if isinstance(value, (list, tuple)):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def circumstances(judge: HFJudge) -> dict[str, Any]:
    """The judge and what it ran on, for the record; loads it."""
    device = judge.blocks.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "judge": judge.name, "revision": judge.revision, "arithmetic": judge.arithmetic, "device": where,
        "torch": torch.__version__, "transformers": importlib.metadata.version("transformers"),
    }  # fmt: skip
