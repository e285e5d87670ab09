"""How many files the process may open, and some that only the log can have.

Every client connection takes a file, and whoever is out of them can't begin a segment: idle clients
would end the node. So the soft limit stays below the hard one, and is raised while the log opens a
file. What is opened above it stays open, and the number is given to nobody else.
"""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

RESERVED: Final = 128
"""More than the segments of a log that is held for others."""

_LIMIT: Final = resource.RLIMIT_NOFILE
_raising: Final = threading.Lock()


def raise_limit() -> int:
    """Let the process open as many files as it may, but for those of the log; returns how many."""
    soft, hard = resource.getrlimit(_LIMIT)
    if hard != resource.RLIM_INFINITY:
        soft = hard - min(RESERVED, hard // 4)
        resource.setrlimit(_LIMIT, (soft, hard))
    return soft


def open_for_log(path: Path, flags: int) -> int:
    """Open a file, or a folder, that the node can't go on without.

    Raises:
        OSError: it can't be opened.
    """
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    with _all_files():
        return os.open(path, flags, 0o600)


@contextmanager
def _all_files() -> Iterator[None]:
    with _raising:
        soft, hard = resource.getrlimit(_LIMIT)
        resource.setrlimit(_LIMIT, (hard, hard))
        try:
            yield
        finally:
            resource.setrlimit(_LIMIT, (soft, hard))
