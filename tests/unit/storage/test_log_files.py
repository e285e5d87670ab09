"""The log's files: every cut of the last write is a valid prefix, all other damage is noticed."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.errors import DataDirError, DiskError
from kvserver.storage import log_files
from kvserver.storage.contract import LogEntry
from kvserver.storage.log_files import LogFiles, create_log, open_log

LINEAGE = 1 << 63 | 0x1234_5678_9ABC


def entry(index: int, term: int = 1, size: int = 40) -> LogEntry:
    return random.Random(index * 1000 + term).randbytes(size), index, term


def entries_of(log: LogFiles) -> list[LogEntry]:
    return [log.read(index) for index in range(log.first_index, log.last_index + 1)]


def begin(folder: Path) -> LogFiles:
    return create_log(folder, LINEAGE, b"state 0", [entry(1)])


def reopen(log: LogFiles, synced: int = 0) -> LogFiles:
    log.close()
    return open_log(log.folder.parent, LINEAGE, synced)


def append(log: LogFiles, entries: Sequence[LogEntry], state: bytes = b"state") -> None:
    for each in entries:
        log.append(each)
    log.sync(state)


def segments(log: LogFiles) -> list[Path]:
    return sorted(log.folder.iterdir())


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "SEGMENT_BYTES", 4096)
    monkeypatch.setattr(log_files, "GROWN_BYTES", 1024)


# ---------------------------------------------------------------------------- what is kept


def test_what_was_synced_is_there_again_and_nothing_else(tmp_path: Path) -> None:
    log = begin(tmp_path)
    append(log, [entry(2), entry(3, size=0)], b"state 1")
    append(log, [], b"state 2")
    log.append(entry(4))  # and not synced
    assert log.read(4) == entry(4)
    again = reopen(log)
    assert entries_of(again) == [entry(1), entry(2), entry(3, size=0)]
    assert (again.state, again.synced) == (b"state 2", 3)
    append(again, [entry(4, 2)])
    assert entries_of(reopen(again))[-1] == entry(4, 2)


def test_a_later_entry_takes_the_place_of_all_from_there_on(tmp_path: Path) -> None:
    log = begin(tmp_path)
    append(log, [entry(i) for i in range(2, 8)])
    log.append(entry(8))
    log.append(entry(9))
    log.append(entry(8, 2))  # before the sync
    assert (log.last_index, log.read(8)) == (8, entry(8, 2))
    log.append(entry(4, 3))
    assert log.last_index == 4
    log.sync(b"cut")
    expected = [entry(1), entry(2), entry(3), entry(4, 3)]
    assert entries_of(log) == expected
    assert entries_of(reopen(log)) == expected


@pytest.mark.usefixtures("small_segments")
def test_segments_follow_one_another_and_old_ones_go(tmp_path: Path) -> None:
    log = begin(tmp_path)
    for index in range(2, 200):
        append(log, [entry(index, size=100)], b"state %d" % index)
    assert len(segments(log)) > 5
    assert all(path.stat().st_size <= 4096 for path in segments(log))
    log.trim(150)
    assert len(segments(log)) <= 4
    assert log.read(150) == entry(150, size=100)
    log = reopen(log, log.synced)
    assert log.first_index <= 150
    assert log.state == b"state 199"
    assert entries_of(log)[-50:] == [entry(i, size=100) for i in range(150, 200)]
    log.trim(199)
    append(log, [entry(200)])
    assert entries_of(reopen(log))[-1] == entry(200)
    assert len(segments(log)) <= 2


@pytest.mark.usefixtures("small_segments")
def test_an_entry_longer_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    log = begin(tmp_path)
    append(log, [entry(2, size=10_000)])
    append(log, [entry(3)])
    assert [path.name for path in segments(log)] == ["00000001", "00000002", "00000003"]
    assert entries_of(reopen(log)) == [entry(1), entry(2, size=10_000), entry(3)]


def test_the_ordinary_write_changes_no_length(tmp_path: Path) -> None:
    log = begin(tmp_path)
    append(log, [entry(2)])
    lengths = set()
    for index in range(3, 100):
        append(log, [entry(index)])
        lengths.add(segments(log)[0].stat().st_size)
    assert lengths == {log_files.GROWN_BYTES}


@pytest.mark.usefixtures("small_segments")
def test_many_entries_are_trimmed_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "_COMPACTED", 10)
    log = begin(tmp_path)
    for index in range(2, 300):
        append(log, [entry(index)])
        if index > 20:
            log.trim(index - 17)
            assert entries_of(log) == [entry(i) for i in range(index - 17, index + 1)]
            assert log.size == sum(log.entry_bytes(i) for i in range(index - 17, index + 1))
    assert entries_of(reopen(log))[-18:] == [entry(i) for i in range(282, 300)]


def test_another_log_takes_its_place_only_once_it_is_opened(tmp_path: Path) -> None:
    first = begin(tmp_path)
    other = create_log(tmp_path, LINEAGE + 1, b"new", [entry(7)])
    assert len(list(tmp_path.iterdir())) == 2
    first.close()
    other.close()
    again = open_log(tmp_path, LINEAGE + 1, 1)
    assert entries_of(again) == [entry(7)]
    assert list(tmp_path.iterdir()) == [again.folder]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 5), st.integers(0, 300)),
            st.tuples(st.just("trim"), st.integers(0, 30), st.just(0)),
            st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        ),
        max_size=30,
    )
)
def test_it_holds_what_a_list_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    log = begin(tmp_path_factory.mktemp("log"))
    model, term, certain = {1: entry(1)}, 1, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "SEGMENT_BYTES", 2048)
        patch.setattr(log_files, "GROWN_BYTES", 512)
        for what, back, size in steps:
            if what == "append":
                term += 1
                at = max(log.first_index + 1, max(model) + 1 - back)
                fresh = [entry(index, term, size) for index in range(at, at + 1 + back % 3)]
                model = {i: each for i, each in model.items() if i < at}
                model |= {each[1]: each for each in fresh}
                append(log, fresh, b"%d" % term)
                certain = log.synced
            elif what == "trim":
                log.trim(max(log.first_index, max(model) - back))
            else:
                first = log.first_index
                log = reopen(log, certain)
                assert log.first_index <= first
            assert [log.read(i) for i in range(log.first_index, log.last_index + 1)][
                -min(len(model), log.last_index - log.first_index + 1) :
            ] == [model[i] for i in range(log.first_index, max(model) + 1)]
            assert log.last_index == max(model)
        assert sum(log.check()) > 0
    log.close()


# ---------------------------------------------------------------------------- a torn end


def written(tmp_path: Path) -> tuple[Path, bytes, list[int]]:
    """A closed log of four writes: its file, what it holds, and where each write ends."""
    log = begin(tmp_path)
    ends = [log._segments[-1].end]
    for number in range(3):
        more = [entry(2 * number + 2, size=9), entry(2 * number + 3, size=5)]
        append(log, more, b"state %d" % number)
        ends.append(log._segments[-1].end)
    log.close()
    (path,) = segments(log)
    return path, path.read_bytes(), ends


@pytest.mark.usefixtures("small_segments")
def test_the_last_write_may_be_cut_at_any_byte(tmp_path: Path) -> None:
    path, content, ends = written(tmp_path)
    for at in range(ends[-2], ends[-1]):
        path.write_bytes(content[:at] + bytes(len(content) - at))
        log = open_log(tmp_path, LINEAGE, 3)
        assert (log.synced, log.last_index, log.state) == (3, 5, b"state 1")
        append(log, [entry(6, 2)], b"goes on")
        log = reopen(log, 4)
        assert (log.last_index, log.state) == (6, b"goes on")
        log.close()


@pytest.mark.usefixtures("small_segments")
def test_the_last_write_may_lack_any_part(tmp_path: Path) -> None:
    """Pages reach the disk in any order; and the file may not have grown."""
    path, content, ends = written(tmp_path)
    for at in range(ends[-2], ends[-1] - 8, 5):
        path.write_bytes(content[:at] + bytes(8) + content[at + 8 :])
        log = open_log(tmp_path, LINEAGE, 3)
        assert log.synced == 3
        log.close()
        assert not path.read_bytes()[ends[-2] :].strip(b"\0"), "what is cut off is gone for good"
    for at in range(ends[-2], ends[-1]):
        path.write_bytes(content[:at])
        log = open_log(tmp_path, LINEAGE, 3)
        append(log, [entry(6)])
        assert reopen(log, 4).last_index == 6


@pytest.mark.usefixtures("small_segments")
def test_the_first_write_of_a_segment_may_be_torn(tmp_path: Path) -> None:
    log = begin(tmp_path)
    while len(segments(log)) < 2:
        append(log, [entry(log.last_index + 1, size=300)])
    last, synced = log.last_index, log.synced
    log.close()
    newest = segments(log)[-1]
    content = newest.read_bytes()
    for left in (b"", content[:10], bytes(len(content)), content[:100] + bytes(924)):
        newest.write_bytes(left)
        log = open_log(tmp_path, LINEAGE, synced - 1)
        assert (log.last_index, log.synced) == (last - 1, synced - 1)
        append(log, [entry(last, 2, size=3000)])
        log = reopen(log, synced)
        assert log.read(last) == entry(last, 2, size=3000)
        log.close()


def test_an_old_batch_behind_the_end_does_not_come_back(tmp_path: Path) -> None:
    """What was torn and is written over by something shorter leaves nothing that counts."""
    log = begin(tmp_path)
    append(log, [entry(2, size=3000)])
    end = log._segments[-1].end
    log.close()
    (path,) = segments(log)
    content = bytearray(path.read_bytes())
    content[end - 1] ^= 1
    path.write_bytes(content)
    log = open_log(tmp_path, LINEAGE, 1)
    append(log, [entry(2, 2)])
    assert entries_of(reopen(log, 2)) == [entry(1), entry(2, 2)]


# ---------------------------------------------------------------------------- damage


@pytest.mark.usefixtures("small_segments")
def test_a_flipped_bit_in_an_earlier_write_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path, content, ends = written(tmp_path)
    for at in range(ends[-2]):
        hurt = bytearray(content)
        hurt[at] ^= 1 << at % 8
        path.write_bytes(hurt)
        with pytest.raises(DataDirError, match="damaged"):
            open_log(tmp_path, LINEAGE, 0)
        assert path.read_bytes() == hurt, "nothing is changed by looking"


@pytest.mark.usefixtures("small_segments")
def test_a_flipped_bit_in_the_last_write_is_noticed_once_the_database_names_it(
    tmp_path: Path,
) -> None:
    path, content, ends = written(tmp_path)
    for at in range(ends[-2], ends[-1]):
        hurt = bytearray(content)
        hurt[at] ^= 1 << at % 8
        path.write_bytes(hurt)
        with pytest.raises(DataDirError, match="ends before"):
            open_log(tmp_path, LINEAGE, 4)


def test_zeros_in_place_of_earlier_writes_are_noticed(tmp_path: Path) -> None:
    path, content, ends = written(tmp_path)
    starts = [0, *ends]
    for lo, hi in ((0, 1), (1, 2), (2, 3), (0, 3), (0, 4)):
        size = starts[hi] - starts[lo]
        path.write_bytes(content[: starts[lo]] + bytes(size) + content[starts[hi] :])
        with pytest.raises(DataDirError, match="damaged"):
            open_log(tmp_path, LINEAGE, 0)


def hurt_by(change: Callable[[list[Path]], object], log: LogFiles) -> None:
    log.close()
    change(segments(log))
    with pytest.raises(DataDirError):
        open_log(log.folder.parent, LINEAGE, log.synced)


CHANGES: dict[str, Callable[[list[Path]], object]] = {
    "newest gone": lambda paths: shutil.move(paths[-1], paths[-1].parent.parent / "gone"),
    "newest empty": lambda paths: paths[-1].write_bytes(b""),
    "newest cut off": lambda paths: os.truncate(paths[-1], 100),
    "one cut off": lambda paths: paths[2].write_bytes(paths[2].read_bytes()[:2000]),
    "one replaced": lambda paths: paths[2].write_bytes(paths[1].read_bytes()),
    "one empty": lambda paths: paths[2].write_bytes(b""),
    "all gone": lambda paths: shutil.rmtree(paths[0].parent),
    "oldest of zeros": lambda paths: paths[0].write_bytes(bytes(4096)),
}


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_segments_that_are_not_as_written_are_noticed(
    change: Callable[[list[Path]], object], tmp_path: Path
) -> None:
    log = begin(tmp_path)
    while len(segments(log)) < 5 or log._segments[-1].end < 500:
        append(log, [entry(log.last_index + 1, size=300)])
    hurt_by(change, log)


@pytest.mark.usefixtures("small_segments")
def test_segments_that_a_crash_brought_back_do_no_harm(tmp_path: Path) -> None:
    log = begin(tmp_path)
    while len(segments(log)) < 5:
        append(log, [entry(log.last_index + 1, size=300)])
    paths = segments(log)
    last = log.last_index
    log.close()
    paths[1].unlink()
    log = open_log(tmp_path, LINEAGE, log.synced)
    assert log.first_index > 10
    assert log.last_index == last


def test_what_a_client_sends_is_never_taken_for_a_batch(tmp_path: Path) -> None:
    """A torn write whose payload holds the bytes of a sound batch of another log."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = create_log(folder, LINEAGE + (1 << 40), b"x", [entry(1)])
    sound = segments(other)[0].read_bytes()[: other._segments[-1].end]
    log = begin(tmp_path)
    append(log, [(sound * 3, 2, 1)])
    end = log._segments[-1].end
    log.close()
    content = bytearray(segments(log)[0].read_bytes())
    content[end - 1] ^= 1
    segments(log)[0].write_bytes(content)
    assert open_log(tmp_path, LINEAGE, 1).last_index == 1


