"""The storage of a node: one write transaction at a time, short reads, and the log beside them.

A commit flushes its pages, but not yet the root page that names them: that is flushed with the next
commit. So a crash of the machine may undo the newest commit, as a whole, and never more; what was
taken back is applied again from the log. A crash of the process undoes nothing.

Invariant: after a failed write or commit nothing more is written; the process starts over from
disk.
"""

import contextlib
import secrets
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from kvserver.errors import NodeError, StoppedError
from kvserver.storage.contract import LogEntry
from kvserver.storage.digest import DIGESTED, Digests, Ledger
from kvserver.storage.environment import Environment, name_format
from kvserver.storage.log_files import LogFiles, create_log, open_log
from kvserver.storage.rows import damaged
from kvserver.storage.schema import (
    DATABASES,
    HISTORY,
    IDENTITY,
    KEY_HISTORY,
)
from kvserver.storage.txn import READING, WRITING, LmdbReadTxn, LmdbWriteTxn

_LOG_KEY: Final = b"log"
_LOG: Final = struct.Struct(">QQ")
"""Lineage of the log that belongs to the state; a batch of it that was synced before the commit."""


class _Read:
    """Context of one read transaction."""

    __slots__ = ("_storage", "_txn", "environment")

    def __init__(self, storage: "LmdbStorage") -> None:
        self._storage = storage

    def __enter__(self) -> LmdbReadTxn:
        while not self._storage.closed:  # another environment may take over meanwhile
            self.environment = self._storage._environment  # noqa: SLF001 - a part of it
            txn = self.environment.begin_read()
            if txn is not None:
                self._txn = txn
                return LmdbReadTxn(txn, self.environment.handles)
        raise StoppedError

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.environment.end_read(self._txn)


