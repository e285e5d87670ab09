"""A snapshot in a file: nothing in it is believed before all of it was checked.

The file is an LMDB environment that holds replicated databases only, and its sha256 behind it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from kvserver.errors import DataDirError
from kvserver.storage.check import check_all
from kvserver.storage.env import LmdbStorage
from kvserver.storage.structure import verify_structure

_HASH_BYTES: Final = hashlib.sha256().digest_size
_BLOCK_BYTES: Final = 512
"""What is before the hash is a multiple of this, in etcd's snapshots too."""

_READ_BYTES: Final = 1 << 20
_MAGIC_AT: Final = 16
_LMDB: Final = bytes.fromhex("dec0efbe")
_BBOLT: Final = bytes.fromhex("edda0ced")
"""Of the storage engine of etcd."""

Progress = Callable[[int, int], object]
"""Told how far something is, and how far it goes; 0 if nobody knows."""


@dataclass(frozen=True)
class SnapshotFile:
    """A file whose content is what was once sent."""

    path: Path
    size_bytes: int
    """Of its content, without the hash."""
    sha256: bytes
    """Of its content."""


def read_snapshot(
    path: Path, *, check_hash: bool, on_progress: Progress, copy: BinaryIO | None = None
) -> SnapshotFile:
    """Read a whole file.

    Args:
        path: of the file.
        check_hash: False for a database file that was copied by hand and has none.
        on_progress: told the bytes that were read.
        copy: gets the content too.

    Raises:
        DataDirError: it is no snapshot of this kvserver, or not as it was written.
        OSError: `copy` can't be written.
    """
    with _reading(path):
        file = path.open("rb")
    with file:
        with _reading(path):
            size = os.fstat(file.fileno()).st_size
        content = _content_bytes(path, size, check_hash=check_hash)
        digest, done = hashlib.sha256(), 0
        while part := _read(path, file, min(_READ_BYTES, content - done)):
            if not done:
                _check_magic(path, part)
            digest.update(part)
            if copy is not None:
                copy.write(part)
            done += len(part)
            on_progress(done, content)
        told = _read(path, file, -1)
    if check_hash and told != digest.digest():
        raise DataDirError(
            f"{path} is damaged: its content and the sha256 at its end do not match; use another"
        )
    return SnapshotFile(path, content, digest.digest())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Of calls that read the file, so that nothing else that fails is blamed on it."""
    try:
        yield
    except OSError as error:
        raise DataDirError(f"{path} can't be read: {error.strerror}") from error


def _read(path: Path, file: BinaryIO, size: int) -> bytes:
    with _reading(path):
        return file.read(size)


def _content_bytes(path: Path, size: int, *, check_hash: bool) -> int:
    rest = size % _BLOCK_BYTES
    if size > _BLOCK_BYTES and rest == _HASH_BYTES:
        return size - _HASH_BYTES
    if size >= _BLOCK_BYTES and rest == 0:
        if not check_hash:
            return size
        raise DataDirError(
            f"{path} has no sha256 at its end: it was cut off, or is a database file copied by "
            "hand, which --skip-hash-check accepts"
        )
    raise DataDirError(f"{path} is no snapshot, or was cut off: {size} bytes can't be one")


def _check_magic(path: Path, head: bytes) -> None:
    magic = head[_MAGIC_AT : _MAGIC_AT + len(_LMDB)]
    if magic == _BBOLT:
        raise DataDirError(
            f"{path} is a snapshot of etcd's, which only etcd can read; copy its keys by a client"
        )
    if magic != _LMDB:
        raise DataDirError(f"{path} is no snapshot of kvserver")


@contextmanager
def opened_snapshot(
    path: Path, *, name: Path, read_only: bool, on_progress: Progress
) -> Iterator[LmdbStorage]:
    """The environment of a snapshot whose content is as it was sent, every row of it checked.

    Args:
        path: the file, or without `read_only` a folder with its content as the database.
        name: of the file, for a sentence.
        read_only: leave it as it is.
        on_progress: told the rows that were checked.

    Raises:
        DataDirError: it is damaged, or of another version.
    """
    storage = None
    try:
        verify_structure(path if read_only else path / "data.mdb")
        storage = LmdbStorage(path, read_only=read_only)
        for check in check_all(storage):
            on_progress(check.rows, check.total)
    except DataDirError as error:
        if storage is not None:
            storage.close()
        reason = str(error).partition(";")[0]  # what follows is about nodes
        raise DataDirError(f"{name} can't be used: {reason}") from error
    try:
        yield storage
    finally:
        storage.close()
