"""What the rooms above ask of storage; LMDB is one answer, the in-memory fake of the tests another.

Two parts: the state, in databases, and the log with the hard state. What a `WriteTxn` holds becomes
visible and durable as a whole with `Storage.commit`, what was appended to the log with `Log.sync`,
each as a whole or not at all. The log is the one that is durable first: a crash of the machine may
undo the newest commit of the state.

Invariant: the log that belongs to a state holds every entry behind the last-but-one commit of it.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from kvserver.storage.digest import Digests
from kvserver.storage.schema import Database

LogEntry = tuple[bytes, int, int]
"""Payload, index, term."""


class Log(Protocol):
    """The log and the hard state. One thread does everything but `check`."""

    first_index: int
    """Of the oldest entry kept."""
    state: bytes
    """Newest hard state that was synced."""

    @property
    def last_index(self) -> int:
        """Of the newest entry, synced or not."""
        ...

    @property
    def size(self) -> int:
        """Bytes that the synced entries from the first on take."""
        ...

    def entry_bytes(self, index: int) -> int:
        """Bytes that a synced entry takes."""
        ...

    def read(self, index: int) -> LogEntry:
        """The entry at an index from the first to the last.

        Raises:
            DataDirError: it is damaged.
        """
        ...

    def append(self, entry: LogEntry) -> None:
        """Put an entry at its index; what was there and behind it is gone. Durable by `sync`."""
        ...

    def sync(self, state: bytes) -> None:
        """Make what was appended, and the hard state, durable: all of it or nothing.

        Raises:
            DiskError: the log must not be used any more.
        """
        ...

    def trim(self, first: int) -> None:
        """Entries before `first` are not needed any more."""
        ...

    def check(self) -> Iterator[int]:
        """Read all that is synced, a slice of bounded size at a time; from any thread.

        Yields:
            How many records of it were sound.

        Raises:
            DataDirError: one is damaged.
        """
        ...


class ReadTxn(Protocol):
    """A consistent view. Keys are ordered bytewise, intervals are half-open: `[lo, hi)`.

    Whatever reads raises DataDirError when it meets damage: a row that is returned is as written.
    """

    def get(self, db: Database, key: bytes) -> bytes | None:
        """Value of `key`, None if there is none."""
        ...

    def holds(self, db: Database) -> bool:
        """False for a database that is younger than a copy which is only read: it has no rows."""
        ...

    def get_many(self, db: Database, keys: Collection[bytes]) -> dict[bytes, bytes]:
        """Values of those of `keys` that exist: one call into the engine."""
        ...

    def scan(
        self, db: Database, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with `lo <= key < hi` in key order; `hi` None means no upper bound.

        A scan is abandoned by the first change of the same transaction: collect before changing.
        """
        ...

    def values(
        self, db: Database, key: bytes, lo: bytes = b"", hi: bytes | None = None
    ) -> Iterator[bytes]:
        """Values of `key` with `lo <= value < hi` in order, of a database with many."""
        ...

    def finds_value(self, db: Database, key: bytes, value: bytes) -> bool:
        """Whether a lookup finds this value of `key`, of a database with many."""
        ...

    def entries(self, db: Database) -> int:
        """How many rows `db` counts."""
        ...

    def last_value(self, db: Database, key: bytes, hi: bytes) -> bytes | None:
        """Greatest value of `key` below `hi`, of a database with many; None if there is none."""
        ...

    def digests(self) -> Digests | None:
        """Digests of all replicated databases but META, as this transaction sees them (digest.py).

        None if the state was written by a version that kept none, and nobody has counted since.
        """
        ...

    def size_of(self, db: Database) -> int:
        """Bytes of the pages that the rows of `db` take, about."""
        ...

    def keys(self, db: Database, lo: bytes = b"", hi: bytes | None = None) -> Iterator[bytes]:
        """Keys with `lo <= key < hi` in order, each once, without touching their values."""
        ...


