"""Rows as they lie on the disk: the content, then a checksum. And what is said about damage.

Every row of every database has one, so nothing that was damaged is ever believed.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import Final

from kvserver.errors import DamagedError
from kvserver.storage.schema import Database

_CHECKSUM: Final = struct.Struct(">I")
"""crc32 over key and content."""

REPLACE: Final = (
    "stop this node, empty its --data-dir and start it again with the same options: it comes back "
    "by itself, as a new member with a copy of the data. If no majority of the others runs, keep "
    "the directory"
)
"""What to do about a damaged data directory."""


def damaged(what: str) -> DamagedError:
    """The end of a node whose disk does not hold what was written to it."""
    return DamagedError(f"{what}; see whether the disk is sound, then replace this node: {REPLACE}")


def seal(key: bytes, content: bytes) -> bytes:
    """Stored form of a row. The content comes first: by it the values of a key are ordered."""
    return content + _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(key)))


def sealed(pairs: Iterable[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], int]:
    """Keys and stored forms of many rows, and the sum of their checksums: one loop, no calls."""
    rows, total, crc32 = [], 0, zlib.crc32
    for key, content in pairs:
        checksum = crc32(content, crc32(key))
        total += checksum
        rows.append((key, content + checksum.to_bytes(4, "big")))
    return rows, total


def seal_number(row: bytes) -> int:
    """The checksum at the end of a stored row, as a number."""
    return int.from_bytes(row[-_CHECKSUM.size :], "big")


def unseal(db: Database, key: bytes, row: bytes) -> bytes:
    """Content of a stored row.

    Raises:
        DataDirError: it is damaged.
    """
    content = row[: -_CHECKSUM.size]
    if row[-_CHECKSUM.size :] != _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(key))):
        raise damaged(f"a row of the database '{db.name.decode()}' is damaged (key {key!r})")
    return content
