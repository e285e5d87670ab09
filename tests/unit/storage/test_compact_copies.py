"""Compact copies for the node itself: they take the place of the state, and the log goes on."""

import os

import lmdb
import pytest
from support.copying import WHILE_RUNNING, Side, compacted, keep, wait_alone, wait_removed, with_log

from kvserver.errors import DefragmentFailedError, DiskError
from kvserver.storage import log_files
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import KV, Database
from kvserver.storage.txn import LmdbReadTxn


def test_a_compact_copy_takes_the_place_and_the_log_goes_on(sides: tuple[Side, Side]) -> None:
    side, _ = sides
    with_log(side, 400)
    keep(side, 5000, b"old" * 100)
    for i in range(10, 5000):
        side.storage.writer().delete(KV, b"k%05d" % i)
    side.storage.commit()
    before, _ = side.storage.size()
    log = side.storage.log
    fresh = compacted(side)
    fresh.writer().put(KV, b"later", b"caught up")
    with side.storage.read() as reading:  # is not disturbed
        side.copies.replace(fresh)
        assert reading.get(KV, b"k00000") == b"old" * 100
        assert reading.get(KV, b"later") is None
    after, _ = side.storage.size()
    assert after < before / 10
    assert len(side.rows()) == 11
    assert side.storage.log is log
    log.append((b"newer", 401, 1))
    log.sync(b"newest state")
    log.trim(300)
    keep(side, 1, b"goes on")
    wait_alone(side)
    assert [path.name for path in side.data_dir.path.glob("env-*")] == ["env-2"]
    assert side.events[-1][0] == "defragment.done"

    side.storage.close()  # and after a restart all is there
    side.storage = LmdbStorage(side.data_dir.environment())
    assert side.storage.log.state == b"newest state"
    assert side.storage.log.last_index == 401
    assert side.storage.log.read(300) == (b"entry 300" * 5000, 300, 1)
    assert side.storage.log.read(401) == (b"newer", 401, 1)
    assert len(side.rows()) == 11


@pytest.mark.parametrize("step", ["link_into", "switch", "retire"])
def test_whatever_a_crash_leaves_of_it_is_whole(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    side, _ = sides
    with_log(side, 400)
    fresh = compacted(side)
    fresh.writer().put(KV, b"later", b"caught up")

    class CrashError(BaseException):
        pass

    def crash(*_: object, **__: object) -> None:
        raise CrashError

    where = {
        "link_into": side.storage.log,  # before the copy has a log
        "switch": side.data_dir,  # before it counts
        "retire": side.storage._environment,  # before the old one is removed
    }
    with monkeypatch.context() as patch, pytest.raises(CrashError):
        patch.setattr(where[step], step, crash)
        side.copies.replace(fresh)
    fresh._environment.lmdb.close()
    side.storage._environment.lmdb.close()
    side.storage.log.close()
    side.data_dir.close()
    side.data_dir = DataDir(side.data_dir.path)
    side.storage = LmdbStorage(side.data_dir.environment())
    side.copies = side.begin()
    assert len(list(side.data_dir.path.glob("env-*"))) == 1
    assert side.storage.log.last_index == 400
    assert side.storage.log.state == b"state 400"
    assert [side.storage.log.read(index)[1] for index in range(1, 401)] == list(range(1, 401))
    with side.storage.read() as txn:
        assert (txn.get(KV, b"later") is not None) is (step == "retire")


@pytest.mark.parametrize("step", ["link", "commit", "switch"])
def test_a_disk_that_fails_the_copy_leaves_the_node_as_it_was(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    side, _ = sides
    with_log(side, 400)
    fresh = compacted(side)
    fresh.writer().put(KV, b"later", b"caught up")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def failed(*_: object, **__: object) -> None:
        raise DiskError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DefragmentFailedError, match="No space"):
        match step:
            case "link":
                patch.setattr(os, "link", full)
            case "commit":
                patch.setattr(fresh, "commit", failed)
            case _:
                patch.setattr(os, "fsync", full)
                patch.setattr(log_files, "_sync_folder", lambda _: None)
        side.copies.replace(fresh)
    side.copies.reject(fresh)
    wait_alone(side)
    assert {path.name for path in side.data_dir.path.iterdir()} - {"CURRENT.new"} == WHILE_RUNNING
    for index in range(401, 700):  # and into another file
        side.storage.log.append((b"entry %d" % index * 5000, index, 1))
        side.storage.log.sync(b"state %d" % index)
    side.storage.log.trim(200)
    keep(side, 1, b"goes on")

    side.storage.close()
    side.storage = LmdbStorage(side.data_dir.environment())
    assert side.storage.log.state == b"state 699"
    assert side.storage.log.read(200)[0] == b"entry 200" * 5000
    assert side.storage.log.read(699)[0] == b"entry 699" * 5000
    assert side.rows() == [(b"k00000", b"goes on")]
    side.copies = side.begin()
    side.copies.replace(compacted(side))  # another time it may be done
    assert side.rows() == [(b"k00000", b"goes on")]


def test_a_switch_that_may_not_be_durable_ends_the_node(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    side, _ = sides
    with_log(side, 3)
    fresh = compacted(side)
    before = side.data_dir.environment()

    fsync, folder = os.fsync, side.data_dir.path.stat().st_ino

    def failing(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == folder:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(DiskError, match="Input/output error"):
        patch.setattr(os, "fsync", failing)
        side.copies.replace(fresh)
    assert side.data_dir.environment() != before
    fresh.close()


def test_who_asks_for_the_size_may_meet_a_switch(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    side, _ = sides
    with_log(side, 3)
    waiting = [compacted(side)]
    size_of = LmdbReadTxn.size_of
    end_read = side.storage._environment.end_read

    def switching(txn: LmdbReadTxn, db: Database) -> int:
        if waiting:
            side.copies.replace(waiting.pop())
        return size_of(txn, db)

    def removing(txn: "lmdb.Transaction[bytes]") -> None:
        end_read(txn)
        wait_removed()

    with monkeypatch.context() as patch:
        patch.setattr(LmdbReadTxn, "size_of", switching)
        patch.setattr(side.storage._environment, "end_read", removing)
        file_bytes, used_bytes = side.storage.size()
    assert file_bytes >= used_bytes > 0
    assert waiting == []
