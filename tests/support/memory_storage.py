"""In-memory storage with the one property that matters: what is not committed does not survive.

`commit` makes the open transaction durable as a whole, `sync` what was appended to the log; `crash`
forgets what is open; `fail_next_commit` and `fail_next_sync` are a disk that gives up. With
`back=True` a crash takes the newest commit back, as one of the machine may.
"""

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from support.memory_table import Name, Table

from kvserver.errors import DefragmentFailedError, DiskError
from kvserver.storage.contract import LogEntry, Storage
from kvserver.storage.digest import DIGESTED, Digests
from kvserver.storage.rows import damaged
from kvserver.storage.schema import DATABASES, IDENTITY, Database

Undo = tuple[Database, Name, bytes | None]
"""A row, and what was there before."""


class MemoryTxn:
    """Changes in place; remembers what to put back."""

    def __init__(self, tables: dict[Database, Table]) -> None:
        self._tables = tables
        self.undo: list[Undo] = []

    @property
    def dirty(self) -> bool:
        return bool(self.undo)

    def get(self, db: Database, key: bytes) -> bytes | None:
        assert not db.many
        return self._tables[db].rows.get(key)

    def get_many(self, db: Database, keys: Collection[bytes]) -> dict[bytes, bytes]:
        found = {key: self.get(db, key) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def scan(
        self, db: Database, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        table = self._tables[db]
        start = bisect_left(table.order, (lo, b"") if db.many else lo)
        end: Name | None = (hi, b"") if db.many and hi is not None else hi
        stop = len(table.order) if end is None else bisect_left(table.order, end)
        positions = range(stop - 1, start - 1, -1) if reverse else range(start, stop)
        for position in positions:
            name = table.order[position]
            yield name if db.many else (name, table.rows[name])

    def keys(self, db: Database, lo: bytes = b"", hi: bytes | None = None) -> Iterator[bytes]:
        last = None
        for key, _ in self.scan(db, lo, hi):
            if key != last:
                yield key
            last = key

    def values(
        self, db: Database, key: bytes, lo: bytes = b"", hi: bytes | None = None
    ) -> Iterator[bytes]:
        for _, value in self.scan(db, key, key + b"\0"):
            if lo <= value and (hi is None or value < hi):
                yield value

    def finds_value(self, db: Database, key: bytes, value: bytes) -> bool:
        return (key, value) in self._tables[db].rows

    def entries(self, db: Database) -> int:
        return len(self._tables[db].rows)

    def last_value(self, db: Database, key: bytes, hi: bytes) -> bytes | None:
        return max(self.values(db, key, b"", hi), default=None)

    def put(self, db: Database, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= 511
        name: Name = (key, value) if db.many else key
        assert not db.many or len(value) <= 511
        self.undo.append((db, name, self._tables[db].rows.get(name)))
        self._tables[db].put(name, b"" if db.many else value)

    def put_many(
        self,
        db: Database,
        pairs: Iterable[tuple[bytes, bytes]],
        *,
        fresh: bool = False,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        for key, value in pairs:
            if before is not None:
                assert before[key] == self.get(db, key)
            if (fresh or db.many) and ((key, value) if db.many else key) in self._tables[db].rows:
                raise damaged(f"a row of a time to come in {db.name.decode()}")
            self.put(db, key, value)

    def digests(self) -> Digests:
        return {db: self._tables[db].digest for db in DIGESTED}

    def delete(self, db: Database, key: bytes) -> bool:
        assert not db.many
        return self._delete(db, key)

    def delete_value(self, db: Database, key: bytes, value: bytes) -> bool:
        return self._delete(db, (key, value))

    def _delete(self, db: Database, name: Name) -> bool:
        old = self._tables[db].rows.get(name)
        if old is None:
            return False
        self.undo.append((db, name, old))
        self._tables[db].delete(name)
        return True

    def clear(self, db: Database) -> None:
        for name in list(self._tables[db].order):
            self._delete(db, name)

    def holds(self, db: Database) -> bool:
        return True

    def size_of(self, db: Database) -> int:
        return sum(len(key) + len(row) for key, row in self.scan(db))

    def without_changes(self, look: Callable[[], bytes]) -> bytes:
        """What `look` sees with the open changes put aside."""
        mine = [(db, key, self._tables[db].rows.get(key)) for db, key, _ in self.undo]
        undo = list(self.undo)
        self.roll_back()
        seen = look()
        for db, key, value in mine:
            if value is not None:
                self._tables[db].put(key, value)
            elif key in self._tables[db].rows:
                self._tables[db].delete(key)
        self.undo = undo
        return seen

    def roll_back(self) -> None:
        for db, key, old in reversed(self.undo):
            if old is None:
                self._tables[db].delete(key)
            else:
                self._tables[db].put(key, old)
        self.undo.clear()


class MemoryLog:
    """The log: what is synced, what waits, and how to take the newest sync back."""

    def __init__(self, owner: "MemoryStorage", state: bytes, entries: Sequence[LogEntry]) -> None:
        assert entries
        self._owner = owner
        self.state = state
        self.entries: dict[int, LogEntry] = {entry[1]: entry for entry in entries}
        """Synced, without gaps."""
        self.first_index = entries[0][1]
        self._synced_last = entries[-1][1]
        self._pending: list[LogEntry] = []
        self.syncs = 0

    @property
    def last_index(self) -> int:
        return self._pending[-1][1] if self._pending else self._synced_last

    @property
    def size(self) -> int:
        return sum(self.entry_bytes(index) for index in self.entries)

    def entry_bytes(self, index: int) -> int:
        return len(self.entries[index][0]) + 24

    def read(self, index: int) -> LogEntry:
        if self._pending and index >= self._pending[0][1]:
            return self._pending[index - self._pending[0][1]]
        return self.entries[index]

    def append(self, entry: LogEntry) -> None:
        assert self.first_index < entry[1] <= self.last_index + 1
        self._pending = [each for each in self._pending if each[1] < entry[1]]
        self._pending.append(entry)

    def sync(self, state: bytes) -> None:
        self._owner.before_sync()
        before = (dict(self.entries), self._synced_last, self.state)
        if self._pending:
            for index in range(self._pending[0][1], self._synced_last + 1):
                del self.entries[index]
            self.entries |= {entry[1]: entry for entry in self._pending}
            self._synced_last = self._pending[-1][1]
        self.state = state
        self._pending = []
        self.syncs += 1

        def undo() -> None:
            self.entries, self._synced_last, self.state = before

        self._owner.after_sync(undo)

    def trim(self, first: int) -> None:
        before = self.first_index
        gone = {index: self.entries.pop(index) for index in range(before, first)}
        self.first_index = first

        def undo() -> None:
            self.entries, self.first_index = gone | self.entries, before

        self._owner.after_trim(undo)

    def forget_pending(self) -> None:
        self._pending = []

    def check(self) -> Iterator[int]:
        yield from ()


class MemoryStorage:
    """A disk that lives as long as the test."""

    def __init__(self) -> None:
        self._tables = {db: Table() for db in DATABASES}
        self._open: MemoryTxn | None = None
        self._newest: list[Undo] = []
        """What undoes the newest commit."""
        self._log: MemoryLog | None = None
        self._next_log: MemoryLog | None = None
        self.commits = 0
        self.fail_next_commit = False
        self.fail_next_sync = False
        self.die_after_commit = False
        """Power is lost right after the next commit: durable, but nobody is told."""
        self.die_after_sync = False
        """The same, of the log."""
        self.rejected = False
        """It was a copy, and is gone."""

    def writer(self) -> MemoryTxn:
        assert not self.rejected, "its files are gone"
        if self._open is None:
            self._open = MemoryTxn(self._tables)
        return self._open

    def keep_digests(self) -> None:
        """They are always kept."""

    def commit(self, *, durable: bool = False) -> bool:
        txn, self._open = self._open, None
        if txn is None or not txn.dirty:
            return False
        if self.fail_next_commit:
            self.fail_next_commit = False
            txn.roll_back()
            raise DiskError("scripted failure")
        self.commits += 1
        self._newest = [] if durable or self._next_log else list(txn.undo)
        if self._next_log is not None:
            self._log, self._next_log = self._next_log, None
        if self.die_after_commit:
            self.die_after_commit = False
            raise DiskError("scripted power loss")
        return True

    # ------------------------------------------------------------------ the log

    @property
    def log(self) -> MemoryLog:
        if self._log is None:
            raise damaged("there is no log")
        return self._log

    def begin_log(self, state: bytes, entries: Sequence[LogEntry]) -> None:
        self._next_log = MemoryLog(self, state, entries)
        self.writer().put(IDENTITY, b"log", b"")

    def before_sync(self) -> None:
        if self.fail_next_sync:
            self.fail_next_sync = False
            raise DiskError("scripted failure")

    def after_sync(self, undo: Callable[[], None]) -> None:
        if self.die_after_sync:
            self.die_after_sync = False
            raise DiskError("scripted power loss")

    def after_trim(self, undo: Callable[[], None]) -> None:
        """Somebody may want to know."""

    def obey(self) -> None:
        """No scripted failure any more."""
        self.fail_next_commit = self.fail_next_sync = False
        self.die_after_commit = self.die_after_sync = False

    def crash(self, *, back: bool = False) -> None:
        """Lose what is not committed, and the newest commit too if it is to go `back`."""
        if self._open is not None:
            self._open.roll_back()
            self._open = None
        if back:
            self._tables_back(self._newest)
        self._newest = []
        self._next_log = None
        if self._log is not None:
            self._log.forget_pending()

    def _tables_back(self, undo: "list[Undo]") -> None:
        txn = MemoryTxn(self._tables)
        txn.undo = list(undo)
        txn.roll_back()

    @contextmanager
    def read(self) -> Iterator[MemoryTxn]:
        if self._open is None or not self._open.dirty:
            yield MemoryTxn(self._tables)
        else:
            yield MemoryTxn(MemoryStorage.decoded(self.encoded())._tables)

    def size(self) -> tuple[int, int]:
        used = sum(MemoryTxn(self._tables).size_of(db) for db in DATABASES if db.replicated)
        return used, used

    def encoded(self) -> bytes:
        """All committed rows as bytes."""
        if self._open is not None:
            return self._open.without_changes(self.encoded_now)
        return self.encoded_now()

    def encoded_now(self) -> bytes:
        parts = []
        for number, db in enumerate(DATABASES):
            for key, row in MemoryTxn(self._tables).scan(db):
                parts += [struct.pack("<BII", number, len(key), len(row)), key, row]
        return b"".join(parts)

    @classmethod
    def decoded(cls, encoded: bytes) -> "MemoryStorage":
        storage, position = cls(), 0
        while position < len(encoded):
            number, key_size, row_size = struct.unpack_from("<BII", encoded, position)
            position += 9
            key = encoded[position : position + key_size]
            position += key_size
            MemoryTxn(storage._tables).put(
                DATABASES[number], key, encoded[position : position + row_size]
            )
            position += row_size
        return storage

    def become(self, fresh: "MemoryStorage") -> None:
        self._tables = fresh._tables
        self._newest = []
        self._log = fresh.log
        self._log._owner = self


class MemoryCopy:
    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self.total = len(encoded)
        self.digest = hashlib.sha256(encoded).digest()
        self.number = int.from_bytes(self.digest[:8], "big")

    def read(self, offset: int, size: int) -> bytes:
        return self._encoded[offset : offset + min(size, self.total // 3 + 1)]


class MemoryCopies:
    """Copies take some turns to be made and to be opened, as in production."""

    COMPACT_TURNS = 3

    def __init__(self, storage: MemoryStorage, turns: int = 3) -> None:
        self._storage = storage
        self._turns = turns
        self._copy: MemoryCopy | None = None
        self._copy_in = 0
        self._unwanted = False
        """What is being made can't be stopped: it is thrown away when it is ready."""
        self._number = 0
        self._arrived = bytearray()
        self._opened: MemoryStorage | None = None
        self._open_in = 0
        self.opening = False
        self.fail_next_opening = False
        self.failing = False
        """No copy can be made."""
        self.compacting = False
        self.rejected = 0
        self._compact_in = 0
        self._compacted: MemoryStorage | None = None

    def begin_copy(self) -> bool:
        if self._unwanted:
            self._copy_in -= 1
            if self._copy_in:
                return False
            self._copy, self._unwanted = None, False
        if self.failing:
            return False
        if self._copy is None:
            self._copy = MemoryCopy(self._storage.encoded())
            self._copy_in = self._turns
        return True

    def copy(self) -> MemoryCopy | None:
        if self._copy_in and not self._unwanted:
            self._copy_in -= 1
        return None if self._copy_in else self._copy

    def end_copy(self) -> None:
        if self._copy_in:
            self._unwanted = True
        else:
            self._copy = None

    def fail_copy(self) -> None:
        self.end_copy()

    def forget_silent(self) -> None:
        pass

    def receive(self, copy: int, offset: int, total: int, data: bytes) -> int:
        if copy != self._number:
            if offset:
                return 0
            self._number, self._arrived = copy, bytearray()
        if offset == len(self._arrived):
            self._arrived += data
        return len(self._arrived)

    def begin_opening(self, digest: bytes) -> None:
        arrived, self._number = bytes(self._arrived), 0
        if self.fail_next_opening or hashlib.sha256(arrived).digest() != digest:
            self.fail_next_opening = False
            return
        self._opened = MemoryStorage.decoded(arrived)
        self.opening, self._open_in = True, self._turns

    def opened(self) -> MemoryStorage | None:
        self._open_in -= 1
        if self._open_in > 0:
            return None
        fresh, self._opened = self._opened, None
        self.opening = False
        return fresh

    def begin_compacting(self) -> None:
        assert not self.compacting
        self.compacting, self._compact_in = True, self.COMPACT_TURNS

    def compacted(self) -> MemoryStorage | None:
        if not self.compacting:
            return None
        self._compact_in -= 1
        if self._compact_in == self.COMPACT_TURNS - 1:
            self._compacted = MemoryStorage.decoded(self._storage.encoded())
        if self._compact_in > 0:
            return None
        self.compacting = False
        return self._compacted

    def replace(self, fresh: Storage) -> None:
        assert isinstance(fresh, MemoryStorage)
        try:
            fresh.commit(durable=True)
        except DiskError as error:
            raise DefragmentFailedError from error
        fresh._log = self._storage.log
        self._storage.become(fresh)

    def reject(self, fresh: Storage) -> None:
        assert isinstance(fresh, MemoryStorage)
        fresh.rejected = True
        self.rejected += 1

    def adopt(self, fresh: Storage) -> None:
        assert isinstance(fresh, MemoryStorage)
        self._storage.become(fresh)
