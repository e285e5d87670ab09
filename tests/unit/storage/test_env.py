"""The LMDB environment and the data directory around it."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest

from kvserver.errors import DataDirError, DiskError
from kvserver.storage import check, environment
from kvserver.storage.check import check_all
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import DATABASES, GENERATION, HISTORY, KEY_HISTORY, KV, META, Database


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LmdbStorage]:
    opened = LmdbStorage(tmp_path)
    yield opened
    opened.close()


def test_scans_are_ordered_and_half_open(storage: LmdbStorage) -> None:
    storage.writer().put_many(KV, [(key, key * 2) for key in (b"b", b"a", b"d", b"c")])
    storage.commit()
    with storage.read() as txn:
        assert list(txn.scan(KV)) == [(key, key * 2) for key in (b"a", b"b", b"c", b"d")]
        assert list(txn.keys(KV, b"b", b"d")) == [b"b", b"c"]
        assert list(txn.keys(KV, b"bb")) == [b"c", b"d"]
        assert [key for key, _ in txn.scan(KV, b"b", b"d", reverse=True)] == [b"c", b"b"]
        assert [key for key, _ in txn.scan(KV, b"a", b"zz", reverse=True)] == list(
            reversed([b"a", b"b", b"c", b"d"])
        )
        assert list(txn.keys(KV, b"x")) == []


def test_the_writer_sees_its_changes_and_readers_the_last_commit(storage: LmdbStorage) -> None:
    storage.writer().put(KV, b"a", b"1")
    assert storage.writer().get(KV, b"a") == b"1"
    with storage.read() as txn:
        assert txn.get(KV, b"a") is None
    assert storage.commit()
    assert not storage.commit()
    with storage.read() as txn:
        storage.writer().put(KV, b"a", b"2")
        storage.commit()
        assert txn.get(KV, b"a") == b"1"


def test_all_databases_change_together_or_not_at_all(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import DATABASES
storage = LmdbStorage(Path({str(tmp_path)!r}))
for db in DATABASES:
    storage.writer().put(db, b"k", b"committed")
storage.commit()
for db in DATABASES:
    storage.writer().put(db, b"k", b"open")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    storage = LmdbStorage(tmp_path)
    with storage.read() as txn:
        assert {txn.get(db, b"k") for db in DATABASES} == {b"committed"}
    storage.close()


def test_a_cut_off_file_is_noticed_at_open(tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    storage.writer().put_many(KV, [(b"%d" % i, b"x" * 500) for i in range(500)])
    storage.commit()
    storage.close()
    os.truncate(tmp_path / "data.mdb", 40_960)
    with pytest.raises(DataDirError, match="cut off"):
        LmdbStorage(tmp_path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(DataDirError, match="can't be opened"):
        LmdbStorage(tmp_path)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LmdbStorage(tmp_path).close()
    monkeypatch.setattr("kvserver.storage.environment.FORMAT_VERSION", 99)
    with pytest.raises(DataDirError, match="start the version that wrote it"):
        LmdbStorage(tmp_path)


YOUNG = Database(b"young", "test", replicated=True, since=GENERATION + 1, layout="nothing")


def younger(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this is a later version, with one more database."""
    monkeypatch.setattr(environment, "GENERATION", GENERATION + 1)
    monkeypatch.setattr(environment, "_IN_ORDER", (*environment._IN_ORDER, YOUNG))
    monkeypatch.setattr(check, "DATABASES", (*DATABASES, YOUNG))


def test_a_later_version_makes_the_database_that_it_knows_and_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = LmdbStorage(tmp_path)
    older.writer().put(KV, b"a", b"1")
    older.commit(durable=True)
    older.close()
    with monkeypatch.context() as later:
        younger(later)
        for _ in range(2):
            storage = LmdbStorage(tmp_path)
            with storage.read() as txn:
                assert txn.get(KV, b"a") == b"1"
                assert list(txn.scan(YOUNG)) == [(b"y", b"2")] * (_ > 0)
            storage.writer().put(YOUNG, b"y", b"2")
            storage.commit(durable=True)
            storage.close()
    with (older := LmdbStorage(tmp_path)).read() as txn:
        assert txn.get(KV, b"a") == b"1"
    older.close()
    with monkeypatch.context() as later:
        younger(later)
        storage = LmdbStorage(tmp_path)
        with storage.read() as txn:
            assert list(txn.scan(YOUNG)) == [(b"y", b"2")]
        storage.close()


