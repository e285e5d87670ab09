"""Reading all that is on the disk, some at a time, to find out whether it is as written."""

from collections.abc import Iterator
from itertools import chain
from typing import Final

from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.schema import DATABASES

ROWS_MAX: Final = 500
BYTES_MAX: Final = 1 << 20
"""Of a slice: what a slow disk gives in a few milliseconds."""


class Check:
    """One pass over all databases, then the log. What changes meanwhile is seen before or after."""

    def __init__(self, storage: Storage, log: Iterator[int] | None = None) -> None:
        """Begin a pass.

        Args:
            storage: whose databases are read.
            log: a check of its log; None for a copy, which has none.
        """
        self._storage = storage
        self._log = log
        with storage.read() as txn:
            self._left = [each for each in DATABASES if txn.holds(each)]
        self._last: tuple[bytes, bytes] | None = None
        """Newest key and value seen of the first database that is left."""
        self.rows = 0
        """Seen so far, batches of the log too, all sound."""

    def step(self) -> bool:
        """Read a slice, in a transaction of its own; True once all was read.

        Raises:
            DataDirError: something is damaged.
        """
        if not self._left:
            return self._step_log()
        size, limit = 0, self.rows + ROWS_MAX
        with self._storage.read() as txn:
            for key, value in self._following(txn):
                self.rows += 1
                self._last = (key, value)
                size += len(value)
                if self.rows == limit or size >= BYTES_MAX:
                    return False
        del self._left[0]
        self._last = None
        return not self._left and self._log is None

    def _step_log(self) -> bool:
        assert self._log is not None, "a pass ends once"
        found = next(self._log, None)
        self.rows += found or 0
        return found is None

    def _following(self, txn: ReadTxn) -> Iterator[tuple[bytes, bytes]]:
        db = self._left[0]
        if self._last is None:
            return txn.scan(db)
        key, value = self._last
        rest = txn.scan(db, key + b"\0")
        if not db.many:
            return rest
        return chain(((key, each) for each in txn.values(db, key, value + b"\0")), rest)
