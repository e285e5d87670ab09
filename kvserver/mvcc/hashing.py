"""Hashes of what one transaction sees: of the state, of all that is stored."""

import zlib
from itertools import islice

from kvserver.storage.contract import ReadTxn
from kvserver.storage.schema import DATABASES, KV


class HashBuilder:
    """Hashes all rows, some at a time."""

    def __init__(self, txn: ReadTxn) -> None:
        """Hash the newest state, as one transaction sees it."""
        self._rows = txn.scan(KV)
        self.value = 0
        """crc32 over keys and rows in key order."""

    def step(self, rows_max: int) -> bool:
        """Hash up to `rows_max` more rows; True once `value` is complete."""
        value, seen = self.value, 0
        for key, row in islice(self._rows, rows_max):
            seen += 1
            value = zlib.crc32(row, zlib.crc32(key, value))
        self.value = value
        return seen < rows_max


class StoredHashBuilder(HashBuilder):
    """Hashes everything replicated that is stored, old revisions included.

    Nodes remove compacted revisions each at its own pace: it differs between equal nodes meanwhile.
    """

    def __init__(self, txn: ReadTxn) -> None:
        super().__init__(txn)
        self._rows = (
            (each.name + key, row)
            for each in DATABASES
            if each.replicated and txn.holds(each)
            for key, row in txn.scan(each)
        )