def test_a_database_that_was_there_before_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one in its place would be believed."""
    LmdbStorage(tmp_path).close()
    monkeypatch.setattr(
        environment, "_IN_ORDER", (*environment._IN_ORDER, replace(YOUNG, since=GENERATION))
    )
    with pytest.raises(DataDirError, match="can't be opened"):
        LmdbStorage(tmp_path)


def test_an_older_copy_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = LmdbStorage(tmp_path)
    older.writer().put(KV, b"a", b"1")
    older.forget_node()
    older.close()
    younger(monkeypatch)
    before = (tmp_path / "data.mdb").read_bytes()
    storage = LmdbStorage(tmp_path / "data.mdb", read_only=True)
    with storage.read() as txn:
        assert [db for db in (*DATABASES, YOUNG) if not txn.holds(db)] == [YOUNG]
    *_, whole = check_all(storage)
    assert whole.rows == 3, "the key, the format and the generation"
    storage.close()
    assert (tmp_path / "data.mdb").read_bytes() == before


def test_a_key_the_engine_refuses_is_a_disk_error_not_a_crash(storage: LmdbStorage) -> None:
    with pytest.raises(DiskError):
        storage.writer().put(META, b"x" * 600, b"")


def test_size_grows_with_what_is_stored(storage: LmdbStorage) -> None:
    before = storage.size()
    storage.writer().put_many(KV, [(b"%d" % i, b"x" * 1000) for i in range(1000)])
    storage.commit()
    after = storage.size()
    assert after[0] > before[0]
    assert after[1] - before[1] >= 1_000_000


# ---------------------------------------------------------------------------- the log beside it


def log_segment(folder: Path) -> Path:
    (found,) = folder.glob("journal-*/*")
    return found


def with_log(folder: Path) -> LmdbStorage:
    storage = LmdbStorage(folder)
    storage.begin_log(b"state", [(b"one", 1, 0)])
    storage.commit()
    return storage


def test_keys_that_are_gone_take_no_room_and_are_no_damage(tmp_path: Path) -> None:
    """The engine goes on counting a page of each key that had many values, in every copy too."""
    (tmp_path / "env").mkdir()
    storage = LmdbStorage(tmp_path / "env")
    writer = storage.writer()
    keys = [b"job/%04d" % number for number in range(200)]
    moments = [b"%013d" % moment for moment in range(100)]
    writer.put_many(HISTORY, [(b"%04d" % at + each, b"") for at in range(200) for each in moments])
    writer.put_many(KEY_HISTORY, [(key, moment) for key in keys for moment in moments])
    writer.put_many(KEY_HISTORY, [(b"other", moments[0])])
    storage.commit()
    _, before = storage.size()
    assert before > len(keys) * 4096
    writer = storage.writer()
    for at, key in enumerate(keys):
        for moment in moments:
            writer.delete_value(KEY_HISTORY, key, moment)
            writer.delete(HISTORY, b"%04d" % at + moment)
    storage.commit()
    with storage.read() as txn:
        assert txn.size_of(KEY_HISTORY) > len(keys) * 4096, "else the engine was mended"
    _, after = storage.size()
    assert after < before / 10
    (tmp_path / "copy").mkdir()
    storage.copy_to(tmp_path / "copy")
    storage.close()
    copy = LmdbStorage(tmp_path / "copy")
    file_bytes, used = copy.size()
    assert used <= file_bytes
    copy.close()


def test_commits_between_the_two_roots_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever verifies reads them beside the node that writes."""
    storage = LmdbStorage(tmp_path)
    between = iter([3])

    def slowly(file: Path, mode: str, buffering: int) -> io.BytesIO:
        with open(file, mode, buffering) as opened:
            head = opened.read(4096)
            for number in range(next(between, 0)):
                storage.writer().put(KV, b"%d" % number, b"value")
                storage.commit()
            return io.BytesIO(head + opened.read(4096))

    monkeypatch.setattr(Path, "open", slowly)
    storage._environment._check_roots()
    monkeypatch.undo()
    storage.close()


def test_a_log_belongs_to_the_state_from_the_commit_on(tmp_path: Path) -> None:
    storage = with_log(tmp_path)
    assert (storage.log.last_index, storage.log.state) == (1, b"state")
    storage.writer().put(META, b"a", b"1")
    storage.begin_log(b"other", [(b"seven", 7, 3)])
    storage.close()  # a crash before the commit
    storage = LmdbStorage(tmp_path)
    assert storage.log.last_index == 1
    storage.writer().put(META, b"a", b"1")
    storage.begin_log(b"other", [(b"seven", 7, 3)])
    storage.commit()
    assert (storage.log.last_index, storage.log.state) == (7, b"other")
    storage.close()
    storage = LmdbStorage(tmp_path)
    assert storage.log.read(7) == (b"seven", 7, 3)
    assert log_segment(tmp_path).parent == storage.log.folder
    storage.close()


