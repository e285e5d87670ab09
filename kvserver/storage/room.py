"""Room on the disk for the copies that are under way."""

import errno
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvserver.storage.env import LmdbStorage

LEFT_FREE_BYTES: Final = 256 << 20
"""Of the disk: a copy that takes the last room stops the node, as the log has none then."""


class Room:
    """What copies may take of one disk."""

    def __init__(self, folder: Path) -> None:
        """Of the disk that `folder` is on."""
        self._folder = folder
        self._lock = threading.Lock()
        self._promised = 0
        """Bytes that copies may still write. Invariant: as far as one can see, the disk has so much
        and `LEFT_FREE_BYTES` besides."""

    def promise(self, size: int) -> None:
        """Before a copy is begun; to be taken back as it is written.

        Raises:
            OSError: there is too little.
        """
        with self._lock:
            needed = size + LEFT_FREE_BYTES
            free = shutil.disk_usage(self._folder).free - self._promised
            if free < needed:
                told = f"{max(free, 0) >> 20} MiB are free, a copy needs {needed >> 20} MiB"
                raise OSError(errno.ENOSPC, told)
            self._promised += size

    def take_back(self, size: int) -> None:
        """So much is written now, or never will be."""
        with self._lock:
            self._promised -= size

    @contextmanager
    def for_copy(self, source: LmdbStorage) -> Iterator[None]:
        """While a compact copy is made of it.

        Raises:
            OSError: there is too little.
        """
        _, used = source.size()  # a compact copy leaves out the rest
        self.promise(used)
        try:
            yield
        finally:
            self.take_back(used)
