"""What a judge has already told, kept by content in SQLite: a killed run goes on, and a new metric costs no forward."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latent_rewards.files.outputs import to_json

_SCHEMA = """
CREATE TABLE IF NOT EXISTS parts (key BLOB, part TEXT, value BLOB, PRIMARY KEY (key, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cost (stage TEXT PRIMARY KEY, texts INTEGER, tokens INTEGER, seconds REAL) WITHOUT ROWID;
"""

Part = tuple[bytes, str, np.ndarray | list[Any]]  # content key, name of the part, value


def content_key(judge: str, prompt: str, row: Mapping[str, object]) -> bytes:
    """Key of one judged text: fingerprint of who reads it, hash of prompt and layout, and all that fills the slots."""
    text = json.dumps([judge, prompt, row], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


class Cache:
    """Arrays and answers by content key and part name.

    Each process writes its own file in the folder and reads all of them, so several can work at once. A `put` is one
    transaction: after a kill a batch is there as a whole or not at all.

    Args:
        folder: made when it is missing.
        rank: number of this process.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / f"readings-{rank}.sqlite"
        self._others: dict[Path, sqlite3.Connection] = {}
        with _told(self._path):
            self._own = sqlite3.connect(self._path, timeout=60)
            self._own.execute("PRAGMA journal_mode=WAL")
            self._own.execute("PRAGMA synchronous=NORMAL")
            self._own.executescript(_SCHEMA)

    def put(
        self,
        rows: Iterable[Part],
        *,
        stage: str,
        texts: int,
        tokens: int,
        seconds: float,
    ) -> None:
        """Store a batch and what it cost.

        Raises:
            OSError: it cannot be written, e.g. for lack of room; what was stored before is kept.
        """
        with _told(self._path), self._own:
            self._own.executemany(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", [(k, p, _pack(v)) for k, p, v in rows]
            )
            self._own.execute(
                "INSERT INTO cost VALUES (?, ?, ?, ?) ON CONFLICT (stage) DO UPDATE SET "
                "texts = texts + excluded.texts, tokens = tokens + excluded.tokens, "
                "seconds = seconds + excluded.seconds",
                (stage, texts, tokens, seconds),
            )

    def has(self, keys: Sequence[bytes], parts: Sequence[str]) -> np.ndarray:
        """(len(keys),) whether all parts of a key are there."""
        found: dict[bytes, set[str]] = {}
        for key, part, _ in self._select(keys, parts, "NULL"):
            found.setdefault(key, set()).add(part)
        return np.array([set(parts) <= found.get(k, set()) for k in keys], dtype=bool)

    def get(self, keys: Sequence[bytes], part: str) -> list[Any]:
        """Value of each key; None where there is none."""
        found = {key: _unpack(value) for key, _, value in self._select(keys, [part], "value")}
        return [found.get(k) for k in keys]

    def cost(self) -> dict[str, dict[str, float]]:
        """Texts, tokens and seconds by stage, over all processes and restarts."""
        total: dict[str, dict[str, float]] = {}
        for connection in self._connections():
            for stage, texts, tokens, seconds in connection.execute("SELECT * FROM cost ORDER BY stage"):
                entry = total.setdefault(stage, {"texts": 0, "tokens": 0, "seconds": 0.0})
                entry["texts"] += texts
                entry["tokens"] += tokens
                entry["seconds"] += seconds
        return total

    def close(self) -> None:
        """Close all files."""
        for connection in self._connections():
            connection.close()

    def _connections(self) -> list[sqlite3.Connection]:
        for path in sorted(self.folder.glob("readings-*.sqlite")):
            if path != self._path and path not in self._others:
                with _told(path):
                    other = sqlite3.connect(path, timeout=60)
                    other.executescript(_SCHEMA)
                    self._others[path] = other
        return [self._own, *self._others.values()]

    def _select(self, keys: Sequence[bytes], parts: Sequence[str], column: str) -> Iterable[tuple[bytes, str, bytes]]:
        unique = list(dict.fromkeys(keys))
        for connection in self._connections():
            for start in range(0, len(unique), 500):
                some = unique[start : start + 500]
                marks, names = ",".join("?" * len(some)), ",".join("?" * len(parts))
                query = f"SELECT key, part, {column} FROM parts WHERE key IN ({marks}) AND part IN ({names})"
                with _told(self.folder):
                    found = connection.execute(query, [*some, *parts]).fetchall()
                yield from found


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors with the file and what to do; broken files and lack of room have one class there."""
    try:
        yield
    except sqlite3.DatabaseError as err:
        if isinstance(err, sqlite3.OperationalError):
            raise OSError(f"{path}: {err}; make room or wait, and run again: what is stored is kept") from err
        raise OSError(f"{path}: {err}; the cache is damaged: move it away, and what was in it is read anew") from err


def _pack(value: np.ndarray | list[object]) -> bytes:
    if isinstance(value, np.ndarray):
        shape = np.array([value.ndim, *value.shape], dtype="<i4").tobytes()
        return b"a" + shape + np.ascontiguousarray(value, dtype="<f4").tobytes()
    return b"j" + zlib.compress(to_json(value).encode())


def _unpack(blob: bytes) -> Any:
    if blob[:1] == b"j":
        return json.loads(zlib.decompress(blob[1:]))
    ndim = int(np.frombuffer(blob, "<i4", 1, 1)[0])
    shape = np.frombuffer(blob, "<i4", ndim, 5)
    return np.frombuffer(blob, "<f4", -1, 5 + 4 * ndim).reshape(shape).copy()
