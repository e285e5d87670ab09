"""Copies of environments as files: for peers, from a peer, for clients, and for the node itself.

Those for clients, backups, hold no more than what is replicated.

Layout in the data directory: `copy-out/`, `copy-in/`, `copy-own/`, `backup-N/`, all worthless after
a restart, and a new `env-N/` for a copy that takes the place of the state; then CURRENT names it.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from kvserver.clock import Clock
from kvserver.errors import (
    DataDirError,
    DefragmentFailedError,
    DiskError,
    NodeError,
    SnapshotFailedError,
    StoppedError,
)
from kvserver.storage.check import check_all
from kvserver.storage.contract import Storage
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.room import Room

_FILE: Final = "data.mdb"
_READ_BYTES: Final = 1 << 20
_CHECK_PAUSE_S: Final = 0.001

RETRY_S: Final = 10.0
"""Between a copy that failed and the next attempt: each costs the time of a whole one."""


ARRIVE_WITHIN_S: Final = 30.0
"""Of a foreign copy of which nothing came for so long, no more will."""


class FileCopy:
    """A finished copy in a file."""

    def __init__(self, path: Path, on_event: Callable[..., None]) -> None:
        self._event = on_event
        self._file = path.open("rb")
        self.total = os.fstat(self._file.fileno()).st_size
        digest = hashlib.sha256()
        while part := self._file.read(_READ_BYTES):
            digest.update(part)
        self.digest = digest.digest()
        self.number = int.from_bytes(self.digest[:8], "big")

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on.

        Raises:
            SnapshotFailedError: the disk does not give them.
        """
        try:
            return os.pread(self._file.fileno(), size, offset)
        except OSError as error:  # the state itself is elsewhere
            self._event("snapshot.failed", step="read", reason=str(error))
            raise SnapshotFailedError from error

    def close(self) -> None:
        """The file is not read any more; if its name is gone, its space is given back now."""
        threading.Thread(target=self._file.close, name="remove", daemon=True).start()


class _Incoming:
    """What has arrived of a foreign copy."""

    def __init__(self, number: int, total: int, folder: Path, room: Room) -> None:
        folder.mkdir(mode=0o700)
        self.heard_at = 0.0
        self.number = number
        self.total = total
        self.path = folder / _FILE
        self.arrived = 0
        self.digest = hashlib.sha256()
        self._file = self.path.open("wb")
        self._room = room
        self._promised = total
        """Bytes of the room that are not written yet."""

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.arrived += len(data)
        self._take_back(len(data))

    def _take_back(self, size: int) -> None:
        self._promised -= size
        self._room.take_back(size)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        self._take_back(self._promised)
        with suppress(OSError):  # it may have something left to write, and no room for it
            self._file.close()


