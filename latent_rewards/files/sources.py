"""Rows of JSONL and Parquet files and of `datasets` data sets, streamed in chunks."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, Literal

from latent_rewards.files.types import NumberedRow, Row

if TYPE_CHECKING:
    import datasets
    import pyarrow

RAW = "_raw"
_JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_PEEK = 100

Format = Literal["jsonl", "parquet", "folder"]


class InputError(ValueError):
    """What the user gave does not work; the message says what to do."""


class RowError(ValueError):
    """One row of a batch cannot be used.

    Attributes:
        row: its number in the batch, from 0.
        reason: what is wrong with it.
    """

    def __init__(self, row: int, reason: object) -> None:
        super().__init__(row, str(reason))
        self.row, self.reason = row, str(reason)

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


@dataclass
class Chunk:
    """Some rows of a source.

    Attributes:
        rows: n mappings of column to value; a line that is no JSON object is `{"_raw": line}`.
        faults: n reasons, None for a row that was read.
        table: the same rows as a `pyarrow.Table`, when the source is columnar, so that they are copied as they are.
    """

    rows: list[Row]
    faults: list[str | None]
    table: pyarrow.Table | None = None

    def first(self, n: int) -> Chunk:
        """The first n rows."""
        table = None if self.table is None else self.table.slice(0, n)
        return Chunk(self.rows[:n], self.faults[:n], table)


@dataclass
class Source:
    """An opened input: its number of rows, its columns (of the first 100 rows for JSONL) and its chunks.

    Attributes:
        total: number of rows.
        columns: names, in order.
        chunks: chunk size -> iterator over the rows from the start; may be called again.
        schema: `pyarrow.Schema` of a columnar source, else None.
        features: `datasets.Features` of a data set, else None.
    """

    total: int
    columns: list[str]
    chunks: Callable[[int], Iterator[Chunk]] = field(repr=False)
    schema: pyarrow.Schema | None = None
    features: datasets.Features | None = None


def format_of(path: Path) -> Format:
    """Format by suffix; no suffix is a `datasets` folder.

    Raises:
        InputError: a suffix that is none of ours.
    """
    name = path.name.lower()
    if name.endswith(_JSONL):
        return "jsonl"
    if name.endswith(".parquet"):
        return "parquet"
    if path.suffix and not path.is_dir():
        known = ", ".join((*_JSONL, ".parquet"))
        raise InputError(f"{path}: unknown suffix {path.suffix!r}; use {known}, or no suffix for a datasets folder")
    return "folder"


def open_source(name: str, split: str | None = None) -> Source:
    """Open a JSONL or Parquet file, a `save_to_disk` folder, or a hub data set ("org/name" or "org/name:config").

    Raises:
        InputError: there is no such input, it cannot be read, or `split` does not fit; the message says what there is.
    """
    path = Path(name)
    if path.is_dir():
        return _dataset_source(name, split)
    is_file = path.name.lower().endswith((*_JSONL, ".parquet"))
    if not is_file and not path.exists() and name.count("/") <= 1:
        return _dataset_source(name, split)
    if not path.exists():
        raise InputError(f"no input file {name!r}")
    if split is not None:
        raise InputError(f"{name} is one file; a split can be chosen only from a data set")
    return _jsonl_source(path) if format_of(path) == "jsonl" else _parquet_source(path)


def _jsonl_source(path: Path) -> Source:
    try:
        with open_binary(path, "rb") as file:
            total = sum(1 for line in file if line.strip())
    except (OSError, EOFError, zlib.error) as err:
        raise InputError(f"cannot read {path}: {err}") from err
    head = itertools.chain.from_iterable(c.rows for c in itertools.islice(_jsonl_chunks(path, 1), _PEEK))
    columns = list(dict.fromkeys(key for row in head for key in row))
    return Source(total, columns, lambda size: _jsonl_chunks(path, size))


def _jsonl_chunks(path: Path, size: int) -> Iterator[Chunk]:
    with open_binary(path, "rb") as file:
        parsed = (parse_line(line, number) for number, line in enumerate(file, 1) if line.strip())
        while batch := list(itertools.islice(parsed, size)):
            yield Chunk([row for row, _ in batch], [fault for _, fault in batch])


def parse_line(line: bytes, number: int) -> tuple[Row, str | None]:
    """The object on a line of JSON Lines; a line that holds none as `{"_raw": line}`, with the reason."""
    text = line.decode("utf-8-sig" if number == 1 else "utf-8", "backslashreplace").rstrip("\r\n")
    try:
        line.decode("utf-8")
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        return {RAW: text}, f"line {number} is not JSON: {err}"
    if not isinstance(value, dict):
        return {RAW: text}, f"line {number} is no JSON object but {type(value).__name__}"
    return value, None


def numbered_rows(path: Path) -> Iterator[NumberedRow]:
    """(file, row from 1, row or, of a broken line, its error) of a JSON Lines or Parquet file or a saved data set.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged.
    """
    if path.suffix == ".parquet" or path.is_dir():
        chunks = open_source(str(path)).chunks(1024)
        yield from ((str(path), i, row) for i, row in enumerate((r for c in chunks for r in c.rows), 1))
        return
    try:
        with open_binary(path, "rb") as lines:
            for i, line in enumerate(lines, 1):
                if line.strip():
                    row, fault = parse_line(line, i)
                    yield str(path), i, row if fault is None else ValueError(fault)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as err:
        raise ValueError(f"{path} is damaged: {err}") from err


def open_binary(path: Path, mode: Literal["rb", "wb"]) -> gzip.GzipFile | BinaryIO:
    """A binary file, through gzip for `.gz` (reproducibly: no time stamp)."""
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(path, mode, mtime=0)
    return path.open(mode)


def _parquet_source(path: Path) -> Source:
    pa, pq = need_pyarrow()
    try:
        with pq.ParquetFile(path) as file:
            total, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, ValueError, pa.ArrowException) as err:
        raise InputError(f"cannot read {path}: {err}") from err

    def chunks(size: int) -> Iterator[Chunk]:
        seen = 0
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(batch_size=size):
                    seen += len(batch)
                    table = pa.Table.from_batches([batch], schema=schema)
                    yield Chunk(table.to_pylist(), [None] * len(table), table)
            if seen != total:
                raise ValueError(f"it holds {seen} rows, but says {total}")
        except (OSError, ValueError, pa.ArrowException) as err:
            raise InputError(f"{path} is damaged: {err}") from err

    return Source(total, schema.names, chunks, schema)


def _dataset_source(name: str, split: str | None) -> Source:
    data = _load_dataset(name, split)
    if hasattr(data, "keys"):
        if split not in data:
            raise InputError(f"{name} has the splits {sorted(data)}, got {split!r}; choose one with --split")
        data = data[split]
    if data._indices is not None:
        data = data.flatten_indices()

    def chunks(size: int) -> Iterator[Chunk]:
        for table in data.with_format("arrow").iter(batch_size=size):
            yield Chunk(table.to_pylist(), [None] * len(table), table)

    return Source(len(data), list(data.column_names), chunks, data.features.arrow_schema, data.features)


def _load_dataset(name: str, split: str | None) -> datasets.Dataset | datasets.DatasetDict:
    try:
        import datasets
    except ImportError as err:
        raise InputError(f"{name}: data sets need `pip install 'latent-rewards[eval]'`") from err
    try:
        if Path(name).is_dir():
            return datasets.load_from_disk(name)
        hub_id, _, config = name.partition(":")
        return datasets.load_dataset(hub_id, config or None, split=split)
    except (OSError, ValueError, RuntimeError) as err:
        what = "a datasets folder" if Path(name).is_dir() else "a file here or a data set that the hub gives"
        raise InputError(f"{name!r} is not {what}: {err}") from err


def need_pyarrow() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        InputError: not installed; the message says how.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise InputError("Parquet and data set folders need `pip install 'latent-rewards[eval]'`") from err
    return pyarrow, pyarrow.parquet
