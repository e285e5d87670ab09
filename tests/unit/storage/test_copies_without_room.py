"""Copies on a full disk: they end, nothing of them stays, and the node goes on."""

import hashlib
import os
import shutil
import threading

import lmdb
import pytest
from support.copying import (
    PART,
    WHILE_RUNNING,
    Gate,
    Side,
    compacted,
    fill_disk,
    finish_copying,
    make_copy,
    open_copy,
    send,
    wait_removed,
    with_log,
)
from support.limits import no_file_above

from kvserver.errors import DiskError, SnapshotFailedError
from kvserver.storage.copies import RETRY_S
from kvserver.storage.env import LmdbStorage
from kvserver.storage.room import LEFT_FREE_BYTES


def test_a_copy_without_space_leaves_nothing_and_is_begun_again_later(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = sides
    source.put(100, b"new")
    with monkeypatch.context() as patch:
        fill_disk(source.storage, patch)
        source.copies.begin_copy()
        finish_copying(source)
        assert source.copies.copy() is None
        assert not source.copies.begin_copy()
        source.copies.end_copy()
        assert not source.copies.begin_copy(), "nor at once for somebody else"
    assert [name for name, _ in source.events] == ["snapshot.failed"]
    assert not (source.data_dir.path / "copy-out").exists()
    source.clock.now += RETRY_S
    make_copy(source)


@pytest.mark.parametrize("free", [LEFT_FREE_BYTES, 0])
def test_a_copy_is_begun_only_if_the_log_has_room_afterwards(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    source, _ = sides
    with_log(source, 3)
    usage = shutil.disk_usage(source.data_dir.path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(source.storage, "copy_to", pytest.fail)
    source.copies.begin_copy()
    finish_copying(source)
    with pytest.raises(SnapshotFailedError):
        source.copies.backup(threading.Event())
    source.copies.begin_compacting()
    while source.copies.compacting:
        pass
    assert source.copies.copy() is None
    assert source.copies.compacted() is None
    names = [name for name, _ in source.events]
    assert names == ["snapshot.failed", "snapshot.failed", "defragment.failed"]
    assert all("a copy needs 256 MiB" in str(told["reason"]) for _, told in source.events)
    assert {path.name for path in source.data_dir.path.iterdir()} == WHILE_RUNNING


def test_copies_that_are_under_way_leave_the_log_its_room(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what comes in the part that has arrived is on the disk already."""
    source, _ = sides
    source.put(100, b"new")
    _, used = source.storage.size()
    usage = shutil.disk_usage(source.data_dir.path)._replace(free=LEFT_FREE_BYTES + 2 * used)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    gate = Gate(source.storage, monkeypatch)
    source.copies.begin_copy()
    assert gate.reached.wait(30)
    assert source.copies.receive(7, 0, used + 1, b"x" * 10) == 0
    gate.open.set()
    finish_copying(source)
    source.clock.now += RETRY_S
    assert source.copies.receive(7, 0, 2 * used, b"x" * 10) == 10
    with pytest.raises(SnapshotFailedError):
        source.copies.backup(threading.Event())
    assert source.copies.receive(7, 10, 2 * used, b"x" * used) == 10 + used
    source.copies.backup(threading.Event()).close()
    assert [told["step"] for _, told in source.events] == ["receive", "backup"]


def test_a_copy_that_has_no_room_to_be_opened_is_no_damage(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = sides
    source.put(100, b"new")

    def full(*_: object, **__: object) -> None:
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(lmdb, "open", full)
    source.copies.begin_copy()
    finish_copying(source)
    source.copies.begin_compacting()
    while source.copies.compacting:
        pass
    assert source.damage == []
    assert [name for name, _ in source.events] == ["snapshot.failed", "defragment.failed"]
    assert {path.name for path in source.data_dir.path.iterdir()} == WHILE_RUNNING


def test_a_reader_of_a_new_copy_needs_no_room(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of readers is a mapped file: a hole in it that can't be filled is SIGBUS."""
    side, _ = sides
    with_log(side, 3)
    fresh = compacted(side)
    table = (fresh.folder / "lock.mdb").stat()
    assert table.st_blocks * 512 >= table.st_size > 0
    side.copies.reject(fresh)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        side.copies.begin_copy()
        finish_copying(side)
    assert side.damage == []
    assert [name for name, _ in side.events] == ["snapshot.failed"]


def test_a_backup_without_space_is_an_answer(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = sides
    source.put(100, b"new")
    fill_disk(source.storage, monkeypatch)
    with pytest.raises(SnapshotFailedError):
        source.copies.backup(threading.Event())
    (event,) = source.events
    assert event[0] == "snapshot.failed"
    assert "No space left" in str(event[1]["reason"])


def test_a_backup_that_can_not_be_written_is_an_answer_too(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine fails when the copy is to forget its node; the node itself is well."""
    source, _ = sides
    source.put(100, b"new")

    def failed(_: LmdbStorage) -> None:
        raise DiskError("writing to the database failed")

    monkeypatch.setattr(LmdbStorage, "forget_node", failed)
    with pytest.raises(SnapshotFailedError):
        source.copies.backup(threading.Event())
    assert [name for name, _ in source.events] == ["snapshot.failed"]
    assert {path.name for path in source.data_dir.path.iterdir()} == WHILE_RUNNING


def test_a_compact_copy_without_space_changes_nothing(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    side, _ = sides
    with_log(side, 3)
    fill_disk(side.storage, monkeypatch)
    side.copies.begin_compacting()
    while side.copies.compacting:
        pass
    assert side.copies.compacted() is None
    assert [name for name, _ in side.events] == ["defragment.failed"]
    assert {path.name for path in side.data_dir.path.iterdir()} == WHILE_RUNNING


def test_parts_that_find_no_room_are_asked_for_again_later(sides: tuple[Side, Side]) -> None:
    source, target = sides
    source.put(2000, b"new" * 100)
    copy = make_copy(source)
    parts = [copy.read(offset, PART) for offset in range(0, copy.total, PART)]
    with no_file_above(5 * PART // 2):
        answers = [
            target.copies.receive(copy.number, number * PART, copy.total, part)
            for number, part in enumerate(parts[:5])
        ]
        assert answers == [PART, 2 * PART, 0, 0, 0]
        assert target.copies.receive(copy.number, 0, copy.total, parts[0]) == 0, "not at once"
    wait_removed()
    assert [name for name, _ in target.events] == ["snapshot.failed"]
    assert {path.name for path in target.data_dir.path.iterdir()} == WHILE_RUNNING
    target.clock.now += RETRY_S
    send(copy, target)
    assert open_copy(target, copy.digest) is not None


def test_a_copy_whose_end_finds_no_room_is_asked_for_again(sides: tuple[Side, Side]) -> None:
    _, target = sides
    target.copies.receive(7, 0, 200, b"x" * 200)  # less than what is written at once
    with no_file_above(100):
        assert open_copy(target, hashlib.sha256(b"x" * 200).digest()) is None
    assert not target.copies.opening
    assert [name for name, _ in target.events] == ["snapshot.failed"]
    assert target.copies.receive(7, 0, 200, b"x" * 200) == 0, "not at once"
    target.clock.now += RETRY_S
    assert target.copies.receive(7, 0, 200, b"x" * 200) == 200


def test_a_copy_that_can_not_take_the_place_lets_the_node_start_over(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = sides
    source.put(100, b"new")
    target.put(10, b"old")
    copy = make_copy(source)
    send(copy, target)
    fresh = open_copy(target, copy.digest)
    assert isinstance(fresh, LmdbStorage)
    fresh.begin_log(b"mine", [(b"", 7, 1)])
    fresh.commit()
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space"):
        patch.setattr(os, "fsync", full)
        target.copies.adopt(fresh)
    fresh.close()
    assert len(target.rows()) == 10
    assert target.data_dir.environment() == target.storage.folder


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")