class WriteTxn(ReadTxn, Protocol):
    """The one open write transaction; sees its own changes."""

    def put(self, db: Database, key: bytes, value: bytes) -> None:
        """Set `key`, 1 to 511 bytes, to `value`."""
        ...

    def put_many(
        self,
        db: Database,
        pairs: Iterable[tuple[bytes, bytes]],
        *,
        fresh: bool = False,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """Set many at once: one call into the engine, a second one to see what they replace.

        Args:
            db: where.
            pairs: keys, each once, and values.
            fresh: none of them may be there yet, as always in a database with many values; spares
                the second call.
            before: for each key the value that it has now, None for none, if the caller has read
                them all in this transaction; spares it too.

        Raises:
            DataDirError: a fresh one is there.
        """
        ...

    def delete(self, db: Database, key: bytes) -> bool:
        """Remove `key`; False if there was none."""
        ...

    def delete_value(self, db: Database, key: bytes, value: bytes) -> bool:
        """Remove one value of `key`, of a database with many; False if there was none."""
        ...

    def clear(self, db: Database) -> None:
        """Remove all rows of `db`."""
        ...


class Storage(Protocol):
    """State and log. The write side belongs to a single thread; reads may come from any."""

    def writer(self) -> WriteTxn:
        """The open write transaction of this turn, begun on first use."""
        ...

    def keep_digests(self) -> None:
        """From the next commit on the state names the digests of its databases, once known."""
        ...

    def commit(self, *, durable: bool = False) -> bool:
        """Make the open changes visible and lasting; False if there were none.

        A crash of the machine may take the newest commit back, as a whole, but none before it; with
        `durable` not this one either.

        Raises:
            DiskError: nothing of it is kept; the storage must not be used any more.
        """
        ...

    @property
    def log(self) -> Log:
        """The log that belongs to this state.

        Raises:
            DataDirError: it is damaged, or there is none.
        """
        ...

    def begin_log(self, state: bytes, entries: Sequence[LogEntry]) -> None:
        """Make a new log, durably, with a hard state and at least one entry.

        It is the log of this state, in place of any other, from the next commit on, which is
        durable.
        """
        ...

    def read(self) -> AbstractContextManager[ReadTxn]:
        """A view of the last commit. Keep it short: it pins old pages and lets the file grow."""
        ...

    def size(self) -> tuple[int, int]:
        """Bytes of the file, and of it in use."""
        ...


class StateCopy(Protocol):
    """A finished copy of an environment, as bytes."""

    number: int
    """Tells copies apart."""
    total: int
    digest: bytes
    """sha256."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on.

        Raises:
            SnapshotFailedError: the disk does not give them.
        """
        ...


class Backup(StateCopy, Protocol):
    """A copy of the replicated databases alone, in a file that is gone when it is closed."""

    def close(self) -> None:
        """It is not read any more."""
        ...


MakeBackup = Callable[[threading.Event], Backup]
"""Makes one of the newest commit; slow, from any thread; gives up soon after the event is set.

Raises:
    SnapshotFailedError, DataDirError, StoppedError: it could not; the state is damaged; given up.
"""


class Copies(Protocol):
    """Copies of a node's environment that go out, and those of others that come in.

    All calls from the thread that writes; what takes long happens elsewhere.
    """

    def begin_copy(self) -> bool:
        """Start to make a copy of the newest commit; nothing if one is there or being made.

        Returns:
            Whether there will be one: not for a while if that failed, or if what was ended is still
            being made.
        """
        ...

    def copy(self) -> StateCopy | None:
        """The copy, None while it is being made, or if there is none."""
        ...

    def end_copy(self) -> None:
        """The copy is not needed any more, made or not; what is begun later is a newer one."""
        ...

    def fail_copy(self) -> None:
        """The copy can't be read; another one may be begun in a while."""
        ...

    def receive(self, copy: int, offset: int, total: int, data: bytes) -> int:
        """Keep a part of a foreign copy; a new one replaces an older one.

        Returns:
            The offset of the first byte that is missing; 0 for a while if there is no room.
        """
        ...

    def forget_silent(self) -> None:
        """Let go of a foreign copy of which nothing came for long. To be called now and then."""
        ...

    def begin_opening(self, digest: bytes) -> None:
        """All parts are there: check, sync and open them."""
        ...

    def opened(self) -> Storage | None:
        """The environment of a received copy, once; None while that is not ready."""
        ...

    @property
    def opening(self) -> bool:
        """True from `begin_opening` until `opened` has given the result, or it failed."""
        ...

    def begin_compacting(self) -> None:
        """Start to make and open a compact copy of the newest commit, for this node itself."""
        ...

    def compacted(self) -> Storage | None:
        """That copy, once; None while it is not ready. It has no log."""
        ...

    @property
    def compacting(self) -> bool:
        """True from `begin_compacting` until `compacted` has given the result, or it failed."""
        ...

    def replace(self, fresh: Storage) -> None:
        """From now on the node's storage, the same object, is what `fresh` holds, durably.

        Unlike with `adopt` its log stays the same one.

        Raises:
            DefragmentFailedError: everything is as before; `fresh` is good for nothing.
            DiskError: it is not known what is durable.
        """
        ...

    def reject(self, fresh: Storage) -> None:
        """What was received, or compacted, is not needed after all."""
        ...

    def adopt(self, fresh: Storage) -> None:
        """From now on the node's storage, the same object, is what `fresh` holds, durably.

        Raises:
            DiskError: the process must start over from what is on disk.
        """
        ...