def _make(source: LmdbStorage, folder: Path, given_up: threading.Event, *, for_good: bool) -> Path:
    """The file of a copy of the newest commit in `folder`, at the disk's speed, then checked.

    Its rows are read slowly: it is the threads that serve which should run. If it fails, for lack
    of space for one, nothing of it stays.

    Args:
        source: what is copied.
        folder: for it; may exist.
        given_up: set when nobody wants it any more.
        for_good: it leaves the cluster, so only what is replicated stays in it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        source.copy_to(folder)
        _check(folder, given_up, for_good=for_good)
        return folder / _FILE
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check(folder: Path, given_up: threading.Event, *, for_good: bool) -> None:
    """Read a copy, and let it forget its node."""
    copy = LmdbStorage(folder)
    try:
        for _ in check_all(copy):
            if given_up.wait(_CHECK_PAUSE_S):
                raise StoppedError
        if for_good:
            copy.forget_node()
    finally:
        copy.close()


class _Outgoing:
    """A copy for peers, made by a thread of its own.

    Invariant: the files of a copy that nobody wants are gone when its thread is.
    """

    def __init__(
        self,
        make: Callable[[threading.Event], FileCopy | None],
        discard: Callable[[], None],
    ) -> None:
        """Begin.

        Args:
            make: makes it; gives up soon after the event is set. None if it failed.
            discard: removes its files; at once, from any thread.
        """
        self._make = make
        self._discard = discard
        self._lock = threading.Lock()
        self._unwanted = threading.Event()
        self.copy: FileCopy | None = None
        """None while it is being made, if that failed, and once nobody wants it."""
        self.thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self.thread.start()

    @property
    def ended(self) -> bool:
        """Nothing will come of it any more."""
        return not self.thread.is_alive() and self.copy is None

    @property
    def promising(self) -> bool:
        """The copy is there, or somebody who wants it may hope for it."""
        return not self._unwanted.is_set() and not self.ended

    def _run(self) -> None:
        copy = self._make(self._unwanted)
        with self._lock:
            self.copy = copy
            if self._unwanted.is_set():
                self._remove()

    def give_up(self) -> None:
        """Nobody wants it; a thread that still runs throws away what it makes."""
        with self._lock:
            self._unwanted.set()
            if self.copy is not None:
                self._remove()

    def _remove(self) -> None:
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.close()
        self._discard()


class LmdbCopies:
    """Copies of a node's one LMDB environment."""

    def __init__(
        self,
        data_dir: DataDir,
        storage: LmdbStorage,
        clock: Clock,
        on_event: Callable[..., None],
        on_damage: Callable[[DataDirError], object],
    ) -> None:
        """Begin without any.

        Args:
            data_dir: where copies are kept.
            storage: what is copied, and what a received copy replaces.
            clock: tells when to try again.
            on_event: log; called from other threads too.
            on_damage: told what was found while copying; from another thread.
        """
        self._data_dir = data_dir
        self._storage = storage
        self._clock = clock
        self._event = on_event
        self._on_damage = on_damage
        self._room = Room(data_dir.path)
        self._out = data_dir.path / "copy-out"
        self._in = data_dir.path / "copy-in"
        self._outgoing: _Outgoing | None = None
        """The newest that was begun, given up or not: one thread at a time has the folder."""
        self._retry_at = clock.monotonic()
        """Not before that another one is begun."""
        self._incoming: _Incoming | None = None
        self._receive_at = clock.monotonic()
        """Nothing is kept before that."""
        self._opening: threading.Thread | None = None
        self._opened: LmdbStorage | None = None
        self._compacting: threading.Thread | None = None
        self._compacted: LmdbStorage | None = None
        self._backups = count()
        self._own = data_dir.path / "copy-own"
        for leftover in (self._out, self._in, self._own, *data_dir.path.glob("backup-[0-9]*")):
            shutil.rmtree(leftover, ignore_errors=True)
        data_dir.remove_others()

    # ------------------------------------------------------------------ going out

    def begin_copy(self) -> bool:
        """Start to make a copy of the newest commit; nothing if one is there or being made.

        Returns:
            Whether there will be one: after a failure not for a while, nor before the thread of one
            that was given up has ended.
        """
        found = self._outgoing
        if (found is None or found.ended) and self._clock.monotonic() >= self._retry_at:
            found = _Outgoing(self._make, lambda: self._data_dir.discard(self._out))
            self._outgoing = found
        return found is not None and found.promising

    def _make(self, given_up: threading.Event) -> FileCopy | None:
        try:
            with self._room.for_copy(self._storage):
                file = _make(self._storage, self._out, given_up, for_good=False)
            return FileCopy(file, self._event)
        except DataDirError as error:
            self._on_damage(error)  # and no copy is ever ready: damage must not spread
        except StoppedError:
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, the node serves on
            self._event("snapshot.failed", step="copy", reason=str(error))
        self._retry_at = self._clock.monotonic() + RETRY_S
        return None

    def copy(self) -> FileCopy | None:
        """The copy, None while it is being made, or if there is none."""
        return None if self._outgoing is None else self._outgoing.copy

    def end_copy(self) -> None:
        """The copy is not needed any more; whoever begins one later gets a newer one."""
        if self._outgoing is not None:
            self._outgoing.give_up()

    def fail_copy(self) -> None:
        """The copy can't be read; another one may be begun in a while."""
        self.end_copy()
        self._retry_at = self._clock.monotonic() + RETRY_S

    def backup(self, given_up: threading.Event) -> FileCopy:
        """A copy of the replicated databases alone, in a file without a name. From any thread.

        Raises:
            SnapshotFailedError: for lack of space, for one.
            StoppedError: `given_up` was set meanwhile.
            DataDirError: the state is damaged.
        """
        folder = self._data_dir.path / f"backup-{next(self._backups)}"
        try:
            with self._room.for_copy(self._storage):
                file = _make(self._storage, folder, given_up, for_good=True)
            return FileCopy(file, self._event)
        except (DataDirError, StoppedError):
            raise
        except Exception as error:  # a DiskError too: it is the copy's disk space that is short
            self._event("snapshot.failed", step="backup", reason=str(error))
            raise SnapshotFailedError from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------ for this node itself

    def begin_compacting(self) -> None:
        """Start to make and open a compact copy of the newest commit, for this node itself."""
        assert self._compacting is None
        self._compacting = threading.Thread(target=self._compact, name="compact", daemon=True)
        self._compacting.start()

    def _compact(self) -> None:
        folder = self._own
        try:
            with self._room.for_copy(self._storage):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o700)
                self._storage.copy_to(folder)
            folder = self._data_dir.new_environment(folder)
            self._compacted = LmdbStorage(folder)
        except DataDirError as error:
            self._on_damage(error)
        except Exception as error:  # noqa: BLE001 - such as for lack of space: all is as before
            shutil.rmtree(folder, ignore_errors=True)
            self._event("defragment.failed", reason=str(error))
            self._compacting = None

    @property
    def compacting(self) -> bool:
        """True from `begin_compacting` until `compacted` has given the result, or it failed."""
        return self._compacting is not None

    def compacted(self) -> Storage | None:
        """That copy, once; None while it is not ready."""
        fresh, self._compacted = self._compacted, None
        if fresh is not None:
            self._compacting = None
        return fresh

    def replace(self, fresh: Storage) -> None:
        """From now on the node's storage, the same object, is what `fresh` holds, durably.

        Raises:
            DefragmentFailedError: everything is as before; `fresh` is good for nothing.
            DiskError: it is not known what is durable.
        """
        assert isinstance(fresh, LmdbStorage)
        before, _ = self._storage.size()
        try:
            self._storage.link_log(fresh)
        except DiskError as error:
            raise DefragmentFailedError(str(error)) from error
        try:
            self._data_dir.switch(fresh.folder.name)
        except OSError as error:
            raise DefragmentFailedError(str(error)) from error
        self._storage.take_over(fresh)
        after, _ = fresh.size()
        self._event("defragment.done", bytes_before=before, bytes=after)

    # ------------------------------------------------------------------ coming in

    def receive(self, copy: int, offset: int, total: int, data: bytes) -> int:
        """Keep a part of a foreign copy; a new one replaces an older one."""
        assert not self.opening, "what is being opened lies where this would go"
        if self._clock.monotonic() < self._receive_at:
            return 0
        try:
            return self._keep(copy, offset, total, data)
        except OSError as error:  # such as for lack of space
            self._event("snapshot.failed", step="receive", reason=str(error))
            self._forget_incoming()
            self._receive_at = self._clock.monotonic() + RETRY_S
            return 0

    def _keep(self, copy: int, offset: int, total: int, data: bytes) -> int:
        incoming = self._incoming
        if incoming is None or (incoming.number, incoming.total) != (copy, total):
            if offset != 0:
                return 0
            self._forget_incoming()
            incoming = self._incoming = self._await(copy, total)
        incoming.heard_at = self._clock.monotonic()
        if offset == incoming.arrived and offset + len(data) <= total:
            incoming.add(data)
        return incoming.arrived

    def _await(self, copy: int, total: int) -> _Incoming:
        self._room.promise(total)
        try:
            return _Incoming(copy, total, self._in, self._room)
        except OSError:
            self._room.take_back(total)
            raise

    def forget_silent(self) -> None:
        """Let go of a foreign copy of which no more comes, as its sender is gone."""
        incoming = self._incoming
        if incoming and self._clock.monotonic() > incoming.heard_at + ARRIVE_WITHIN_S:
            self._event("snapshot.dropped", reason="no more of it came")
            self._forget_incoming()

    def _forget_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None
        self._data_dir.discard(self._in)

    def begin_opening(self, digest: bytes) -> None:
        """All parts are there: check, sync and open them."""
        incoming, self._incoming = self._incoming, None
        if incoming is None or self._opening is not None:
            return
        self._opening = threading.Thread(
            target=self._open, args=(incoming, digest), name="open-copy", daemon=True
        )
        self._opening.start()

    def _open(self, incoming: _Incoming, digest: bytes) -> None:
        folder = incoming.path.parent
        try:
            if incoming.digest.digest() != digest:
                raise NodeError("it arrived damaged")  # noqa: TRY301 - one road for all failures
            incoming.sync()
            folder = self._data_dir.new_environment(folder)
            self._opened = LmdbStorage(folder)
        except Exception as error:  # noqa: BLE001 - the sender will try again
            incoming.close()
            shutil.rmtree(folder, ignore_errors=True)
            self._event("snapshot.failed", step="open", reason=str(error))
            self._receive_at = self._clock.monotonic() + RETRY_S
            self._opening = None

    @property
    def opening(self) -> bool:
        """True from `begin_opening` until `opened` has given the result, or it failed."""
        return self._opening is not None

    def opened(self) -> Storage | None:
        """The environment of a received copy, once; None while that is not ready."""
        fresh, self._opened = self._opened, None
        if fresh is not None:
            self._opening = None
        return fresh

    def reject(self, fresh: Storage) -> None:
        """What was received is not needed after all."""
        assert isinstance(fresh, LmdbStorage)
        fresh.close(remove=True)

    def adopt(self, fresh: Storage) -> None:
        """From now on the node's storage, the same object, is what `fresh` holds, durably."""
        assert isinstance(fresh, LmdbStorage)
        try:
            self._data_dir.switch(fresh.folder.name)
        except OSError as error:
            raise DiskError(f"a copy can't take the place of the state ({error})") from error
        self._storage.take_over(fresh)

    def close(self) -> None:
        """Let go of all files; what was not adopted is worthless."""
        if self._compacted is not None:
            self._compacted.close()
            self._compacted = None
        self._forget_incoming()
        self.end_copy()