def test_a_damaged_entry_is_not_read_back(tmp_path: Path) -> None:
    log = begin(tmp_path)
    append(log, [entry(2), entry(3)])
    (path,) = segments(log)
    content = path.read_bytes()
    at = content.index(entry(2)[0])
    path.write_bytes(content[:at] + b"?" + content[at + 1 :])
    assert log.read(3) == entry(3)
    with pytest.raises(DataDirError, match="log entry 2 is damaged"):
        log.read(2)


@pytest.mark.usefixtures("small_segments")
def test_a_check_reads_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_CHECKED_BYTES", 1000)
    log = begin(tmp_path)
    for index in range(2, 60):
        append(log, [entry(index, size=300 if index % 7 else 1500)])
    assert sum(log.check()) == log.synced
    found = log.check()
    next(found)
    log.trim(55)  # meanwhile
    list(found)
    for path in segments(log):
        content = path.read_bytes()
        for at in range(0, len(content.rstrip(b"\0")), 97):
            hurt = bytearray(content)
            hurt[at] ^= 16
            path.write_bytes(hurt)
            with pytest.raises(DataDirError, match="is damaged"):
                list(log.check())
        path.write_bytes(content)
    assert sum(log.check()) > 0


# ---------------------------------------------------------------------------- a disk that fails


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_write_that_fails_is_not_tried_again(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    log.append(entry(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(DiskError, match="No space left"):
            log.sync(b"")
    with pytest.raises(AssertionError):
        log.sync(b"")
    assert reopen(log, 1).last_index in (1, 2)


def test_what_the_database_does_not_name_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that failed may have left it in memory only, looking clean."""
    path, content, ends = written(tmp_path)
    wrote: list[tuple[int, int]] = []
    real = os.pwrite

    def pwrite(file: int, data: bytes, at: int) -> int:
        wrote.append((at, at + len(data)))
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    open_log(tmp_path, LINEAGE, 2)
    assert wrote == [(ends[1], len(content))], "the zeros too"
    assert path.read_bytes() == content


KILLED = """
import sys
from pathlib import Path
from kvserver.storage import log_files
log_files.SEGMENT_BYTES, log_files.GROWN_BYTES = 65536, 4096
log = log_files.open_log(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
print(log.synced, log.last_index, flush=True)
while True:
    index = log.last_index + 1
    for each in range(index, index + log.synced % 4):
        log.append((b"%d" % each * (index % 50), each, 1))
    log.sync(b"%d" % log.last_index)
    if index % 64 == 0:
        log.trim(max(log.first_index, index - 3000))
    print(log.synced, log.last_index, flush=True)
"""


def test_kill_9_again_and_again(tmp_path: Path) -> None:
    begin(tmp_path).close()
    synced, last = 1, 1
    rng = random.Random(1)
    for _ in range(12):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(LINEAGE), str(synced)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline().split()
        assert int(first[0]) >= synced
        assert int(first[1]) >= last
        told = [process.stdout.readline() for _ in range(rng.randrange(10, 200))]
        process.send_signal(signal.SIGKILL)
        process.wait()
        told += process.stdout.readlines()
        process.stdout.close()
        whole = [line for line in told if line.endswith("\n")]
        synced, last = (int(number) for number in whole[-1].split())
    log = open_log(tmp_path, LINEAGE, synced)
    assert log.last_index >= last > 500
    assert int(log.state) == log.last_index
    for index in range(max(2, log.first_index), log.last_index + 1):
        assert log.read(index)[0].startswith(b"%d" % index) or not log.read(index)[0]
    log.close()
