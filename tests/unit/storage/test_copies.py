"""Copies of real LMDB environments: made, received, opened, adopted; and what goes wrong then."""

import hashlib
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from support.copying import (
    WHILE_RUNNING,
    Gate,
    Side,
    finish_copying,
    make_copy,
    open_copy,
    send,
    wait_alone,
    wait_removed,
)

from kvserver.errors import DataDirError, SnapshotFailedError, StoppedError
from kvserver.storage.copies import ARRIVE_WITHIN_S, RETRY_S
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import DATABASES, IDENTITY, KV


def test_a_copy_arrives_whole_and_replaces_the_state(sides: tuple[Side, Side]) -> None:
    source, target = sides
    source.put(2000, b"new" * 20)
    target.put(10, b"old")
    copy = make_copy(source)
    source.put(2000, b"later")  # not in the copy
    send(copy, target)
    fresh = open_copy(target, copy.digest)
    assert fresh is not None
    with pytest.raises(DataDirError, match="missing"):
        fresh.log.check()  # its sender's log is not in it
    fresh.begin_log(b"mine", [(b"", 7, 1)])
    fresh.commit()
    with target.storage.read() as txn:  # a reader of the old state is not disturbed
        target.copies.adopt(fresh)
        assert txn.get(KV, b"k00000") == b"old"
    assert target.rows() == [(b"k%05d" % i, b"new" * 20) for i in range(2000)]
    assert (target.storage.log.state, target.storage.log.last_index) == (b"mine", 7)
    target.put(1, b"goes on")
    assert target.data_dir.environment() == target.storage.folder
    wait_alone(target)
    assert [p.name for p in target.data_dir.path.glob("env-*")] == [target.storage.folder.name]


def test_a_damaged_copy_is_refused(sides: tuple[Side, Side]) -> None:
    source, target = sides
    source.put(100, b"new")
    target.put(10, b"old")
    copy = make_copy(source)
    send(copy, target)
    assert open_copy(target, b"\0" * 32) is None
    assert not target.copies.opening
    assert [name for name, _ in target.events] == ["snapshot.failed"]
    assert {path.name for path in target.data_dir.path.iterdir()} == WHILE_RUNNING
    assert len(target.rows()) == 10
    target.clock.now += RETRY_S
    send(copy, target)  # and can be sent again
    assert open_copy(target, copy.digest) is not None


