"""One LMDB environment: opened only if its roots, its length and its databases look right.

It closes with its last reader.
"""

import os
import shutil
import struct
import threading
from pathlib import Path
from typing import Final

import lmdb

from kvserver.errors import DataDirError, NodeError
from kvserver.storage.rows import damaged
from kvserver.storage.schema import (
    DATABASES,
    FORMAT_VERSION,
    GENERATION,
    IDENTITY,
    Database,
)
from kvserver.storage.trouble import trouble
from kvserver.storage.txn import READING, Handles, LmdbReadTxn, LmdbWriteTxn

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

_IN_ORDER: Final = (IDENTITY, *(each for each in DATABASES if each is not IDENTITY))
"""The one with the version comes first: another version may have other databases."""

_COMMIT: Final = struct.Struct("=Q")
_COMMIT_AT: Final = 144
"""Where a root page ("meta page") keeps the number of its commit."""

ROOT_READS_MAX: Final = 1_000
"""Of a file that is written meanwhile: each takes some microseconds, a commit far more."""


class Environment:
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
        self._read_only = read_only
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
        for _ in range(ROOT_READS_MAX):  # beside a writer commits may fall between the two
            numbers = self._commits(page_bytes)
            # commits take turns: the first root page has the even ones
            misplaced = any(number and number % 2 != page for page, number in enumerate(numbers))
            if abs(numbers[0] - numbers[1]) <= 1 and not misplaced:
                return
            if numbers == self._commits(page_bytes):
                raise damaged(f"{self._file}: one of its two root pages is damaged")
        raise NodeError(f"the roots of {self._file} never stood still")

    def _commits(self, page_bytes: int) -> list[int]:
        """Numbers of the commits that the two root pages are of."""
        with self._file.open("rb", buffering=0) as file:
            head = file.read(2 * page_bytes)
        return [_COMMIT.unpack_from(head, at + _COMMIT_AT)[0] for at in (0, page_bytes)]

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
            name_generation(LmdbWriteTxn(txn, handles))
        return handles

    def _databases_as_they_are(self) -> Handles:
        handles: Handles = {}
        generation = GENERATION
        for db in _IN_ORDER:
            if db.since <= generation:
                handles[db] = self.lmdb.open_db(db.name, dupsort=db.many, create=False)
                self._check_flags(db, handles[db])
            if db is IDENTITY:
                with self._begin_beside_a_writer() as txn:
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
                return self._begin_beside_a_writer() if self._read_only else self.lmdb.begin()
        except BaseException:
            self._leave()
            raise

    def _begin_beside_a_writer(self) -> "lmdb.Transaction[bytes]":
        """Begin to read a file that another process may write.

        The engine takes the newest root, and then what it says. With two commits in between the
        root is another one, or half another one: so it is looked at again.
        """
        page_bytes = self.lmdb.stat()["psize"]
        for _ in range(ROOT_READS_MAX):
            txn = self.lmdb.begin()
            if txn.id() in self._commits(page_bytes):
                return txn
            txn.abort()
        raise NodeError(f"the roots of {self._file} never stood still")

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


def name_format(txn: LmdbWriteTxn) -> None:
    """Say of which version the databases are."""
    txn.put(IDENTITY, _FORMAT_KEY, _FORMAT.pack(FORMAT_VERSION))
    name_generation(txn)


def name_generation(txn: LmdbWriteTxn) -> None:
    """Say which databases are there."""
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
