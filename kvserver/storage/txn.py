"""LMDB transactions: rows are sealed and unsealed here, so that no damaged one gets out."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Final

import lmdb

from kvserver.errors import DataDirError, DiskError
from kvserver.storage.digest import (
    DIGESTS_KEY,
    MASK,
    Digests,
    Ledger,
    counts,
    decode_digests,
    encode_digests,
    row_digest,
)
from kvserver.storage.rows import damaged, seal, seal_number, sealed, unseal
from kvserver.storage.schema import META, Database
from kvserver.storage.trouble import DAMAGE

Handles = dict[Database, "lmdb._Database"]  # noqa: SLF001 - the name of the type


class _Engine:
    """Context of calls into the engine: its errors become ours."""

    __slots__ = ("_writes",)

    def __init__(self, *, writes: bool) -> None:
        self._writes = writes

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is None:
            return
        if isinstance(error, DAMAGE):
            raise damaged(f"the database is damaged ({error})") from error
        if self._writes and isinstance(error, lmdb.Error | OSError):
            raise DiskError(
                f"writing to the database failed ({error}): see whether the disk of --data-dir is "
                "full or broken"
            ) from error


READING: Final = _Engine(writes=False)
"""Damage ends the node."""

WRITING: Final = _Engine(writes=True)
"""And any other trouble lets it start over from what is on disk."""


class LmdbReadTxn:
    """A view of one moment. Also the read half of the write transaction."""

    __slots__ = ("_handles", "_txn")

    def __init__(self, txn: "lmdb.Transaction[bytes]", handles: Handles) -> None:
        self._txn = txn
        self._handles = handles

    @property
    def number(self) -> int:
        """Of the commit that it sees; of the one to come, for a write transaction."""
        return int(self._txn.id())

    def holds(self, db: Database) -> bool:
        """False for a database that is younger than a copy which is only read."""
        return db in self._handles

    def get(self, db: Database, key: bytes) -> bytes | None:
        """Value of `key`, None if there is none."""
        with READING:
            row = self._txn.get(key, db=self._handles[db])
        return None if row is None else unseal(db, key, row)

    def get_many(self, db: Database, keys: Collection[bytes]) -> dict[bytes, bytes]:
        """Values of those of `keys` that exist: one call into the engine."""
        with READING, self._txn.cursor(self._handles[db]) as cursor:
            found = cursor.getmulti(keys)
        return {key: unseal(db, key, row) for key, row in found}

    def scan(
        self, db: Database, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with `lo <= key < hi` in key order, or from the end with `reverse`."""
        last = None
        with READING:
            cursor = self._txn.cursor(self._handles[db])
            for key, row in (_back if reverse else _forth)(cursor, lo, hi):
                if last is not None and (key >= last if reverse else key <= last):
                    _check_order(db, last, key)
                last = key
                yield key, unseal(db, key, row)

    def values(
        self, db: Database, key: bytes, lo: bytes = b"", hi: bytes | None = None
    ) -> Iterator[bytes]:
        """Values of `key` with `lo <= value < hi` in order, of a database with many."""
        with READING:
            cursor = self._txn.cursor(self._handles[db])
            if not (cursor.set_range_dup(key, lo) if lo else cursor.set_key(key)):
                return
            last = b""
            for row in cursor.iternext_dup(keys=False, values=True):
                if row < last:
                    raise damaged(f"the values of {key!r} are not in order")
                last = row
                value = unseal(db, key, row)
                if hi is not None and value >= hi:
                    return
                if value >= lo:  # one that `lo` begins with may come before it
                    yield value

    def finds_value(self, db: Database, key: bytes, value: bytes) -> bool:
        """Whether a lookup finds this value of `key`, of a database with many."""
        with READING, self._txn.cursor(self._handles[db]) as cursor:
            return cursor.set_key_dup(key, seal(key, value))

    def last_value(self, db: Database, key: bytes, hi: bytes) -> bytes | None:
        """Greatest value of `key` below `hi`, of a database with many; None if there is none."""
        with READING, self._txn.cursor(self._handles[db]) as cursor:
            if cursor.set_range_dup(key, hi):
                row = cursor.value() if cursor.prev_dup() else None
            elif cursor.set_key(key):
                cursor.last_dup()
                row = cursor.value()
            else:
                row = None
        return None if row is None else unseal(db, key, row)

    def digests(self) -> Digests | None:
        """Of all replicated databases but META; None if this state keeps none (yet)."""
        stored = self.get(META, DIGESTS_KEY)
        return None if stored is None else decode_digests(stored)

    def entries(self, db: Database) -> int:
        """How many rows the engine believes `db` to have."""
        with READING:
            return int(self._txn.stat(self._handles[db])["entries"])

    def size_of(self, db: Database) -> int:
        """Bytes of the pages that the rows of `db` take, about."""
        with READING:
            stat = self._txn.stat(self._handles[db])
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages * stat["psize"])

    def keys(self, db: Database, lo: bytes = b"", hi: bytes | None = None) -> Iterator[bytes]:
        """Keys with `lo <= key < hi` in order, each once, without touching their values."""
        last = b""
        with READING:
            cursor = self._txn.cursor(self._handles[db])
            if not _seek(cursor, lo):
                return
            rows = cursor.iternext_nodup if db.many else cursor.iternext
            for key in rows(keys=True, values=False):
                if key <= last:
                    raise _disordered(db, key)
                if hi is not None and key >= hi:
                    return
                last = key
                yield key


