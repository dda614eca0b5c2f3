"""Files and folders that appear whole or not at all, also after a kill or a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

_NO_LINKS = (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what is there takes the place of `path` when the block ends well.

    Raises:
        OSError: disk full or not writable; what was there before is as it was.
    """
    with _beside(path) as temp:
        yield temp
        publish(temp, path)


def publish(made: Path, path: Path) -> None:
    """Flush a finished file to the disk and give it its name."""
    _sync(made)
    os.replace(made, path)
    with contextlib.suppress(OSError):  # not every system can sync a folder
        _sync(path.parent)


def publish_folder(made: Path, path: Path, aside: Path) -> None:
    """The same for a folder; an old one, which no rename replaces, goes to `aside` and comes back if this fails."""
    for file in made.rglob("*"):
        _sync(file)
    if path.is_dir():
        os.replace(path, aside)
    try:
        os.replace(made, path)
    except OSError:
        if aside.is_dir():
            os.replace(aside, path)
        raise


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines to a file; see `replacing`."""
    with replacing(path) as temp, temp.open("wb") as file:
        file.writelines(lines)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8; see `replacing`."""
    write_lines(path, [text.encode()])


def write_first(path: Path, text: str) -> bool:
    """Write a text unless the file is there; whether it was written. Of several processes one wins.

    On a file system without hard links (object stores under FUSE) others may see the file before it is whole, and a
    kill may leave it so.
    """
    with _beside(path) as temp:
        temp.write_text(text, encoding="utf-8")
        _sync(temp)
        try:
            os.link(temp, path)  # unlike a rename, fails when another process was first
        except FileExistsError:
            return False
        except OSError as err:
            if err.errno not in _NO_LINKS:
                raise
            return _create(path, text)
    return True


def _create(path: Path, text: str) -> bool:
    """What `write_first` does where there are no hard links."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name that no other thread, process or machine uses; what is left there goes."""
    temp = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temp
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
