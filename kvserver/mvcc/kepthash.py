"""The hash of all that is kept as of a revision, deletions and old revisions too: that of HashKV.

What is hashed is what etcd hashes: every change after the compacted revision, and of the earlier
ones those that make up the state at the hashed revision. So it depends on these two revisions and
on what was written, but not on how far a node has come with removing what is compacted.

It is read as clients read. Key by key: the row that is served, and every change of the key, which
the index has to lead to. Then revision by revision, as watches do, which has to find the same
changes. Each slice has a transaction of its own, like those of `statehash.py`; after a compaction
in between all begins anew.
"""

import zlib

from kvserver.errors import CompactedError
from kvserver.mvcc.history import (
    compacted_revision,
    entries_of,
    is_kept,
    is_newer,
    moment_of,
    stored_change,
    stored_changes,
)
from kvserver.mvcc.statehash import ROWS_MAX, Slice, keys_ever, served_row
from kvserver.storage.contract import ReadTxn, Storage


class KeptHash:
    """Hashes all changes that are kept as of a revision, some at a time."""

    def __init__(self, storage: Storage, revision: int) -> None:
        """Hash what `storage` keeps as of `revision`, which it has reached."""
        self._storage = storage
        self._revision = revision
        self._begin(-1)

    def _begin(self, compacted: int) -> None:
        self.compacted = compacted
        """The compacted revision that the hash goes with."""
        self.value = 0
        """crc32; equal on nodes that keep the same as of these two revisions."""
        self._keys_from: tuple[bytes, bytes] | None = (b"", b"")
        """Next key, and its entry in the index; None once all keys were seen."""
        self._changes_from = b""
        """The moment of the next change; empty before the first."""
        self._unmet = 0
        """Sum over the changes after the compaction that were met by key, but not by revision yet.
        In the end it is 0: so the hash depends on what is kept, not on where a compaction was."""

    def step(self, rows_max: int = ROWS_MAX) -> bool:
        """Hash a slice; True once `value` is complete.

        Raises:
            CompactedError: the revision is not kept any more.
            DataDirError: a row is damaged, or can't be found where the index says.
        """
        left = Slice(rows_max)
        with self._storage.read() as txn:
            compacted = compacted_revision(txn)
            if compacted > self._revision:
                raise CompactedError
            if compacted != self.compacted:
                self._begin(compacted)
            self._hash_keys(txn, left)
            return self._keys_from is None and self._hash_changes(txn, left)

    def _mix(self, *parts: bytes) -> None:
        for part in parts:
            self.value = zlib.crc32(part, self.value)

    def _hash_keys(self, txn: ReadTxn, left: Slice) -> None:
        """Go on with the keys; `_keys_from` says how far that came."""
        if self._keys_from is None:
            return
        for key, served in keys_ever(txn, self._keys_from[0]):
            if key != self._keys_from[0]:
                self._keys_from = (key, b"")
            if left.used_up:
                return
            if not self._keys_from[1]:
                row = served_row(txn, key, self._revision, served=served) or b""
                left.take(len(row))
                if row:  # else the key may be a later one, or one that is not removed yet
                    self._mix(key, row)
            if not self._hash_entries(txn, key, left):
                return
        self._keys_from = None

    def _hash_entries(self, txn: ReadTxn, key: bytes, left: Slice) -> bool:
        """Go on with the changes of a key; False if they were not all."""
        assert self._keys_from is not None
        for entry in entries_of(txn, key, self._keys_from[1], self._revision):
            if left.used_up:
                self._keys_from = (key, entry)
                return False
            left.take(len(entry))
            if is_kept(txn, key, entry, self.compacted, self._revision):
                change = stored_change(txn, key, entry)
                self._mix(entry, change)
                left.take(len(change))
                if is_newer(entry, self.compacted):
                    self._unmet += zlib.crc32(change, zlib.crc32(moment_of(entry)))
        self._keys_from = (key + b"\0", b"")
        return True

    def _hash_changes(self, txn: ReadTxn, left: Slice) -> bool:
        """Go on with the changes in the order of revisions; False if they were not all."""
        first = self._changes_from or self.compacted + 1
        for at, change in stored_changes(txn, first, self._revision):
            if left.used_up:
                self._changes_from = at
                return False
            self._unmet -= zlib.crc32(change, zlib.crc32(at))
            left.take(len(change))
        # it is mixed in though it is 0, so that the hash of a store that holds nothing is not 0
        self._mix(self._unmet.to_bytes(16, "big", signed=True))
        return True
