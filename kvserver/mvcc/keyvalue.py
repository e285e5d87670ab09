"""The row of a key: its bookkeeping, its value.

Layout: create, mod, version as u64, lease as i64, big-endian; value.
"""

import struct
from typing import Final, NamedTuple

from kvpb.kv_pb2 import KeyValue

_NUMBERS: Final = struct.Struct(">QQQq")
_LEASE: Final = struct.Struct(">24xq")


class Row(NamedTuple):
    """What the store knows of one key."""

    create_revision: int
    mod_revision: int
    version: int
    lease: int
    value: bytes


def encode_row(row: Row) -> bytes:
    """Stored form of a row."""
    create, mod, version, lease, value = row
    return _NUMBERS.pack(create, mod, version, lease) + value


def decode_row(stored: bytes) -> Row:
    """The row of a stored form."""
    create, mod, version, lease = _NUMBERS.unpack_from(stored)
    return Row(create, mod, version, lease, stored[_NUMBERS.size :])


def mod_revision_of(stored: bytes) -> int:
    """The revision of the row's change, without taking it apart."""
    return int.from_bytes(stored[8:16], "big")


def lease_of(stored: bytes) -> int:
    """The lease of a stored form, 0 for none."""
    lease: int = _LEASE.unpack_from(stored)[0]
    return lease


def to_message(key: bytes, row: Row, *, with_value: bool = True) -> KeyValue:
    """The row as clients see it."""
    return KeyValue(
        key=key, create_revision=row.create_revision, mod_revision=row.mod_revision,
        version=row.version, lease=row.lease, value=row.value if with_value else b"",
    )  # fmt: skip
