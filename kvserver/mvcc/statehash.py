"""The hash of the state at a revision, made of what is served: for comparing nodes while they work.

A view of one moment would have to be held for as long as it takes to read all rows. Instead each
slice is read in a transaction of its own, whatever was written since: keys that have not changed
after the revision are taken from `kv`, which is what clients are answered from; the others from the
history.
"""

import zlib
from collections.abc import Iterable
from typing import Final

from kvserver.errors import CompactedError
from kvserver.mvcc.history import compacted_revision, newest_revision_of, row_at
from kvserver.mvcc.keyvalue import encode_row, mod_revision_of
from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.schema import KEY_HISTORY, KV

ROWS_MAX: Final = 500
BYTES_MAX: Final = 1 << 20
"""Of a slice."""


class StateHash:
    """Hashes all rows as they were at a revision, some at a time."""

    def __init__(self, storage: Storage, revision: int) -> None:
        """Hash the state of `storage` at `revision`, which it has reached."""
        self._storage = storage
        self._revision = revision
        self._at = b""
        self.value = 0
        """crc32 over keys and rows in key order, the one that HashKV gives at this revision."""

    def step(self, rows_max: int = ROWS_MAX) -> bool:
        """Hash a slice; True once `value` is complete.

        Raises:
            CompactedError: the revision is not kept any more.
            DataDirError: a row is damaged.
        """
        with self._storage.read() as txn:
            if compacted_revision(txn) > self._revision:
                raise CompactedError
            rows, rows_end = _slice(txn.scan(KV, self._at), rows_max)
            names = ((key, b"") for key in txn.keys(KEY_HISTORY, self._at))
            once, once_end = _slice(names, rows_max)
            end = min((key for key in (rows_end, once_end) if key is not None), default=None)
            for key in sorted(rows.keys() | once.keys()):
                if end is not None and key >= end:
                    break
                row = self._row(txn, key, rows.get(key))
                if row is not None:
                    self.value = zlib.crc32(row, zlib.crc32(key, self.value))
        if end is None:
            return True
        self._at = end
        return False

    def _row(self, txn: ReadTxn, key: bytes, served: bytes | None) -> bytes | None:
        """The row of a key at the revision; `served` is the one of now."""
        if served is not None and mod_revision_of(served) <= self._revision:
            return served
        if newest_revision_of(txn, key) <= self._revision:
            return served  # what is served is wrong, and must not look right
        then = row_at(txn, key, self._revision)
        return None if then is None else encode_row(then)


def _slice(
    rows: Iterable[tuple[bytes, bytes]], rows_max: int
) -> tuple[dict[bytes, bytes], bytes | None]:
    """The first rows, and where to go on; None if those were all."""
    taken: dict[bytes, bytes] = {}
    size = 0
    for key, row in rows:
        taken[key] = row
        size += len(row)
        if len(taken) == rows_max or size >= BYTES_MAX:
            return taken, key + b"\0"
    return taken, None
