"""The hash of the state at a revision, made of what is served: for comparing nodes while they work.

A view of one moment would have to be held for as long as it takes to read all rows. Instead each
slice is read in a transaction of its own, whatever was written since: keys that have not changed
after the revision are taken from `kv`, which is what clients are answered from; the others from the
history.
"""

import heapq
import zlib
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Final

from kvserver.errors import CompactedError
from kvserver.mvcc.history import compacted_revision, newest_revision_of, row_at
from kvserver.mvcc.keyvalue import encode_row, mod_revision_of
from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.schema import KEY_HISTORY, KV

ROWS_MAX: Final = 500
BYTES_MAX: Final = 1 << 20
"""Of a slice."""


class Slice:
    """How much more may be read in one transaction."""

    def __init__(self, rows_max: int) -> None:
        """Allow `rows_max` rows, of `BYTES_MAX` together; the last one may go beyond that."""
        self._rows, self._bytes = rows_max, BYTES_MAX

    def take(self, size: int) -> None:
        """A row of `size` bytes was read."""
        self._rows -= 1
        self._bytes -= size

    @property
    def used_up(self) -> bool:
        """True when the next row has to wait for the next transaction."""
        return self._rows <= 0 or self._bytes <= 0


class StateHash:
    """Hashes all rows as they were at a revision, some at a time."""

    def __init__(self, storage: Storage, revision: int) -> None:
        """Hash the state of `storage` at `revision`, which it has reached."""
        self._storage = storage
        self._revision = revision
        self._at = b""
        self.compacted = -1
        """The compacted revision, as the newest slice has seen it."""
        self.value = 0
        """crc32 over keys and rows in key order."""

    def step(self, rows_max: int = ROWS_MAX) -> bool:
        """Hash a slice; True once `value` is complete.

        Raises:
            CompactedError: the revision is not kept any more.
            DataDirError: a row is damaged.
        """
        left = Slice(rows_max)
        with self._storage.read() as txn:
            self.compacted = compacted_revision(txn)
            if self.compacted > self._revision:
                raise CompactedError
            for key, served in keys_ever(txn, self._at):
                if left.used_up:
                    self._at = key
                    return False
                row = served_row(txn, key, self._revision, served=served) or b""
                left.take(len(row))
                if row:
                    self.value = zlib.crc32(row, zlib.crc32(key, self.value))
        return True


def keys_ever(txn: ReadTxn, lo: bytes) -> Iterator[tuple[bytes, bool]]:
    """Every key from `lo` on that is served or has a history, in order; and whether it is served.

    Served is a key that a range meets. `served_row` looks it up by itself as well.
    """
    now = ((key, True) for key in txn.keys(KV, lo))
    ever = ((key, False) for key in txn.keys(KEY_HISTORY, lo))
    for key, found in groupby(heapq.merge(now, ever), itemgetter(0)):
        yield key, any(served for _, served in found)


def served_row(txn: ReadTxn, key: bytes, revision: int, *, served: bool) -> bytes | None:
    """The row that a client is given of a key at a revision, None if it is given none.

    Args:
        txn: what to look at.
        key: that a pass over all keys has met.
        revision: not compacted, and reached.
        served: whether a pass over the served keys meets it. Load-bearing: a row counts only if
            that pass and a look-up find it both, since clients read in both ways.

    Raises:
        DataDirError: a row is damaged.
    """
    now = txn.get(KV, key) if served else None
    if now is not None and mod_revision_of(now) <= revision:
        return now
    if newest_revision_of(txn, key) <= revision:
        return now  # what is served is wrong, and must not look right
    then = row_at(txn, key, revision)
    return None if then is None else encode_row(then)
