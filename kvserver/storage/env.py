"""The LMDB environment: one write transaction at a time, short reads, and the log beside them.

A commit flushes its pages, but not yet the root page that names them: that is flushed with the next
commit. So a crash of the machine may undo the newest commit, as a whole, and never more; what was
taken back is applied again from the log. A crash of the process undoes nothing.

Invariant: after a failed write or commit nothing more is written; the process starts over from
disk.
"""

import os
import secrets
import shutil
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import lmdb

from kvserver.errors import DataDirError, NodeError, StoppedError
from kvserver.storage.contract import LogEntry
from kvserver.storage.digest import DIGESTED, Digests, Ledger
from kvserver.storage.log_files import LogFiles, create_log, open_log
from kvserver.storage.rows import damaged
from kvserver.storage.schema import (
    DATABASES,
    FORMAT_VERSION,
    GENERATION,
    IDENTITY,
    Database,
)
from kvserver.storage.trouble import trouble
from kvserver.storage.txn import READING, WRITING, Handles, LmdbReadTxn, LmdbWriteTxn

_ENGINE: Final = 0
"""LMDB 0.9: pinned here, since the wheel holds two engines and their files differ."""

MAP_BYTES: Final = 64 << 30
"""Address space, not memory: far above any quota, so that a full map never decides anything."""

_READERS_MAX: Final = 1024
_LOCK_FILE_BYTES: Final = (_READERS_MAX + 64) * 64
"""A cache line for each reader, and some for the head."""

_FORMAT_KEY: Final = b"format"
_FORMAT: Final = struct.Struct(">I")
_GENERATION_KEY: Final = b"generation"
_GENERATION: Final = struct.Struct(">I")
_GENERATION_UNNAMED: Final = 2  # of environments without that row

_LOG_KEY: Final = b"log"
_LOG: Final = struct.Struct(">QQ")
"""Lineage of the log that belongs to the state; a batch of it that was synced before the commit."""

_IN_ORDER: Final = (IDENTITY, *(each for each in DATABASES if each is not IDENTITY))
"""The one with the version comes first: another version may have other databases."""

_COMMIT: Final = struct.Struct("=Q")
_COMMIT_AT: Final = 144
"""Where a root page ("meta page") keeps the number of its commit."""


