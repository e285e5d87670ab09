"""The log's files on a disk that fails: a sync that failed has lost what it was to write."""

import errno
import os
from pathlib import Path

import pytest

from kvserver.errors import DiskError
from kvserver.storage import log_files
from kvserver.storage.log_files import create_log, open_log

LINEAGE = 1 << 63 | 5
FIRST, SECOND, TORN, FRESH = (
    (b"a" * 100, 1, 1),
    (b"b" * 100, 2, 1),
    (b"c" * 600, 3, 1),
    (b"d" * 4000, 3, 2),
)


class FailingDisk:
    """What of a file is on the disk itself: a sync that fails forgets what it could not write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = bytearray(path.read_bytes())
        self._dirty: list[tuple[int, bytes]] = []
        self._pwrite = os.pwrite
        self.fail_next_sync = False

    def pwrite(self, file: int, data: bytes, at: int) -> int:
        self._dirty.append((at, bytes(data)))
        return self._pwrite(file, data, at)

    def fdatasync(self, file: int) -> None:
        dirty, self._dirty = self._dirty, []
        if self.fail_next_sync:
            self.fail_next_sync = False
            raise OSError(errno.EIO, "Input/output error")
        for at, data in dirty:
            self._disk[at : at + len(data)] = data

    def lose_power(self) -> None:
        self._path.write_bytes(self._disk)


def test_a_torn_end_that_could_not_be_removed_once_is_never_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "SEGMENT_BYTES", 4096)
    monkeypatch.setattr(log_files, "GROWN_BYTES", 1024)
    log = create_log(tmp_path, LINEAGE, b"", [FIRST])
    end = 0
    for each in (SECOND, TORN):
        end = log._segments[-1].end
        log.append(each)
        log.sync(b"")
    log.close()
    path = log.folder / "00000001"
    content = path.read_bytes()
    path.write_bytes(content[:end] + bytes(512) + content[end + 512 :])
    disk = FailingDisk(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", disk.pwrite)
        patch.setattr(os, "fdatasync", disk.fdatasync)
        disk.fail_next_sync = True
        with pytest.raises(DiskError, match="Input/output"):
            open_log(tmp_path, LINEAGE, 2)
        log = open_log(tmp_path, LINEAGE, 2)  # reads the zeros that the disk has never got
    log.append(FRESH)
    log.sync(b"")
    assert log.synced == 3
    assert len(list(log.folder.iterdir())) == 2, "what was torn lies before something that counts"
    log.close()
    disk.lose_power()
    assert open_log(tmp_path, LINEAGE, 3).read(3) == FRESH
