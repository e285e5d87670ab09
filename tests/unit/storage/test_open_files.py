"""Files that others hold do not end the log."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.limits import no_more_files, take_file

from kvserver.storage import log_files
from kvserver.storage.log_files import create_log, open_log
from kvserver.storage.open_files import RESERVED, open_for_log, raise_limit

LINEAGE = 1 << 63 | 7


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_log_goes_on_in_new_segments_when_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "SEGMENT_BYTES", 4096)
    log = create_log(tmp_path, LINEAGE, b"", [(b"", 1, 0)])
    with no_more_files():
        for index in range(2, 90):
            log.append((bytes(1000), index, 1))
            log.sync(b"")
        assert not take_file([]), "others get none of what it has"
    assert len(list(log.folder.iterdir())) == 30
    log.close()
    log = open_log(tmp_path, LINEAGE, log.synced)
    assert log.last_index == 89
    log.close()


def test_a_file_that_is_not_there_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_for_log(tmp_path / "none", os.O_RDONLY)


def test_the_limit_is_raised_but_for_what_is_reserved() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    for _ in range(2):  # starting over changes nothing
        assert raise_limit() == hard - RESERVED
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard - RESERVED, hard)
