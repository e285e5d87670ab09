"""What is synced, and in which order: a disk that keeps nothing else must still have it.

Only the machine's power tells whether a sync is missing, so these tests watch the calls.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from support.copying import Side, compacted, make_copy, open_copy, send

from kvserver.storage import log_files
from kvserver.storage.datadir import DataDir
from kvserver.storage.env import LmdbStorage
from kvserver.storage.log_files import LogFiles, create_log, open_log
from kvserver.storage.schema import META

LINEAGE = 1 << 63 | 0x1234_5678_9ABC

Call = tuple[str, str]
"""What was done, and the path of the file or folder, as seen from the folder of the test."""


class Watched:
    """Calls of the system that change a file, its name, or what is durable of either."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[Call] = []
        self._root = root
        for name in ("pwrite", "fdatasync", "fsync"):
            patch.setattr(os, name, self._of_file(name, getattr(os, name)))
        for name in ("unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, self._of_path(name, getattr(os, name), 0))
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, self._of_path(name, getattr(os, name), 1))
        patch.setattr(lmdb, "open", self._open_database(lmdb.open))

    def _of_file(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(file: int, *rest: Any) -> Any:
            done = real(file, *rest)
            self._note(name, Path(f"/proc/self/fd/{file}").readlink())
            return done

        return watched

    def _of_path(self, name: str, real: Callable[..., Any], place: int) -> Callable[..., Any]:
        """`place` of the argument that names what is changed."""

        def watched(*paths: Any, **options: Any) -> Any:
            done = real(*paths, **options)
            self._note(name, Path(paths[place]))
            return done

        return watched

    def _open_database(self, real: Callable[..., Any]) -> Callable[..., Any]:
        watched = self

        class Database:
            """An environment of LMDB that notes its syncs; the rest is the real one's."""

            def __init__(self, path: str, **options: Any) -> None:
                self._path = Path(path)
                self._real = real(path, **options)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._real, name)

            def sync(self, force: bool = False) -> None:
                self._real.sync(force)
                if force:
                    watched._note("database", self._path)

        return Database

    def _note(self, what: str, path: Path) -> None:
        if path.is_relative_to(self._root):
            self.calls.append((what, str(path.relative_to(self._root))))

    def since(self, action: Callable[[], Any]) -> list[Call]:
        """What an action does."""
        before = len(self.calls)
        action()
        return self.calls[before:]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "SEGMENT_BYTES", 1024)
    monkeypatch.setattr(log_files, "GROWN_BYTES", 512)


# ---------------------------------------------------------------------------- the log

FOLDER = f"journal-{LINEAGE:016x}"


def segment(number: int) -> str:
    return f"{FOLDER}/{number:08}"


def begin(folder: Path) -> LogFiles:
    return create_log(folder, LINEAGE, b"state", [(b"one", 1, 0)])


def append(log: LogFiles, size: int = 300) -> None:
    log.append((b"x" * size, log.last_index + 1, 1))
    log.sync(b"state")


def test_a_new_log_is_durable_with_its_names(tmp_path: Path, watched: Watched) -> None:
    calls = watched.since(lambda: begin(tmp_path))
    assert calls == [
        ("mkdir", FOLDER),
        ("pwrite", segment(1)),
        ("fdatasync", segment(1)),
        ("fsync", FOLDER),
        ("fsync", "."),
    ]


def test_an_ordinary_write_is_one_write_and_one_sync(tmp_path: Path, watched: Watched) -> None:
    log = begin(tmp_path)
    calls = watched.since(lambda: append(log))
    assert calls == [("pwrite", segment(1)), ("fdatasync", segment(1))]


@pytest.mark.usefixtures("small_segments")
def test_a_new_segment_is_durable_with_its_name(tmp_path: Path, watched: Watched) -> None:
    """Else all that is acknowledged in it goes with its name."""
    log = begin(tmp_path)
    calls: list[Call] = []
    while ("pwrite", segment(2)) not in calls:
        calls = watched.since(lambda: append(log))
    assert calls == [("pwrite", segment(2)), ("fdatasync", segment(2)), ("fsync", FOLDER)]


@pytest.mark.usefixtures("small_segments")
def test_a_torn_segment_is_gone_durably_before_the_log_goes_on(
    tmp_path: Path, watched: Watched
) -> None:
    log = begin(tmp_path)
    while len(list(log.folder.iterdir())) < 2:
        append(log)
    synced = log.synced
    log.close()
    (tmp_path / segment(2)).write_bytes(b"torn")
    calls = watched.since(lambda: open_log(tmp_path, LINEAGE, synced - 1))
    assert ("unlink", segment(2)) in calls
    after = calls[calls.index(("unlink", segment(2))) :]
    assert ("fdatasync", segment(1)) in after, "what may be in memory only is written again"
    assert after[-1] == ("fsync", FOLDER)


