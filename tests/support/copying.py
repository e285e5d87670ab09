"""Nodes' disks that copy real LMDB environments to each other."""

import threading
from pathlib import Path

import pytest
from support.sim_disk import SimClock

from kvserver.errors import DataDirError
from kvserver.storage.contract import Storage
from kvserver.storage.copies import FileCopy, LmdbCopies
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import KV

PART = 10_000
WHILE_RUNNING = {"LOCK", "CURRENT", "env-1"}


class Side:
    """A node's disk."""

    def __init__(self, path: Path) -> None:
        self.data_dir = DataDir(path)
        self.storage = LmdbStorage(self.data_dir.environment())
        self.events: list[tuple[str, dict[str, object]]] = []
        self.damage: list[DataDirError] = []
        self.clock = SimClock()
        self.copies = self.begin()

    def begin(self) -> LmdbCopies:
        return LmdbCopies(
            self.data_dir,
            self.storage,
            self.clock,
            lambda name, **told: self.events.append((name, told)),
            self.damage.append,
        )

    def put(self, count: int, text: bytes) -> None:
        self.storage.writer().put_many(KV, [(b"k%05d" % i, text) for i in range(count)])
        self.storage.begin_log(text, [(text, 1, 1)])
        self.storage.commit()

    def rows(self) -> list[tuple[bytes, bytes]]:
        with self.storage.read() as txn:
            return list(txn.scan(KV))

    def close(self) -> None:
        self.copies.close()
        self.storage.close()
        self.data_dir.close()


def wait_removed() -> None:
    """Another thread removes what is not in use any more."""
    for thread in [each for each in threading.enumerate() if each.name == "remove"]:
        thread.join(30)


def wait_alone(side: Side) -> None:
    wait_removed()
    assert len(list(side.data_dir.path.glob("env-*"))) == 1


def finish_copying(side: Side) -> None:
    assert side.copies._outgoing is not None
    side.copies._outgoing.thread.join(30)


def make_copy(side: Side) -> FileCopy:
    side.copies.begin_copy()
    finish_copying(side)
    copy = side.copies.copy()
    assert copy is not None
    return copy


def send(copy: FileCopy, target: Side) -> None:
    offset = 0
    while offset < copy.total:
        data = copy.read(offset, PART)
        offset = target.copies.receive(copy.number, offset, copy.total, data)


def open_copy(target: Side, digest: bytes) -> Storage | None:
    target.copies.begin_opening(digest)
    if target.copies._opening is not None:
        target.copies._opening.join(30)
    return target.copies.opened()


class Gate:
    """Lets a copy be written at a moment of the test's."""

    def __init__(self, storage: LmdbStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self._copy_to = storage.copy_to
        monkeypatch.setattr(storage, "copy_to", self.copy_to)

    def copy_to(self, folder: Path) -> None:
        self._copy_to(folder)
        self.reached.set()
        assert self.open.wait(30)


def fill_disk(storage: LmdbStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever copies it gets half through."""

    def copy_to(folder: Path) -> None:
        (folder / "data.mdb").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "copy_to", copy_to)


def compacted(side: Side) -> LmdbStorage:
    side.copies.begin_compacting()
    assert side.copies._compacting is not None
    side.copies._compacting.join(30)
    fresh = side.copies.compacted()
    assert isinstance(fresh, LmdbStorage)
    return fresh


def keep(side: Side, count: int, text: bytes) -> None:
    side.storage.writer().put_many(KV, [(b"k%05d" % i, text) for i in range(count)])
    side.storage.commit()


def with_log(side: Side, count: int) -> None:
    side.storage.begin_log(b"state", [(b"first", 1, 0)])
    keep(side, 1, b"x")
    for index in range(2, count + 1):
        side.storage.log.append((b"entry %d" % index * 5000, index, 1))
        side.storage.log.sync(b"state %d" % index)
    keep(side, 1, b"y")