def test_who_asks_after_a_copy_was_given_up_gets_a_newer_one(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = sides
    source.put(100, b"old")
    gate = Gate(source.storage, monkeypatch)
    source.copies.begin_copy()
    assert gate.reached.wait(30)
    source.copies.end_copy()  # its thread can't be stopped
    source.put(100, b"new")
    assert not source.copies.begin_copy()
    gate.open.set()
    finish_copying(source)
    assert not (source.data_dir.path / "copy-out").exists()
    assert source.copies.copy() is None
    copy = make_copy(source)
    send(copy, target)
    fresh = open_copy(target, copy.digest)
    assert fresh is not None
    with fresh.read() as txn:
        assert {row for _, row in txn.scan(KV)} == {b"new"}
    target.copies.reject(fresh)
    assert source.events == []


def test_what_has_not_arrived_is_not_opened(sides: tuple[Side, Side]) -> None:
    _, target = sides
    target.copies.begin_opening(b"")
    assert target.copies._opening is None
    assert not target.copies.opening


def test_a_copy_that_is_given_up_leaves_nothing(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = sides
    source.put(2000, b"new")
    gate = Gate(source.storage, monkeypatch)
    source.copies.begin_copy()
    assert gate.reached.wait(30)
    source.copies.end_copy()
    gate.open.set()
    finish_copying(source)
    assert not (source.data_dir.path / "copy-out").exists()
    make_copy(source)
    source.copies.end_copy()
    assert not (source.data_dir.path / "copy-out").exists()


def test_damage_does_not_spread_by_copies(sides: tuple[Side, Side]) -> None:
    source, _ = sides
    source.put(2000, b"a row that will be damaged")
    file = source.storage.folder / "data.mdb"
    found = [match.start() for match in re.finditer(b"a row that", file.read_bytes())]
    with file.open("r+b") as opened:  # while it is open: the pages are shared
        for at in found:
            opened.seek(at)
            opened.write(b"A")
    source.copies.begin_copy()
    finish_copying(source)
    assert source.copies.copy() is None
    assert len(source.damage) == 1
    assert "is damaged" in str(source.damage[0])


def test_nobody_who_serves_waits_for_files_to_be_removed(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes half a second for each gigabyte."""
    source, target = sides
    go = threading.Event()
    removed: list[str] = []
    before = shutil.rmtree

    def rmtree(folder: Path, *, ignore_errors: bool = False) -> None:
        if threading.current_thread() is threading.main_thread():
            removed.append(folder.name)
        elif folder.name.startswith(("gone-", "env-")):
            assert go.wait(30)
        before(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    source.put(100, b"new")
    copy = make_copy(source)
    send(copy, target)
    fresh = open_copy(target, copy.digest)
    assert fresh is not None
    target.copies.reject(fresh)
    send(copy, target)
    assert target.copies.receive(7, 0, 300, b"x" * 100) == 100  # instead
    source.copies.end_copy()
    make_copy(source)
    assert removed == []
    go.set()
    wait_removed()
    assert {path.name for path in source.data_dir.path.iterdir()} == WHILE_RUNNING | {"copy-out"}
    assert {path.name for path in target.data_dir.path.iterdir()} == WHILE_RUNNING | {"copy-in"}


def test_parts_out_of_place_do_not_count(sides: tuple[Side, Side]) -> None:
    _, target = sides
    assert target.copies.receive(7, 100, 300, b"x" * 100) == 0
    assert target.copies.receive(7, 0, 300, b"x" * 100) == 100
    assert target.copies.receive(7, 0, 300, b"y" * 100) == 100
    assert target.copies.receive(7, 200, 300, b"x" * 100) == 100
    assert target.copies.receive(7, 100, 300, b"x" * 500) == 100
    assert target.copies.receive(8, 0, 300, b"z" * 50) == 50  # a newer copy replaces it
    assert target.copies.receive(7, 100, 300, b"x" * 100) == 0


def test_what_arrived_of_a_copy_goes_when_no_more_of_it_comes(sides: tuple[Side, Side]) -> None:
    _, target = sides
    for offset in (0, 100):
        assert target.copies.receive(7, offset, 300, b"x" * 100) == offset + 100
        target.clock.now += ARRIVE_WITHIN_S
        target.copies.forget_silent()
        assert (target.data_dir.path / "copy-in").exists()
    target.clock.now += 0.1
    target.copies.forget_silent()
    target.copies.forget_silent()
    wait_removed()
    assert {path.name for path in target.data_dir.path.iterdir()} == WHILE_RUNNING
    assert [name for name, _ in target.events] == ["snapshot.dropped"]
    assert target.copies.receive(7, 200, 300, b"x" * 100) == 0
    assert target.copies.receive(7, 0, 300, b"x" * 100) == 100


def test_a_copy_that_can_not_be_read_is_no_damage(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = sides
    source.put(100, b"new")
    copy, backup = make_copy(source), source.copies.backup(threading.Event())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        for each in (copy, backup):
            with pytest.raises(SnapshotFailedError):
                each.read(0, 100)
    backup.close()
    source.copies.fail_copy()
    assert not source.copies.begin_copy()
    source.clock.now += RETRY_S
    make_copy(source)
    assert [name for name, _ in source.events] == ["snapshot.failed"] * 2


def failing(*_: object) -> bytes:
    raise OSError(5, "Input/output error")


def test_a_restart_forgets_what_was_not_adopted(sides: tuple[Side, Side]) -> None:
    source, target = sides
    source.put(100, b"new")
    target.put(10, b"old")
    copy = make_copy(source)
    send(copy, target)
    fresh = open_copy(target, copy.digest)
    assert isinstance(fresh, LmdbStorage)
    fresh.close()
    target.copies.receive(9, 0, 300, b"half")
    (target.data_dir.path / "gone-7").mkdir()
    target.copies.close()
    wait_removed()
    target.begin()
    left = {path.name for path in target.data_dir.path.iterdir()}
    assert left == WHILE_RUNNING
    assert len(target.rows()) == 10


def rows_of(storage: LmdbStorage) -> dict[bytes, list[tuple[bytes, bytes]]]:
    with storage.read() as txn:
        return {each.name: list(txn.scan(each)) for each in DATABASES}


def test_a_backup_holds_what_is_replicated_and_nothing_else(
    sides: tuple[Side, Side], tmp_path: Path
) -> None:
    source, _ = sides
    source.put(2000, b"new" * 20)
    source.storage.writer().put(IDENTITY, b"identity", b"a node's own")
    source.storage.commit()
    expected = rows_of(source.storage)
    backup = source.copies.backup(threading.Event())
    source.put(2000, b"later")  # not in the backup
    left = {path.name for path in source.data_dir.path.iterdir()}
    assert left == WHILE_RUNNING, "its file has no name"
    data = backup.read(0, backup.total)
    assert len(data) == backup.total
    assert hashlib.sha256(data).digest() == backup.digest
    assert backup.total % 512 == 0, "etcd's clients take the rest for the hash"
    backup.close()

    folder = tmp_path / "restored"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(data)
    restored = LmdbStorage(folder)
    found = rows_of(restored)
    for each in DATABASES:
        if each.replicated:
            assert found[each.name] == expected[each.name]
        else:
            assert [key for key, _ in found[each.name]] == (
                [b"format", b"generation"] if each is IDENTITY else []
            )
    restored.close()


def test_damage_does_not_spread_by_backups(sides: tuple[Side, Side]) -> None:
    source, _ = sides
    source.put(2000, b"a row that will be damaged")
    file = source.storage.folder / "data.mdb"
    found = [match.start() for match in re.finditer(b"a row that", file.read_bytes())]
    with file.open("r+b") as opened:
        opened.seek(found[1000])
        opened.write(b"A")
    with pytest.raises(DataDirError, match="is damaged"):
        source.copies.backup(threading.Event())
    assert not list(source.data_dir.path.glob("backup-*"))


def test_a_backup_that_nobody_wants_any_more_is_given_up(sides: tuple[Side, Side]) -> None:
    source, _ = sides
    source.put(2000, b"new")
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(StoppedError):
        source.copies.backup(given_up)
    assert not list(source.data_dir.path.glob("backup-*"))


def test_a_restart_removes_backups_that_were_being_made(sides: tuple[Side, Side]) -> None:
    source, _ = sides
    (source.data_dir.path / "backup-3").mkdir()
    source.copies.close()
    source.begin()
    assert not list(source.data_dir.path.glob("backup-*"))


def test_whoever_still_reads_may_finish_after_the_storage_is_closed(tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    storage.writer().put(KV, b"key", b"value")
    storage.commit()
    with storage.read() as txn:
        storage.close()
        assert txn.get(KV, b"key") == b"value"
        with pytest.raises(StoppedError), storage.read():
            pass
    again = LmdbStorage(tmp_path)  # the engine would refuse if the first were open still
    again.close()