def test_second_names_of_a_log_are_durable(tmp_path: Path, watched: Watched) -> None:
    log = begin(tmp_path)
    (tmp_path / "other").mkdir()
    calls = watched.since(lambda: log.link_into(tmp_path / "other"))
    assert calls == [
        ("mkdir", f"other/{FOLDER}"),
        ("link", f"other/{segment(1)}"),
        ("fsync", f"other/{FOLDER}"),
        ("fsync", "other"),
    ]


# ---------------------------------------------------------------------------- the state


@pytest.fixture
def storage(tmp_path: Path, watched: Watched) -> Iterator[LmdbStorage]:
    (tmp_path / "env").mkdir()
    opened = LmdbStorage(tmp_path / "env")
    yield opened
    opened.close()


def put(storage: LmdbStorage, value: bytes) -> None:
    storage.writer().put(META, b"a", value)


def test_a_commit_flushes_its_pages_but_not_the_root_that_names_them(storage: LmdbStorage) -> None:
    """With more the newest commit could not be undone, with less an older one could be torn."""
    flags = storage._environment.lmdb.flags()
    assert flags["sync"], "pages go to the disk before the root that names them"
    assert not flags["metasync"], "the root may go with the next commit: one sync less"
    assert not flags["writemap"]
    assert not flags["map_async"]


def test_what_is_seen_when_an_environment_is_opened_is_durable(
    storage: LmdbStorage, watched: Watched, tmp_path: Path
) -> None:
    assert ("database", "env") in watched.calls
    put(storage, b"1")
    storage.commit()
    storage.close()
    assert ("database", "env") in watched.since(lambda: LmdbStorage(tmp_path / "env").close())


def test_a_durable_commit_flushes_its_root_too(storage: LmdbStorage, watched: Watched) -> None:
    put(storage, b"1")
    assert watched.since(storage.commit) == []
    put(storage, b"2")
    assert watched.since(lambda: storage.commit(durable=True)) == [("database", "env")]


def test_a_log_is_durable_before_the_state_that_names_it_and_that_before_the_old_one_goes(
    storage: LmdbStorage, watched: Watched
) -> None:
    storage.begin_log(b"old", [(b"one", 1, 0)])
    storage.commit()
    old = storage.log.folder.name
    put(storage, b"1")

    def another() -> None:
        storage.begin_log(b"new", [(b"seven", 7, 3)])
        storage.commit()

    calls = watched.since(another)
    fresh = storage.log.folder.name
    order = [
        ("fdatasync", f"env/{fresh}/00000001"),
        ("fsync", f"env/{fresh}"),
        ("fsync", "env"),
        ("database", "env"),
        ("rmdir", f"env/{old}"),
    ]
    assert [call for call in calls if call in order] == order


# ---------------------------------------------------------------------------- the data directory


def test_current_is_switched_to_a_durable_name_durably(tmp_path: Path, watched: Watched) -> None:
    with DataDir(tmp_path) as owner:
        owner.environment()
        assert watched.since(lambda: owner.switch("env-1")) == [
            ("fsync", "CURRENT.new"),
            ("replace", "CURRENT"),
            ("fsync", "."),
        ]


def before_the_switch(calls: list[Call], side: str) -> list[Call]:
    """What was done before CURRENT named another environment; the rest makes that durable."""
    at = calls.index(("replace", f"{side}/CURRENT"))
    assert calls[at - 1] == ("fsync", f"{side}/CURRENT.new")
    assert calls[at + 1] == ("fsync", side)
    return calls[:at]


def test_a_received_copy_is_on_the_disk_before_it_is_the_state(
    watched: Watched, sides: tuple[Side, Side]
) -> None:
    source, target = sides
    source.put(2000, b"new" * 20)
    target.put(10, b"old")
    copy = make_copy(source)

    def receive() -> None:
        send(copy, target)
        fresh = open_copy(target, copy.digest)
        assert fresh is not None
        fresh.begin_log(b"mine", [(b"", 7, 1)])
        fresh.commit(durable=True)
        target.copies.adopt(fresh)

    calls = before_the_switch(watched.since(receive), "target")
    renamed = calls.index(("rename", "target/env-2"))
    assert ("fsync", "target/copy-in/data.mdb") in calls[:renamed], "it is sound as it arrived"
    named = calls[renamed:]
    assert ("fsync", "target/env-2") in named, "with its file's name, and that of its log"
    assert named[-2] == ("database", "target/env-2"), "and with all that was put into it"


def test_a_compact_copy_is_on_the_disk_before_it_is_the_state(
    watched: Watched, sides: tuple[Side, Side]
) -> None:
    source, _ = sides
    source.put(2000, b"new" * 20)

    def defragment() -> None:
        source.copies.replace(compacted(source))

    calls = before_the_switch(watched.since(defragment), "source")
    (linked,) = (place for place, (what, _) in enumerate(calls) if what == "link")
    folder = str(Path(calls[linked][1]).parent)
    assert folder.startswith("source/env-2/journal-")
    assert calls[linked + 1 :][:3] == [
        ("fsync", folder),
        ("fsync", "source/env-2"),
        ("database", "source/env-2"),
    ]
