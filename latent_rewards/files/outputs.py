"""Scored rows into JSONL, Parquet or a `datasets` folder; the output appears whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latent_rewards.files.atomic import publish, publish_folder, write_text
from latent_rewards.files.sources import Chunk, InputError, Source, format_of, need_pyarrow, open_binary
from latent_rewards.files.types import Row

if TYPE_CHECKING:
    import pyarrow

_ROW_GROUP = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")

Scores = dict[str, list[float | None]]
Write = Callable[[Chunk, Scores], None]


def to_json(value: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON that every reader takes: null for NaN and infinity, at any depth; what JSON lacks becomes text.

    Lone surrogates, which no UTF-8 can carry, are written as escapes, and then all that is not ASCII is.
    """
    dumps = functools.partial(json.dumps, indent=indent, sort_keys=sort_keys, default=_plain, allow_nan=False)
    try:
        text = dumps(value, ensure_ascii=False)
    except ValueError:
        value = _finite(value)
        text = dumps(value, ensure_ascii=False)
    return text if not _SURROGATE.search(text) else dumps(value)


def write_json(path: Path, value: object) -> None:
    """Write a value as `to_json` has it; the file is there as a whole or not at all."""
    write_text(path, to_json(value, indent=1) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return _finite(value.tolist())
    return str(value)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k if not isinstance(k, float) or math.isfinite(k) else str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Raises:
        InputError: it exists and `overwrite` is off, it is a folder but no data set, or its folder does not exist.
    """
    kind = format_of(path)
    if not path.parent.is_dir():
        raise InputError(f"the output's folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the output's folder {path.parent} cannot be written to")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another output, or replace it with --overwrite")
    if path.is_dir() and (kind != "folder" or not (path / "state.json").is_file()):
        raise InputError(f"{path} is a folder but not a saved data set; it will not be replaced")
    if path.exists() and not path.is_dir() and (kind == "folder" or not path.is_file()):
        raise InputError(f"{path} is in the way: not a {'folder' if kind == 'folder' else 'plain file'}")


@contextlib.contextmanager
def open_output(path: Path, source: Source, names: list[str]) -> Iterator[Write]:
    """A function that appends scored chunks; `path` appears, or is replaced, only when the block ends well.

    Args:
        path: output, of a format that its suffix says (`format_of`).
        source: where the chunks come from; decides the types of a columnar output.
        names: score columns, float64.

    Raises:
        InputError: rows whose types do not fit a columnar output, raised before the block starts; no room or no right
            to write, or an input that can no longer be read.
    """
    kind, temp = format_of(path), None
    try:
        temp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        target = temp / path.name if kind != "folder" else temp / "rows.parquet"
        with _jsonl_writer(target) if kind == "jsonl" else _parquet_writer(target, source, names) as write:
            yield write
        if kind == "folder":
            publish_folder(_save_folder(target, source, names, temp), path, temp / "old")
        else:
            publish(target, path)
    except (OSError, EOFError, zlib.error) as err:
        raise InputError(f"{path} was not written, and what was there before is as it was: {err}") from err
    finally:
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)


@contextlib.contextmanager
def _jsonl_writer(path: Path) -> Iterator[Write]:
    with open_binary(path, "wb") as file:

        def write(chunk: Chunk, scores: Scores) -> None:
            for i, row in enumerate(chunk.rows):
                line = to_json({**row, **{name: column[i] for name, column in scores.items()}})
                file.write(line.encode() + b"\n")

        yield write


@contextlib.contextmanager
def _parquet_writer(path: Path, source: Source, names: list[str]) -> Iterator[Write]:
    pa, pq = need_pyarrow()
    schema = source.schema if source.schema is not None else infer_schema(source)
    inner, full = schema, schema
    for name in names:
        full = full.append(pa.field(name, pa.float64()))
    full = full.with_metadata({k: v for k, v in (schema.metadata or {}).items() if k != b"huggingface"})
    pending: list[pyarrow.Table] = []
    try:
        writer = pq.ParquetWriter(path, full)
    except pa.ArrowException as err:
        raise InputError(f"these rows do not fit Parquet ({err}); write JSONL instead") from err
    with writer:

        def flush() -> None:
            if pending:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()

        def write(chunk: Chunk, scores: Scores) -> None:
            table = chunk.table if chunk.table is not None else _table(chunk.rows, inner)
            for name in names:
                table = table.append_column(name, pa.array(scores[name], pa.float64()))
            pending.append(table.cast(full))
            if sum(map(len, pending)) >= _ROW_GROUP:
                flush()

        yield write
        flush()


def infer_schema(source: Source) -> pyarrow.Schema:
    """`pyarrow.Schema` that holds every row of a JSONL source; reads it once, in chunks.

    Raises:
        InputError: a column holds values of types that no Arrow type holds together.
    """
    pa, _ = need_pyarrow()
    schema = pa.schema([])
    for chunk in source.chunks(_ROW_GROUP):
        for name in dict.fromkeys(key for row in chunk.rows for key in row):
            try:
                found = pa.schema([(name, pa.array([row.get(name) for row in chunk.rows]).type)])
                schema = pa.unify_schemas([schema, found], promote_options="permissive")
            except (pa.ArrowException, UnicodeEncodeError, OverflowError) as err:
                raise InputError(
                    f"column {name!r} does not fit a column of one type ({err}); write JSONL instead"
                ) from err
    return schema


def _table(rows: list[Row], schema: pyarrow.Schema) -> pyarrow.Table:
    pa, _ = need_pyarrow()
    return pa.table([pa.array([r.get(f.name) for r in rows], f.type) for f in schema], schema=schema)


def _save_folder(parquet: Path, source: Source, names: list[str], temp: Path) -> Path:
    import datasets

    features = None
    if source.features is not None:
        features = datasets.Features({**source.features, **{n: datasets.Value("float64") for n in names}})
    data = datasets.Dataset.from_parquet(str(parquet), features=features, cache_dir=str(temp / "cache"))
    data.save_to_disk(str(temp / "folder"))
    return temp / "folder"