def _seek(cursor: "lmdb.Cursor[bytes]", lo: bytes) -> bool:
    """Stand at the first key from `lo` on; False if there is none.

    Raises:
        DataDirError: a key from `lo` on stands before it: the search was led astray.
    """
    if not lo:
        return cursor.first()
    found = cursor.set_range(lo)
    if found and cursor.key() == lo:
        return True
    before = cursor.prev() if found else cursor.last()
    if before and cursor.key() >= lo:
        raise damaged(f"the database is damaged: a search for {lo!r} passes over a key")
    return found and (cursor.next() if before else cursor.first())


def _check_order(db: Database, last: bytes, key: bytes) -> None:
    """Two keys that follow one another and do not rise, or fall: only many values of one may."""
    if key != last or not db.many:
        raise _disordered(db, key)


def _disordered(db: Database, key: bytes) -> DataDirError:
    return damaged(f"the database '{db.name.decode()}' is damaged: not in order at {key!r}")


def _forth(
    cursor: "lmdb.Cursor[bytes]", lo: bytes, hi: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    if not _seek(cursor, lo):
        return
    for key, row in cursor.iternext(keys=True, values=True):
        if hi is not None and key >= hi:
            return
        yield key, row


def _back(
    cursor: "lmdb.Cursor[bytes]", lo: bytes, hi: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    above = hi is not None and _seek(cursor, hi)
    if not (cursor.prev() if above else cursor.last()):
        return
    for key, row in cursor.iterprev(keys=True, values=True):
        if key < lo:
            return
        yield key, row


class LmdbWriteTxn(LmdbReadTxn):
    """The open write transaction; belongs to the thread that began it.

    Whatever it changes it also counts: every change of a row changes the digest of its database.
    """

    __slots__ = ("_ledger", "dirty")

    def __init__(
        self, txn: "lmdb.Transaction[bytes]", handles: Handles, ledger: Ledger | None = None
    ) -> None:
        super().__init__(txn, handles)
        self._ledger = ledger or Ledger(None)
        self.dirty = False

    def digests(self) -> Digests | None:
        """As of the changes made so far; None if they are not known (yet)."""
        return dict(self._ledger.sums) if self._ledger.known else None

    def _count(self, db: Database, change: int) -> None:
        if db in self._ledger.sums:
            self._ledger.sums[db] = (self._ledger.sums[db] + change) & MASK

    def put(self, db: Database, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        if db.many:
            self.put_many(db, [(key, value)], fresh=True)
            return
        self.dirty = True
        row = seal(key, value)
        if not counts(db, key):
            with WRITING:
                self._txn.put(key, row, db=self._handles[db])
            return
        with WRITING:
            before = self._txn.replace(key, row, db=self._handles[db])
        self._count(db, seal_number(row) - (0 if before is None else seal_number(before)))

    def put_many(
        self,
        db: Database,
        pairs: Iterable[tuple[bytes, bytes]],
        *,
        fresh: bool = False,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """Set many at once.

        Args:
            db: where.
            pairs: keys, each once, and values.
            fresh: none of them may be there yet; always so in a database with many values.
            before: for each key the value that it has now, None for none, if the caller has read
                them all in this transaction.

        Raises:
            DataDirError: a fresh one is there: what says that it can't be is damaged.
        """
        self.dirty = True
        rows, change = sealed(pairs)
        fresh = fresh or db.many
        missing = 0
        with WRITING, self._txn.cursor(self._handles[db]) as cursor:
            if fresh:
                missing = len(rows) - cursor.putmulti(rows, dupdata=False, overwrite=db.many)[1]
            else:
                if db in self._ledger.sums:
                    change -= self._replaced(cursor, rows, before)
                cursor.putmulti(rows)
        if missing:
            raise damaged(f"the database '{db.name.decode()}' holds a row of a time to come")
        self._count(db, change)

    def _replaced(
        self,
        cursor: "lmdb.Cursor[bytes]",
        rows: list[tuple[bytes, bytes]],
        before: Mapping[bytes, bytes | None] | None,
    ) -> int:
        """Sum of the checksums of the rows that these take the place of."""
        if before is None:
            return sum(seal_number(row) for _, row in cursor.getmulti([key for key, _ in rows]))
        gone = 0
        for key, _ in rows:
            if (value := before[key]) is not None:
                gone += row_digest(key, value)
        return gone

    def delete(self, db: Database, key: bytes) -> bool:
        """Remove `key`; False if there was none."""
        self.dirty = True
        with WRITING:
            row = self._txn.pop(key, db=self._handles[db])
        if row is None:
            return False
        self._count(db, -seal_number(row))
        return True

    def delete_value(self, db: Database, key: bytes, value: bytes) -> bool:
        """Remove one value of `key`, of a database with many; False if there was none."""
        self.dirty = True
        row = seal(key, value)
        with WRITING:
            found = self._txn.delete(key, row, db=self._handles[db])
        if found:
            self._count(db, -seal_number(row))
        return found

    def clear(self, db: Database) -> None:
        """Remove all rows of `db`."""
        self.dirty = True
        with WRITING:
            self._txn.drop(self._handles[db], delete=False)
        if db in self._ledger.sums:
            self._ledger.sums[db] = 0

    def settle_digests(self, *, store: bool) -> None:
        """Last thing before a commit: the state names the digests of its rows.

        Args:
            store: whether all who may open this state know what the row means.
        """
        self._ledger.settle(self.number)
        if store and self._ledger.known:
            self.put(META, DIGESTS_KEY, encode_digests(self._ledger.sums))

    def commit(self) -> None:
        """Make it durable, with a sync."""
        with WRITING:
            self._txn.commit()

    def abort(self) -> None:
        """Nothing of it stays."""
        self._txn.abort()