def test_a_commit_names_what_of_the_log_is_on_disk(tmp_path: Path) -> None:
    """A damaged end of the log is a torn one only as long as no commit says otherwise."""
    storage = with_log(tmp_path)
    storage.log.append((b"two", 2, 1))
    storage.log.sync(b"voted")
    end = storage.log._segments[-1].end
    sound = log_segment(tmp_path).read_bytes()
    hurt = sound[: end - 1] + b"?" + sound[end:]
    storage.close()
    log_segment(tmp_path).write_bytes(hurt)
    storage = LmdbStorage(tmp_path)
    assert storage.log.state == b"state"
    log_segment(tmp_path).write_bytes(sound)
    storage.close()
    storage = LmdbStorage(tmp_path)
    assert storage.log.state == b"voted"
    assert storage.commit(), "nothing but the name has changed"
    assert not storage.commit()
    storage.close()
    log_segment(tmp_path).write_bytes(hurt)
    storage = LmdbStorage(tmp_path)
    with pytest.raises(DataDirError, match="ends before what was on disk"):
        storage.log.check()
    storage.close()


def test_a_lost_log_is_noticed(tmp_path: Path) -> None:
    with_log(tmp_path).close()
    log_segment(tmp_path).unlink()
    storage = LmdbStorage(tmp_path)
    with pytest.raises(DataDirError, match="the log is missing"):
        storage.log.check()
    storage.close()


def test_a_commit_the_machine_forgot_is_the_newest_one(tmp_path: Path) -> None:
    """Its root page was not flushed: what is left is sound, and the one before."""
    storage = with_log(tmp_path)
    page, roots = os.sysconf("SC_PAGE_SIZE"), b""
    for number in range(4):
        roots = (tmp_path / "data.mdb").read_bytes()[: 2 * page]
        storage.writer().put(META, b"a", b"%d" % number)
        storage.commit()
    storage.close()
    with (tmp_path / "data.mdb").open("r+b") as file:
        file.write(roots)
    storage = LmdbStorage(tmp_path)
    with storage.read() as txn:
        assert txn.get(META, b"a") == b"2"
    storage.close()


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as owner:
        assert owner.environment().is_dir()
        with pytest.raises(DataDirError, match="in use by another process"):
            DataDir(tmp_path / "d")
    DataDir(tmp_path / "d").close()


def test_what_a_start_believes_is_durable_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever switched, or made the directory, may have been killed before its sync."""
    fsync, synced = os.fsync, list[int]()

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with DataDir(tmp_path / "d") as owner:
        for _ in range(2):
            synced.clear()
            owner.environment()
            assert synced[-2:] == [tmp_path.stat().st_ino, owner.path.stat().st_ino]
        synced.clear()
        monkeypatch.setattr(Path, "is_mount", lambda _: True)
        owner.environment()
        assert synced == [owner.path.stat().st_ino]


def test_no_file_stays_open_behind_a_storage(tmp_path: Path) -> None:
    LmdbStorage(tmp_path).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        LmdbStorage(tmp_path).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_threads_never_get_the_same_new_environment(tmp_path: Path) -> None:
    with DataDir(tmp_path) as owner, ThreadPoolExecutor(8) as threads:
        owner.environment()
        sources = [tmp_path / f"copy-{number}" for number in range(64)]
        for source in sources:
            source.mkdir()
            (source / "file").touch()
        assert len(set(threads.map(owner.new_environment, sources))) == len(sources)


def test_a_reader_that_can_not_begin_keeps_no_retired_environment_open(
    storage: LmdbStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = storage._environment

    def full(*_: object) -> None:
        raise lmdb.ReadersFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(environment, "READING", contextlib.nullcontext())
        patch.setattr(opened, "lmdb", SimpleNamespace(begin=full))
        with pytest.raises(lmdb.ReadersFullError):
            opened.begin_read()
    assert opened._readers == 0


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(DataDirError, match=r"photo\.jpg"):
        DataDir(tmp_path)


def test_a_first_start_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    with DataDir(tmp_path) as owner:
        folder = owner.environment()
    (tmp_path / "CURRENT").unlink()
    with DataDir(tmp_path) as owner:
        assert owner.environment() == folder


def test_a_directory_without_its_environment_is_refused(tmp_path: Path) -> None:
    with DataDir(tmp_path) as owner:
        owner.environment().rmdir()
        with pytest.raises(DataDirError, match="not there"):
            owner.environment()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="--data-dir"):
        DataDir(tmp_path / "file")
