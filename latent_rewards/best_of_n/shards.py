"""Shards on disk: each appears whole or not at all, and one process at a time works on it."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from latent_rewards.best_of_n.groups import Record
from latent_rewards.files.atomic import write_lines
from latent_rewards.files.outputs import to_json

logger = logging.getLogger(__name__)


class ShardStore:
    """Folder `shards` of a run.

    A shard is a JSONL file, one prompt a line. It is written beside its place, flushed to the disk and renamed, so that
    a kill at any time leaves a whole shard or none. The lock of a claim dies with its process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shards"
        self.locks = folder / ".locks"
        for made in (self.folder, self.locks):
            made.mkdir(parents=True, exist_ok=True)

    def path(self, index: int) -> Path:
        """Where a shard appears."""
        return self.folder / f"{index:08d}.jsonl"

    def done(self, index: int) -> bool:
        """Whether a shard is there."""
        return self.path(index).is_file()

    @contextlib.contextmanager
    def claim(self, name: str | int) -> Iterator[bool]:
        """Whether this process now has the shard for itself; never waits.

        On a file system without locks two processes may do the same shard; they write the same content.
        """
        lock = FileLock(self.locks / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except NotImplementedError:
            logger.warning("%s: no file locks here; processes may do the same shard twice", self.locks)
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    def write(self, index: int, records: Iterable[Record]) -> None:
        """Put a shard in its place and clear away what a killed process left of it. Call with its claim.

        Raises:
            OSError: disk full, not writable; nothing appears.
        """
        write_lines(self.path(index), (dump(r) for r in records))
        for left in self.folder.glob(f".{self.path(index).name}.*.tmp"):
            left.unlink(missing_ok=True)

    def clear(self) -> None:
        """Clear away what processes left that were killed between a shard's appearance and their own clearing."""
        for left in self.folder.glob(".*.tmp"):
            with self.claim(int(left.name[1:9])) as mine:
                if mine:
                    left.unlink(missing_ok=True)

    def read(self, index: int) -> Iterator[Record]:
        """The records of a shard."""
        with self.path(index).open("rb") as file:
            for line in file:
                yield json.loads(line)


def dump(record: Mapping[str, object]) -> bytes:
    """A record as a line of JSON; see `to_json`."""
    return to_json(record).encode() + b"\n"
