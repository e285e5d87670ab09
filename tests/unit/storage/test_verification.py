"""A verification reads the whole file of a state, beside whoever writes it."""

import contextlib
import errno
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from lmdb import verify as verify_library

from kvserver.errors import DamagedError, DataDirError, NodeError
from kvserver.storage import structure
from kvserver.storage.check import ROWS_MAX, check_all
from kvserver.storage.digest import DIGESTED
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import HISTORY, KEY_HISTORY, KV
from kvserver.storage.verification import (
    CALM,
    CALM_PART,
    HURRY,
    Found,
    Pace,
    run,
    verify_environment,
)

ROWS = 5_000
ROUNDS = 20
PAGE = 4096


def fill(storage: LmdbStorage, first: int = 0, rows: int = ROWS) -> None:
    numbers = range(first, first + rows)
    storage.keep_digests()
    storage.writer().put_many(KV, [(b"%06d" % n, b"value %d" % n) for n in numbers])
    storage.writer().put_many(HISTORY, [(b"h%06d" % n, b"x") for n in numbers], fresh=True)
    storage.writer().put_many(KEY_HISTORY, [(b"%06d" % (n % 7), b"%06d" % n) for n in numbers])
    storage.commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a state of some thousand rows that nobody uses."""
    storage = LmdbStorage(tmp_path)
    fill(storage)
    storage.writer().delete(KV, b"000017")
    storage.commit()
    storage.close()
    return tmp_path


def verify(folder: Path) -> Found:
    *_, found = verify_environment(folder, Pace())
    return found


def test_a_sound_state_is_counted(folder: Path) -> None:
    found = verify(folder)
    assert found.sound
    assert found.rows == found.total
    storage = LmdbStorage(folder)
    with storage.read() as txn:
        assert found.digests == txn.digests()
        assert found.transaction == txn.number
        assert txn.entries(KV) == ROWS - 1
    storage.close()


def pages(folder: Path) -> list[bytes]:
    data = (folder / "data.mdb").read_bytes()
    return [data[at : at + PAGE] for at in range(0, len(data), PAGE)]


def write(folder: Path, number: int, page: bytes) -> None:
    with (folder / "data.mdb").open("r+b") as file:
        file.seek(number * PAGE)
        file.write(page)


def branch_of(folder: Path) -> int:
    """A page that leads to others (flag 1), and is in use: the one with most children."""
    found = [(page[12:14], n) for n, page in enumerate(pages(folder)) if n > 1 and page[10] == 1]
    return max(found)[1]


def test_a_separator_that_leads_astray_is_noticed_though_all_pages_are_sound(folder: Path) -> None:
    """No row is lost, and a scan finds all of them: one lookup does not."""
    number = branch_of(folder)
    page = bytearray(pages(folder)[number])
    at = int.from_bytes(page[18:20], "little")  # the second node: its key separates
    size = int.from_bytes(page[at + 6 : at + 8], "little")
    page[at + 8 + size - 1] += 1
    write(folder, number, bytes(page))
    with pytest.raises(DataDirError, match=r"behind the next separator|before its separator"):
        verify(folder)
    storage = LmdbStorage(folder)
    with pytest.raises(DataDirError, match=r"does not find it|passes over a key"):
        list(check_all(storage))
    storage.close()


def test_a_smaller_value_that_keeps_the_pages_of_a_larger_one_is_sound(tmp_path: Path) -> None:
    """As the engine does within a transaction."""
    storage = LmdbStorage(tmp_path)
    for size in (9_000, 1, 20_000, 5_000):
        storage.writer().put(KV, b"k%d" % (size % 3), bytes(size))
    storage.writer().put(KV, b"k", bytes(90_000))
    storage.writer().put(KV, b"k", b"x")
    storage.commit()
    storage.close()
    assert verify(tmp_path).sound


def test_pages_of_many_values_that_are_gone_may_still_be_counted(tmp_path: Path) -> None:
    """The engine forgets to take the last one off."""
    storage = LmdbStorage(tmp_path)
    values = [b"%017d" % n for n in range(300)]
    storage.writer().put_many(KEY_HISTORY, [(b"hot", value) for value in values])
    storage.writer().put(KEY_HISTORY, b"other", b"%017d" % 1)
    storage.commit()
    for value in values:
        storage.writer().delete_value(KEY_HISTORY, b"hot", value)
    storage.commit()
    storage.close()
    assert verify(tmp_path).sound


def test_a_page_of_an_older_time_is_noticed(tmp_path: Path) -> None:
    storage = LmdbStorage(tmp_path)
    fill(storage)
    storage.close()
    before = pages(tmp_path)
    storage = LmdbStorage(tmp_path)
    storage.writer().put(KV, b"000000", b"newer")
    storage.commit()
    storage.writer().put(KV, b"x", b"y")
    storage.commit()
    storage.close()
    after = pages(tmp_path)
    changed = [n for n, page in enumerate(before) if n > 1 and page != after[n]]
    for number in changed:
        write(tmp_path, number, before[number])
        with pytest.raises(DataDirError):
            verify(tmp_path)
        write(tmp_path, number, after[number])
    assert verify(tmp_path).sound


def test_a_truncated_file_is_noticed(folder: Path) -> None:
    file = folder / "data.mdb"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(DataDirError):
        verify(folder)


def test_bytes_that_are_no_database_are_noticed(folder: Path) -> None:
    (folder / "data.mdb").write_bytes(b"\xff" * 3 * PAGE)
    with pytest.raises(DataDirError, match="structure is damaged"):
        verify(folder)


# ---------------------------------------------------------------------------- the process


def started(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "kvserver.storage.verification", str(folder)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
    )


def test_the_process_tells_what_it_finds(folder: Path) -> None:
    process = started(folder)
    assert process.stdout is not None
    told = [json.loads(line) for line in process.stdout]
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert told[-1]["sound"]
    assert told[-1]["digests"].keys() == {db.name.decode() for db in DIGESTED}
    assert all(line["rows"] <= told[-1]["rows"] for line in told)


def test_the_process_ends_with_the_one_that_started_it(folder: Path) -> None:
    process = started(folder)
    process.communicate(input="", timeout=30)  # its standard input ends at once
    assert process.returncode == 0


def test_damage_is_told_with_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data.mdb").write_bytes(b"")
    run(folder, Pace())
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "is damaged" in told["damage"]
    assert "replace this node" in told["damage"]


def test_what_can_not_be_read_is_not_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError("no memory is left")

    monkeypatch.setattr("kvserver.storage.structure._Walk.verify", short)
    (tmp_path / "data.mdb").write_bytes(b"")
    run(tmp_path, Pace())
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"failed": "MemoryError('no memory is left')"}


def test_a_sector_that_the_disk_does_not_give_is_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("kvserver.storage.structure._Walk.read_page", bad)
    with pytest.raises(DamagedError, match="it can't be read"):
        verify(folder)


def test_a_library_that_it_does_not_get_along_with_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may call its own methods otherwise."""

    def changed(*_: object, **__: object) -> None:
        raise TypeError("takes 3 arguments")

    monkeypatch.setattr("kvserver.storage.structure._Walk._walk_leaf", changed)
    with pytest.raises(NodeError, match="installed lmdb") as caught:
        verify(folder)
    assert not isinstance(caught.value, DamagedError)


