"""Reading all rows of a state, some at a time, to find out whether they are as written.

A row that is returned is as written, since every row has a checksum. What a checksum can't show is
that a row is missing, or can't be found: that the order, the number of rows, lookups and the digest
of every database agree is looked at here.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from kvserver.storage.contract import ReadTxn, Storage
from kvserver.storage.digest import DIGESTED, MASK, Digests, counts, row_digest
from kvserver.storage.rows import damaged
from kvserver.storage.schema import DATABASES, Database

ROWS_MAX: Final = 500
BYTES_MAX: Final = 1 << 20
"""Of a slice: what a slow disk gives in a few milliseconds."""

Row = tuple[bytes, bytes]


class Check:
    """One pass over all databases of a state that nobody changes meanwhile."""

    def __init__(self, txn: ReadTxn) -> None:
        """Begin a pass over what a transaction sees.

        Raises:
            DataDirError: something is damaged.
        """
        self._txn = txn
        self._left = [each for each in DATABASES if txn.holds(each)]
        self.total = sum(txn.entries(each) for each in self._left)
        """Rows that there should be."""
        self.rows = 0
        """Seen so far, all sound."""
        self._digests: dict[Database, int] = dict.fromkeys(DIGESTED, 0)
        """Of the rows seen so far."""
        self._begin()

    def _begin(self) -> None:
        self._rows: Iterator[Row] = self._txn.scan(self._left[0]) if self._left else iter(())
        self._last: Row | None = None
        self._seen = 0
        """Rows of this database."""

    def step(self) -> bool:
        """Read a slice; True once all was read, and is sound.

        Raises:
            DataDirError: something is damaged.
        """
        if not self._left:
            return True
        db = self._left[0]
        rows = list(_slice(self._rows))
        if rows:
            self._look(db, rows)
            return False
        self._end(db)
        del self._left[0]
        self._begin()
        if self._left:
            return False
        self._compare_digests()
        return True

    def _look(self, db: Database, rows: list[Row]) -> None:
        last = self._last
        for row in rows:
            if last is not None and not _after(db, last, row):
                raise damaged(f"the database '{db.name.decode()}' is not in order at {row[0]!r}")
            last = row
        self._last = last
        self._seen += len(rows)
        self.rows += len(rows)
        if db in self._digests:
            added = sum(row_digest(key, value) for key, value in rows if counts(db, key))
            self._digests[db] = (self._digests[db] + added) & MASK
        if (lost := _not_found(self._txn, db, rows)) is not None:
            raise damaged(f"the database '{db.name.decode()}' holds {lost!r}, but does not find it")

    def _end(self, db: Database) -> None:
        expected = self._txn.entries(db)
        if self._seen != expected:
            raise damaged(
                f"the database '{db.name.decode()}' has {self._seen} rows, and counts {expected}"
            )

    def _compare_digests(self) -> None:
        stored = self._txn.digests()
        differing = [db for db in DIGESTED if stored and stored[db] != self._digests[db]]
        if differing:
            names = ", ".join(db.name.decode() for db in differing)
            raise damaged(f"rows of the database are missing, or of another time ({names})")

    @property
    def counted(self) -> Digests:
        """The digests of the state, once all was read."""
        assert not self._left, "not all was read"
        return self._digests


def check_all(storage: Storage) -> Iterator[Check]:
    """Check a state that nobody changes, in one transaction.

    Yields:
        The pass, after every slice.

    Raises:
        DataDirError: something is damaged.
    """
    with storage.read() as txn:
        check = Check(txn)
        while not check.step():
            yield check
        yield check


def _slice(rows: Iterator[Row]) -> Iterator[Row]:
    size = 0
    for row in islice(rows, ROWS_MAX):
        yield row
        size += len(row[1])
        if size >= BYTES_MAX:
            return


def _after(db: Database, last: Row, row: Row) -> bool:
    return row > last if db.many else row[0] > last[0]


def _not_found(txn: ReadTxn, db: Database, rows: Iterable[Row]) -> bytes | None:
    """A key of these rows by which the same transaction does not find its row."""
    if db.many:
        return next((key for key, value in rows if not txn.finds_value(db, key, value)), None)
    expected = dict(rows)
    found = txn.get_many(db, expected)
    return next((key for key in expected if found.get(key) != expected[key]), None)