class _Environment:
    """An open environment, and who still reads in it."""

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        """Open, or create.

        Args:
            folder: of the environment; with `read_only` its file.
            read_only: leave the file as it is.

        Raises:
            DataDirError: it is damaged, not LMDB's, or of another format.
            AccessError: this process may not open it.
            DiskError: there is no room to open it, or the system is short of something.
        """
        self.folder = folder
        self._file = folder if read_only else folder / "data.mdb"
        self.fresh = False
        """It was empty: nothing in it is older than this object."""
        self._readers = 0
        self._retired = False
        self._removed = False
        self._lock = threading.Lock()
        try:
            if not read_only:
                _allocate_lock_file(folder)
            self.lmdb = lmdb.open(
                str(folder),
                map_size=MAP_BYTES,
                max_dbs=len(DATABASES) + 32,
                max_readers=_READERS_MAX,
                max_spare_txns=16,
                metasync=False,
                mode=0o600,
                lib_version=_ENGINE,
                readonly=read_only,
                lock=not read_only,
                subdir=not read_only,
            )
            try:
                self._check_length()
                self._check_roots()
                if read_only:
                    self.handles = self._databases_as_they_are()
                else:
                    with self.lmdb.begin(write=True) as txn:
                        self.handles = self._databases(txn)
                    self.lmdb.sync(True)  # what is seen from here on is durable
            except BaseException:
                self.lmdb.close()
                raise
        except (lmdb.Error, OSError) as error:
            raise trouble("the database can't be opened", folder, error) from error

    def _check_length(self) -> None:
        """A file shorter than its last page was chopped: reading it would end the process."""
        pages = self.lmdb.info()["last_pgno"] + 1
        wanted = pages * self.lmdb.stat()["psize"]
        found = self.size
        # a new environment has no file content beyond its two meta pages
        if found < wanted:
            raise damaged(
                f"{self._file} is {found} bytes long but should be at least {wanted}: "
                "it was cut off"
            )

    def _check_roots(self) -> None:
        """The last two commits have a root page each; with one damaged the other would be believed.

        That would take the last commit back, and perhaps a vote with it.
        """
        page_bytes = self.lmdb.stat()["psize"]
        with self._file.open("rb") as file:
            head = file.read(2 * page_bytes)
        numbers = [_COMMIT.unpack_from(head, at + _COMMIT_AT)[0] for at in (0, page_bytes)]
        # commits take turns: the first root page has the even ones
        misplaced = any(number and number % 2 != page for page, number in enumerate(numbers))
        if abs(numbers[0] - numbers[1]) > 1 or misplaced:
            raise damaged(f"{self._file}: one of its two root pages is damaged")

    def _databases(self, txn: "lmdb.Transaction[bytes]") -> Handles:
        """All databases; made in a new environment only, together with the version in it.

        One that is missing later is lost: an empty one in its place would be believed. Unless no
        version has opened the environment yet that knows it.
        """
        fresh = self.fresh = txn.stat(self.lmdb.open_db(None, txn=txn))["entries"] == 0
        if fresh and any(self.folder.glob("journal-*")):
            raise damaged(f"{self._file} is empty, though a log lies beside it")
        handles: Handles = {}
        generation = GENERATION
        for db in _IN_ORDER:
            create = fresh or db.since > generation
            handles[db] = self.lmdb.open_db(db.name, txn=txn, dupsort=db.many, create=create)
            self._check_flags(db, handles[db])
            if db is IDENTITY:
                identity = LmdbWriteTxn(txn, handles)
                self._check_format(identity, fresh=fresh)
                generation = GENERATION if fresh else _generation(identity)
        if fresh or generation < GENERATION:
            _name_generation(LmdbWriteTxn(txn, handles))
        return handles

    def _databases_as_they_are(self) -> Handles:
        handles: Handles = {}
        generation = GENERATION
        for db in _IN_ORDER:
            if db.since <= generation:
                handles[db] = self.lmdb.open_db(db.name, dupsort=db.many, create=False)
                self._check_flags(db, handles[db])
            if db is IDENTITY:
                with self.lmdb.begin() as txn:
                    identity = LmdbReadTxn(txn, handles)
                    self._check_format(identity, fresh=False)
                    generation = _generation(identity)
        return handles

    def _check_flags(self, db: Database, handle: "lmdb._Database") -> None:
        """How the engine orders and finds rows is what the file says, whatever is asked for."""
        expected = {"dupsort"} if db.many else set()
        found = {name for name, is_set in handle.flags().items() if is_set}
        if found != expected:
            told = f"the database '{db.name.decode()}' is marked {sorted(found)}"
            raise damaged(f"{self._file}: {told}, and should be {sorted(expected)}")

    def _check_format(self, txn: LmdbReadTxn, *, fresh: bool) -> None:
        if fresh:
            assert isinstance(txn, LmdbWriteTxn)
            txn.put(IDENTITY, _FORMAT_KEY, _FORMAT.pack(FORMAT_VERSION))
        stored = txn.get(IDENTITY, _FORMAT_KEY)
        if stored is None:
            raise damaged(f"{self.folder} has no format version")
        (version,) = _FORMAT.unpack(stored)
        if version != FORMAT_VERSION:
            raise DataDirError(
                f"{self.folder} has format version {version}, this kvserver reads "
                f"{FORMAT_VERSION}; start the version that wrote it"
            )

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.stat().st_size

    def begin_read(self) -> "lmdb.Transaction[bytes] | None":
        """A read transaction, to be ended with `end_read`; None if retired."""
        with self._lock:
            if self._retired:
                return None
            self._readers += 1
        try:
            with READING:
                return self.lmdb.begin()
        except BaseException:
            self._leave()
            raise

    def end_read(self, txn: "lmdb.Transaction[bytes]") -> None:
        """The transaction is not used any more."""
        txn.abort()
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._readers -= 1
            close = self._retired and self._readers == 0
        if close:
            self._close()

    def retire(self, *, remove: bool) -> None:
        """Close this one with its last reader: LMDB does not forgive who still uses it.

        Args:
            remove: the files are not needed any more.
        """
        with self._lock:
            self._retired, self._removed = True, remove
            close = self._readers == 0
        if close:
            self._close()

    def _close(self) -> None:
        if self._removed:  # of a large file it takes a while, and nobody who serves must wait
            threading.Thread(target=self._remove, name="remove", daemon=True).start()
        else:
            self.lmdb.close()

    def _remove(self) -> None:
        self.lmdb.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _generation(txn: LmdbReadTxn) -> int:
    """Of the youngest databases that are there."""
    row = txn.get(IDENTITY, _GENERATION_KEY)
    return _GENERATION_UNNAMED if row is None else int(_GENERATION.unpack(row)[0])


def _name_generation(txn: LmdbWriteTxn) -> None:
    txn.put(IDENTITY, _GENERATION_KEY, _GENERATION.pack(GENERATION))


def _allocate_lock_file(folder: Path) -> None:
    """Let the table of readers be on the disk before it is mapped.

    Else the first reader on a full disk would end the process by a signal.
    """
    file = os.open(folder / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, _LOCK_FILE_BYTES)
    finally:
        os.close(file)


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
        self._environment = _Environment(folder, read_only=read_only)
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
            used = sum(
                txn.size_of(each) for each in DATABASES if each.replicated and txn.holds(each)
            )
            size = reading.environment.size
        if used > size:
            raise damaged(f"{self.folder}: its databases count {used} bytes in a file of {size}")
        return size, used

    def forget_node(self) -> None:
        """Keep only what is replicated, durably: the storage is a copy that leaves its cluster."""
        writer = self.writer()
        for database in DATABASES:
            if not database.replicated:
                writer.clear(database)
        writer.put(IDENTITY, _FORMAT_KEY, _FORMAT.pack(FORMAT_VERSION))
        _name_generation(writer)
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
