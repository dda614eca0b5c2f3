"""Benchmarks: pairs, ratings and lists behind `load(name)`; one small file each, listed in `BENCHMARKS`.

A new one is a file with `KIND`, `convert(row)` and a `SOURCE` (or a function `rows()`), and a line in the table. Your
own data needs no code: `load("path/to/mine.jsonl")`, in the format of `latent_rewards.evaluation.benchmarks.local`.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from latent_rewards.evaluation.benchmarks import (
    autoj,
    biggen,
    flask,
    helpsteer,
    helpsteer2,
    hhh,
    judgebench,
    lfqa,
    local,
    mtbench,
    mtbench_ratings,
    open_ended,
    preferencebench,
    rewardbench,
    rewardbench2,
    tulu,
    ultrafeedback,
    ultrafeedback_rejected,
    vicuna,
)
from latent_rewards.evaluation.benchmarks.rows import BadRow, Benchmark, Item, Kind, collect

__all__ = ["BENCHMARKS", "BadRow", "Benchmark", "Item", "Kind", "expand", "load"]


def load(
    spec: str | Path, limit: int | None = None, *, max_chars: int | None = None, per_prompt: int | None = None
) -> Benchmark:
    """A benchmark by file, by name under $LATENT_REWARDS_DATA ("pairwise/autoj", "autoj"), or from `BENCHMARKS`.

    Args:
        spec: "hub/name@revision" takes another revision than the pinned or newest one; "name#12" at most 12 items;
            "name:aspects.coherence" rates by that field of the rows, in place of "score".
        limit: at most so many items, a fixed sample.
        max_chars: leave out items with more characters in prompt and longest response.
        per_prompt: at most so many items of one prompt.

    Raises:
        FileNotFoundError: nothing has that name; lists what there is.
        ValueError: no row can be used, or the name is ambiguous.
    """
    name, _, own = str(spec).partition("#")
    if own and not own.isdigit():
        raise ValueError(f"{spec!r}: what follows # must be a number of items")
    limits = [n for n in (limit, int(own) if own else None) if n is not None]
    return _load(name).shorter_than(max_chars).per_prompt(per_prompt).sample(min(limits, default=None))


def _load(text: str) -> Benchmark:
    before, mark, field = text.rpartition(":")
    if mark and not Path(text).exists() and (path := _file(before)) is not None:
        return local.load(path, text, gold=field)
    if text.endswith((".jsonl", ".jsonl.gz", ".parquet")) or (Path(text) / "dataset_info.json").is_file():
        return local.load(text)
    name, _, revision = text.partition("@")
    if name in BENCHMARKS:
        return _from_module(name, BENCHMARKS[name], revision or None)
    path = local.find(text)
    if path is None:
        raise FileNotFoundError(
            f"no benchmark {text!r}: give a .jsonl, .jsonl.gz or .parquet file, one of {sorted(BENCHMARKS)}, or a name "
            f"under LATENT_REWARDS_DATA ({local.names() or 'not set or empty'})"
        )
    return local.load(path, text)


def _file(text: str) -> Path | None:
    return Path(text) if Path(text).is_file() else local.find(text)


def expand(specs: Sequence[str]) -> list[str]:
    """Names with patterns filled in: "pairwise/*" stands for all such files under $LATENT_REWARDS_DATA.

    Raises:
        FileNotFoundError: a pattern fits nothing.
    """
    out: list[str] = []
    for spec in specs:
        found = [spec]
        if any(c in spec for c in "*?["):
            found = fnmatch.filter([*local.names(), *BENCHMARKS], spec) or sorted(glob.glob(spec))
        if not found:
            raise FileNotFoundError(f"no benchmark fits {spec!r}; there are {[*local.names(), *BENCHMARKS]}")
        out += found
    return list(dict.fromkeys(out))


def _from_module(name: str, module: ModuleType, revision: str | None) -> Benchmark:
    if hasattr(module, "rows"):
        return collect(name, module.rows(), kind=module.KIND, convert=module.convert, source=module.__doc__ or "")
    source = module.SOURCE.at(revision).resolved()
    return collect(name, source.rows(), kind=module.KIND, convert=module.convert, source=str(source))


BENCHMARKS: dict[str, ModuleType] = {
    "open_ended": open_ended,
    "hub/autoj": autoj,
    "hub/biggen": biggen,
    "hub/flask": flask,
    "hub/helpsteer": helpsteer,
    "hub/helpsteer2": helpsteer2,
    "hub/hhh": hhh,
    "hub/judgebench": judgebench,
    "hub/lfqa": lfqa,
    "hub/mtbench": mtbench,
    "hub/mtbench_ratings": mtbench_ratings,
    "hub/preferencebench": preferencebench,
    "hub/rewardbench": rewardbench,
    "hub/rewardbench2": rewardbench2,
    "hub/tulu": tulu,
    "hub/ultrafeedback": ultrafeedback,
    "hub/ultrafeedback_rejected": ultrafeedback_rejected,
    "hub/vicuna": vicuna,
}
