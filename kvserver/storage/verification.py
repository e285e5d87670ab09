"""Verification: whether the file of a state holds what was written to it, found out by reading it.

    python -m kvserver.storage.verification FOLDER

The structure comes first, read byte by byte without the engine (`lmdb.verify`): every page is found
once, in order, and counted, or is free, and no page is both. So no page is missing, of an older
time, or given to somebody else by the next write. Only then are the rows read through the engine,
each once by a scan and once by a lookup (check.py), as of the newest commit by then: what was
written since the structure was read was written by a process that met no damage on its way.

It runs beside the node that writes the file, in another process: it takes all of a core for some
seconds for every million rows, and damage can end whoever reads it by a signal. Load-bearing: the
node holds a read transaction from before the start of it to its end, so that no page of any commit
since is written again meanwhile.

What it finds out goes to its standard output, a JSON object a line: how far it is, in the end
`sound` or `damage`. On its standard input it is told to be calm, or to hurry, and it ends when that
does: with the process that started it.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvserver.errors import DamagedError, NodeError
from kvserver.storage.check import Check
from kvserver.storage.digest import Digests
from kvserver.storage.env import LmdbStorage
from kvserver.storage.structure import verify_structure

TOLD_EVERY_S: Final = 0.25

CALM, HURRY = b"c", b"h"
"""Words on the standard input. It begins in a hurry."""

CALM_PART: Final = 0.2
"""Of a core, when calm: a million rows are read within the minute, and who writes beside it keeps
nine tenths of the machine even where that has no more than two cores."""

BUSY_S: Final = 0.005
"""Work between two rests."""


class Pace:
    """How fast to go. `be` may be called by any thread, `rest` by the one that works."""

    def __init__(self) -> None:
        self._hurry = threading.Event()
        self._hurry.set()
        self._since = 0.0

    def be(self, word: bytes) -> None:
        """Take one of the words."""
        if word == HURRY:
            self._hurry.set()
        elif word == CALM and self._hurry.is_set():
            self._since = time.process_time()
            self._hurry.clear()

    def rest(self) -> None:
        """Wait for as long as the work since the last rest is worth."""
        if self._hurry.is_set():
            return
        busy_s = time.process_time() - self._since  # what others take of the core is no work
        if busy_s >= BUSY_S:
            self._hurry.wait(busy_s / CALM_PART - busy_s)
            self._since = time.process_time()


@dataclass(frozen=True)
class Found:
    """How far a verification is."""

    rows: int
    """That are sound."""
    total: int
    """That there should be; 0 while the structure is looked at."""
    transaction: int = 0
    """Number of the commit that was read; 0 before the end."""
    digests: Digests = field(default_factory=dict)
    """Of that commit, counted."""

    @property
    def sound(self) -> bool:
        """All was read."""
        return bool(self.transaction)


def verify_environment(folder: Path, pace: Pace) -> Iterator[Found]:
    """Read the newest commit of an environment, whole.

    Args:
        folder: with the file `data.mdb`. Whoever writes it must not write any page of that commit
            again before the end.
        pace: how fast.

    Yields:
        How far it is; the last one is `sound`.

    Raises:
        DataDirError: it is damaged.
        NodeError: the system does not give what is needed to read it.
    """
    yield Found(0, 0)
    verify_structure(folder / "data.mdb", pace.rest)
    storage = LmdbStorage(folder / "data.mdb", read_only=True)
    try:
        with storage.read() as txn:
            check = Check(txn)
            while not check.step():
                yield Found(check.rows, check.total)
                pace.rest()
            yield Found(check.rows, check.total, txn.number, check.counted)
    finally:
        storage.close()


# ---------------------------------------------------------------------------- the process


def _listen(pace: Pace) -> None:
    def wait() -> None:
        while word := os.read(sys.stdin.fileno(), 1):
            pace.be(word)
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def run(folder: Path, pace: Pace) -> None:
    """Verify, and tell on standard output."""
    told_at = 0.0
    try:
        for found in verify_environment(folder, pace):
            now = time.perf_counter()
            if found.sound:
                digests = {db.name.decode(): value for db, value in found.digests.items()}
                _say(sound=True, rows=found.rows, transaction=found.transaction, digests=digests)
            elif now >= told_at + TOLD_EVERY_S:
                told_at = now
                _say(rows=found.rows, total=found.total)
    except DamagedError as error:
        _say(damage=str(error))
    except NodeError as error:  # also if the file is of another version than the code on the disk
        _say(failed=str(error))
    except Exception as error:  # noqa: BLE001 - nothing else tells what happened here
        _say(failed=repr(error))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="verify the state of a node")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    pace = Pace()
    _listen(pace)
    run(given.folder, pace)


if __name__ == "__main__":
    main()
