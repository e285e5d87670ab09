"""What is sound but can't be opened is no damage, and nobody is told to throw it away."""

import errno
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
from support.copying import Side, finish_copying, with_log
from support.limits import no_more_files

from kvserver.errors import (
    AccessError,
    DamagedError,
    DataDirError,
    DiskError,
    ExitCode,
    NodeError,
    ShortageError,
    SnapshotFailedError,
)
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.log_files import LogFiles, open_log
from kvserver.storage.rows import REPLACE
from kvserver.storage.trouble import trouble

NOBODY = 65534


@contextmanager
def another_user() -> Iterator[None]:
    """Root may do everything, so it becomes somebody else; others are kept out by a mode of 0."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user gets to, with an environment."""
    made = Path(tempfile.mkdtemp())
    try:
        made.chmod(0o777)
        with another_user():
            if not os.access(made, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
                pytest.skip("the folder for temporary files is not for every user")
        storage = LmdbStorage(made)
        storage.begin_log(b"state", [(b"one", 1, 0)])
        storage.commit()
        storage.close()
        for path in made.rglob("*"):
            path.chmod(0o777)
        yield made
    finally:
        shutil.rmtree(made)


def open_all(folder: Path) -> None:
    storage = LmdbStorage(folder)
    try:
        storage.log.read(1)
    finally:
        storage.close()


def ends(folder: Path, kind: type[NodeError]) -> str:
    """What is said when it is opened: nothing about throwing it away."""
    with pytest.raises(NodeError) as caught:
        open_all(folder)
    assert type(caught.value) is kind
    assert REPLACE not in str(caught.value)
    assert "sound" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["", "lock.mdb", "data.mdb", "journal-*", "journal-*/0*"])
def test_a_file_of_another_user_is_named(name: str, folder: Path) -> None:
    with another_user():
        open_all(folder)
    (barred,) = folder.glob(name) if name else (folder,)
    barred.chmod(0)
    try:
        with another_user():
            told = ends(folder, AccessError)
    finally:
        barred.chmod(0o777)
    assert f"{barred} belongs to user {barred.stat().st_uid} (mode 0)" in told
    assert "chown" in told
    assert AccessError.exit_code is ExitCode.DATA_DIR


@pytest.mark.parametrize("spare", range(3))
def test_no_file_left_is_told_as_such(spare: int, tmp_path: Path) -> None:
    LmdbStorage(tmp_path).close()
    with no_more_files(spare):
        told = ends(tmp_path, ShortageError)
    assert "raise the limit of open files" in told
    assert issubclass(ShortageError, DiskError), "so it is tried again"


def test_no_address_space_is_told_as_such(tmp_path: Path) -> None:
    LmdbStorage(tmp_path).close()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, before[1]))
    try:
        told = ends(tmp_path, ShortageError)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "ulimit -v" in told


@pytest.mark.parametrize("spare", range(9))
@pytest.mark.parametrize("what", ["copy", "compact", "backup"])
def test_a_copy_without_files_is_one_that_failed(
    what: str, spare: int, sides: tuple[Side, Side]
) -> None:
    side, _ = sides
    with_log(side, 3)
    with no_more_files(spare):
        try:
            if what == "copy":
                side.copies.begin_copy()
                finish_copying(side)
            elif what == "compact":
                side.copies.begin_compacting()
                wait_for("compact")
            else:
                side.copies.backup(threading.Event()).close()
        except SnapshotFailedError:
            pass
    assert side.damage == []
    if spare == 0:
        assert [name.partition(".")[2] for name, _ in side.events] == ["failed"]


def wait_for(name: str) -> None:
    for thread in [each for each in threading.enumerate() if each.name == name]:
        thread.join(30)


# ---------------------------------------------------------------------------- the data directory


def test_who_may_not_read_which_environment_is_current_is_told_so(folder: Path) -> None:
    path = folder / "data"
    with another_user():
        with DataDir(path) as held:
            held.environment()
        barred = path / "CURRENT"
        barred.chmod(0)
        with DataDir(path) as held, pytest.raises(AccessError, match="CURRENT belongs to user"):
            held.environment()


@pytest.mark.parametrize("call", ["fsync", "mkdir", "open"])
def test_a_first_start_without_room_is_tried_again(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left"):
        patch.setattr(os, call, failing(errno.ENOSPC))
        with DataDir(tmp_path / "data") as held:
            held.environment()
    with DataDir(tmp_path / "data") as held:
        assert held.environment().is_dir()


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# ---------------------------------------------------------------------------- the log

READS: dict[str, Callable[[LogFiles], object]] = {
    "an entry": lambda log: log.read(2),
    "a check": lambda log: list(log.check()),
    "a start": lambda log: open_log(log.folder.parent, log.lineage, log.synced),
}


@pytest.mark.parametrize("use", READS.values(), ids=READS)
def test_a_log_that_the_disk_does_not_give_is_damaged(
    use: Callable[[LogFiles], object], sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    side, _ = sides
    with_log(side, 3)
    with monkeypatch.context() as patch, pytest.raises(DataDirError) as caught:
        patch.setattr(os, "pread", failing(errno.EIO))
        patch.setattr(Path, "read_bytes", failing(errno.EIO))
        use(side.storage.log)
    assert str(caught.value).endswith(REPLACE)
    assert side.storage.log.read(2)[1:] == (2, 1)


@pytest.mark.parametrize("use", [READS["a check"], READS["a start"]], ids=["a check", "a start"])
def test_a_log_that_no_file_is_left_for_is_not(
    use: Callable[[LogFiles], object], sides: tuple[Side, Side]
) -> None:
    side, _ = sides
    with_log(side, 3)
    with no_more_files(), pytest.raises(ShortageError):
        use(side.storage.log)


# ---------------------------------------------------------------------------- what is what


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, DamagedError),
        (errno.EUCLEAN, DamagedError),
        (errno.EISDIR, DamagedError),
        (errno.ENOSPC, DiskError),
        (errno.EDQUOT, DiskError),
        (errno.EMFILE, ShortageError),
        (errno.ENFILE, ShortageError),
        (errno.ENOMEM, ShortageError),
        (errno.EACCES, AccessError),
        (errno.EPERM, AccessError),
        (errno.EROFS, AccessError),
    ],
)
def test_only_damage_is_called_damage(number: int, kind: type[NodeError], tmp_path: Path) -> None:
    error = trouble("it can't be read", tmp_path / "file", OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert str(error).endswith(REPLACE) == (kind is DamagedError)
    assert os.strerror(number) in str(error)


def test_what_the_engine_finds_is_damage(tmp_path: Path) -> None:
    for kind in (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError):
        assert type(trouble("it can't be opened", tmp_path, kind("it says"))) is DamagedError
    assert type(trouble("it can't be opened", tmp_path, lmdb.Error("it says"))) is AccessError