def test_a_file_of_another_version_is_no_damage(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code on the disk may have been replaced under the node that runs."""
    monkeypatch.setattr("kvserver.storage.environment.FORMAT_VERSION", 99)
    run(folder, Pace())
    assert "start the version" in json.loads(capsys.readouterr().out.splitlines()[-1])["failed"]


def test_a_commit_that_makes_the_file_longer_meanwhile_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It falls between the look at the length and the one at the roots."""
    storage = LmdbStorage(folder)
    load_metas = structure._Walk.load_metas

    def after_a_commit(walk: structure._Walk) -> None:
        storage.writer().put(KV, b"large", bytes(8 << 20))
        storage.commit()
        storage.close()
        load_metas(walk)

    monkeypatch.setattr(structure._Walk, "load_metas", after_a_commit)
    assert verify(folder).sound


# ---------------------------------------------------------------------------- beside a writer


@pytest.mark.parametrize("pinned", [True, False])
def test_beside_a_writer_nothing_is_found_as_long_as_a_reader_is_open(
    tmp_path: Path, pinned: bool
) -> None:
    """Without it pages are written again while they are read, and look damaged."""
    storage = LmdbStorage(tmp_path)
    fill(storage)
    wrong, next_key = [], ROWS
    for _ in range(ROUNDS):
        with storage.read() if pinned else contextlib.nullcontext():
            process = started(tmp_path)
            while process.poll() is None:
                change(storage, next_key)
                next_key += 20
            assert process.stdout is not None
            told = json.loads(process.stdout.readlines()[-1])
            process.communicate()
        if "sound" not in told:
            wrong.append(told)
    storage.close()
    assert bool(wrong) is not pinned, wrong


def change(storage: LmdbStorage, first: int) -> None:
    """Rows come, change and go."""
    fill(storage, first=first, rows=20)
    for number in range(first - 40, first - 20):
        storage.writer().put(KV, b"%06d" % number, b"changed")
        storage.writer().delete(KV, b"%06d" % (number - ROWS // 2))
    storage.commit()


def test_when_calm_it_takes_a_part_of_a_core_only(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [7.0]
    rests: list[float] = []
    monkeypatch.setattr("time.process_time", lambda: used[0])
    pace = Pace()
    monkeypatch.setattr(pace._hurry, "wait", rests.append)
    used[0] += 100
    pace.rest()
    assert not rests, "it begins in a hurry"
    pace.be(CALM)
    pace.rest()
    assert not rests, "what was done in a hurry is not made up for"
    for busy_s in (0.006, 0.2):
        used[0] += busy_s
        pace.be(CALM)
        pace.rest()
        assert rests.pop() == pytest.approx(busy_s * (1 / CALM_PART - 1))
    used[0] += 1
    pace.be(HURRY)
    pace.rest()
    assert not rests


def test_whoever_rests_can_be_hurried() -> None:
    pace = Pace()
    pace.be(CALM)
    pace._since -= 1000
    threading.Timer(0.01, pace.be, [HURRY]).start()
    pace.rest()


def test_it_rests_between_pages_and_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace()
    rests: list[int] = []
    monkeypatch.setattr(pace, "rest", lambda: rests.append(1))
    *_, found = verify_environment(folder, pace)
    pages = (folder / "data.mdb").stat().st_size // 4096
    assert len(rests) > pages / 2
    assert found.sound
    monkeypatch.setattr("kvserver.storage.verification.verify_structure", lambda *_: None)
    rests.clear()
    list(verify_environment(folder, pace))
    assert len(rests) >= ROWS / ROWS_MAX, "between rows as well"


@pytest.mark.parametrize("torn", [True, False])
def test_roots_that_change_while_they_are_read_are_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """Half of one commit and half of another makes no sense, and is no damage."""
    walk, roots = structure._Walk, structure._Walk._roots
    load: Any = verify_library._Verifier.load_metas
    turns = iter([b"one", b"other"])

    def half_written(self: structure._Walk) -> None:
        load(self)
        if next(halves, False):
            if torn:
                raise verify_library.VerifyError("half of another commit")
            self.meta.last_pg = 7

    halves = iter([True])
    monkeypatch.setattr(verify_library._Verifier, "load_metas", half_written)
    monkeypatch.setattr(walk, "_roots", lambda self: next(turns, None) or roots(self))
    assert verify(folder).sound


def test_a_reader_begins_again_when_commits_pass_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LmdbStorage(folder / "data.mdb", read_only=True)
    environment = storage._environment
    commits, numbers = environment._commits, iter([[8000, 8001]])
    monkeypatch.setattr(environment, "_commits", lambda size: next(numbers, None) or commits(size))
    with storage.read() as txn:
        assert txn.number in commits(4096)
    assert next(numbers, None) is None
    storage.close()