class LmdbStorage:
    """One environment, opened once per process; never crosses a fork."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open, or create, the environment in `folder`.

        Args:
            folder: where it lives; with `read_only` the file of one that nobody changes.
            read_only: nothing is written, not even who reads.

        Raises:
            DataDirError: it is damaged, not LMDB's, or of another format.
            AccessError: this process may not open it.
            DiskError: there is no room to open it, or the system is short of something.
        """
        self._environment = Environment(folder, read_only=read_only)
        self._open: LmdbWriteTxn | None = None
        self._failed = False
        self.closed = False
        self._log: LogFiles | None = None
        """None until it is asked for."""
        self._next_log: LogFiles | None = None
        """Takes its place with the next commit."""
        self._synced = 0
        """Batch of the log that the newest commit names."""
        self._ledger = self._open_ledger()
        self._keeps_digests = self._ledger.known and not self._environment.fresh

    @property
    def folder(self) -> Path:
        """Where the environment lives."""
        return self._environment.folder

    def _open_ledger(self) -> Ledger:
        if self._environment.fresh:
            return Ledger(dict.fromkeys(DIGESTED, 0))
        with self.read() as txn:
            return Ledger(txn.digests(), txn.number)

    def keep_digests(self) -> None:
        """From the next commit on the state names its digests, as soon as they are known.

        Not before all versions that may open it keep them too: else they would look like damage.
        """
        self._keeps_digests = True

    @property
    def digests_known(self) -> bool:
        """Whether the digests of this state are known, from the state or by counting its rows."""
        return self._ledger.known

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Within it somebody counts the rows as of a commit, to learn unknown digests."""
        ledger = self._ledger
        ledger.counting = True
        try:
            yield
        finally:
            ledger.counting = False

    def learn_digests(self, folder: Path, transaction: int, counted: Digests) -> None:
        """Take over what was counted of a state that named none.

        Args:
            folder: of the environment that was read; of another one nothing is learned.
            transaction: the commit that was read.
            counted: sums over all of its rows.
        """
        if folder == self.folder:
            self._ledger.learn(transaction, counted)

    @property
    def fresh(self) -> bool:
        """True if this process made the environment: nothing in it can be damaged yet."""
        return self._environment.fresh

    def writer(self) -> LmdbWriteTxn:
        """The open write transaction of this turn, begun on first use."""
        if self._open is None:
            assert not self._failed, "a failed storage is not used again"
            environment = self._environment
            with READING:
                txn = environment.lmdb.begin(write=True)
            self._open = LmdbWriteTxn(txn, environment.handles, self._ledger)
        return self._open

    def commit(self, *, durable: bool = False) -> bool:
        """Make the open changes visible and lasting; False if there were none."""
        self._name_log()
        txn = self._open
        if txn is None:
            return False
        self._open = None
        if not txn.dirty:
            txn.abort()
            return False
        try:
            txn.settle_digests(store=self._keeps_digests)
            txn.commit()
            if durable or self._next_log is not None:
                with WRITING:
                    self._environment.lmdb.sync(True)
        except NodeError:
            self._failed = True
            raise
        self._take_next_log()
        return True

    def _name_log(self) -> None:
        """The commit names the log that belongs to it, and how much of that is on disk already."""
        log = self._next_log or self._log
        if log is not None and (log is self._next_log or log.synced != self._synced):
            self.writer().put(IDENTITY, _LOG_KEY, _LOG.pack(log.lineage, log.synced))
            self._synced = log.synced

    def _take_next_log(self) -> None:
        if self._next_log is not None:
            old, self._log, self._next_log = self._log, self._next_log, None
            if old is not None:
                old.remove()

    @property
    def log(self) -> LogFiles:
        """The log that belongs to this state."""
        if self._log is None:
            with self.read() as txn:
                row = txn.get(IDENTITY, _LOG_KEY)
            if row is None:
                raise damaged(f"{self.folder} names no log")
            lineage, self._synced = _LOG.unpack(row)
            self._log = open_log(self.folder, lineage, self._synced)
        return self._log

    def begin_log(self, state: bytes, entries: Sequence[LogEntry]) -> None:
        """Make a new log, durably; it belongs to this state from the next commit on."""
        assert self._next_log is None, "one at a time"
        lineage = secrets.randbits(63) | 1 << 63
        self._next_log = create_log(self.folder, lineage, state, entries)

    def read(self) -> _Read:
        """A view of the last commit."""
        return _Read(self)

    def copy_to(self, folder: Path) -> None:
        """Write a compact copy of the last commit into an empty folder. From any thread; slow."""
        reading = self.read()
        with reading, READING:  # the reader keeps it open meanwhile
            reading.environment.lmdb.copy(str(folder), compact=True)

    def link_log(self, fresh: "LmdbStorage") -> None:
        """Let `fresh`, which holds what this one does, have the same log, durably.

        Raises:
            DiskError: `fresh` must not be used any more; nothing has changed for this one.
        """
        self.log.link_into(fresh.folder)
        fresh._log, fresh._synced = self.log, 0  # noqa: SLF001 - one of its kind
        try:
            fresh.commit(durable=True)  # names it
        finally:
            fresh._log = None  # noqa: SLF001 - it is closed with this one, and only with this one

    def take_over(self, fresh: "LmdbStorage") -> None:
        """Be what `fresh` is, which must not be used by itself any more. Between turns."""
        assert self._open is None, "an open transaction belongs to the old environment"
        if fresh._log is None:  # noqa: SLF001 - this one's was linked to it
            self.log.move(fresh.folder)
        else:
            if self._log is not None:
                self._log.close()
            self._log = fresh._log  # noqa: SLF001
        self._synced = fresh._synced  # noqa: SLF001
        self._ledger, self._keeps_digests = fresh._ledger, fresh._keeps_digests  # noqa: SLF001
        old, self._environment = self._environment, fresh._environment  # noqa: SLF001
        old.retire(remove=True)

    def size(self) -> tuple[int, int]:
        """Bytes of the file, and of it in use by rows."""
        reading = self.read()
        with reading as txn:  # a file that was replaced meanwhile is there until its readers end
            sizes = {
                each: txn.size_of(each)
                for each in DATABASES if each.replicated and txn.holds(each)
            }  # fmt: skip
            size = reading.environment.size
        # The engine goes on counting the last page of a key's values after it has deleted the key,
        # so the count of this one says little. Each of its values has a row in HISTORY that is no
        # smaller: it hardly takes more than twice as much.
        if KEY_HISTORY in sizes:
            sizes[KEY_HISTORY] = min(sizes[KEY_HISTORY], 2 * sizes[HISTORY], size)
        used = sum(sizes.values())
        if used - sizes.get(KEY_HISTORY, 0) > size:
            raise damaged(f"{self.folder}: its databases count {used} bytes in a file of {size}")
        return size, min(used, size)

    def forget_node(self) -> None:
        """Keep only what is replicated, durably: the storage is a copy that leaves its cluster."""
        writer = self.writer()
        for database in DATABASES:
            if not database.replicated:
                writer.clear(database)
        name_format(writer)
        self.commit(durable=True)

    def close(self, *, remove: bool = False) -> None:
        """Drop what is not committed, and close with the last reader. From the writing thread.

        Args:
            remove: the files are not needed any more.
        """
        if self._open is not None:
            self._open.abort()
            self._open = None
        for log in (self._log, self._next_log):
            if log is not None:
                log.close()
        self.closed = True
        self._environment.retire(remove=remove)
