"""The data directory: one owner at a time, one current environment, nothing foreign.

Layout: `LOCK` (held for the life of the process), `CURRENT` (name of the environment in use,
replaced atomically), `env-N/` (an LMDB environment and its log), `gone-N/` (being removed),
`UNVERIFIED` (how many starts in a row have ended before the state was verified). LMDB by
itself would let two nodes share a directory.
"""

import fcntl
import os
import secrets
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from kvserver.errors import DataDirError, DiskError
from kvserver.storage.rows import damaged
from kvserver.storage.trouble import FULL, trouble

_LOCK = "LOCK"
_CURRENT = "CURRENT"
_FIRST_ENVIRONMENT = "env-1"
_GONE = "gone-"
_UNVERIFIED = "UNVERIFIED"


class DataDir:
    """An exclusively locked data directory. Close it to let the lock go."""

    def __init__(self, path: Path) -> None:
        """Make the directory if there is none, and lock it.

        Raises:
            DataDirError: it can't be used; the sentence says why and what to do.
            DiskError: there is no room for it.
        """
        self.path = path
        self._naming = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            _refuse_foreign(path)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno in FULL:
                raise trouble("it can't be made", path, error) from error
            raise DataDirError(
                f"--data-dir {path}: {error.strerror}; name a directory this user can write to"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise DataDirError(
                f"--data-dir {path} is in use by another process; give each node its own"
            ) from error

    def environment(self) -> Path:
        """Folder of the current environment; made, empty, on first use.

        Raises:
            DataDirError: which one that is can't be told, or it is not there.
            AccessError: this process may not read that.
            DiskError: this can't be made durable, or the system is short of something.
        """
        try:
            current = self.path / _CURRENT
            if not current.exists():
                (self.path / _FIRST_ENVIRONMENT).mkdir(exist_ok=True, mode=0o700)
                self.switch(_FIRST_ENVIRONMENT)
            name = current.read_text().strip()
        except OSError as error:
            raise trouble(f"{_CURRENT} can't be read or made", self.path, error) from error
        except UnicodeDecodeError as error:
            raise damaged(f"--data-dir {self.path}: can't read {_CURRENT}: {error}") from error
        folder = self.path / name
        if not name.startswith("env-") or not folder.is_dir():
            raise damaged(f"--data-dir {self.path}: {_CURRENT} names '{name}', which is not there")
        # whoever made or renamed what was found here may have been killed before it was durable
        if (
            not self.path.is_mount()
        ):  # the folder around another disk may be one that can't be synced
            with suppress(PermissionError):
                _sync(self.path.parent)
        _sync(self.path)
        return folder

    def note_start(self) -> int:
        """A process begins with this directory; how many before it ended before `note_verified`.

        A damaged file can end a process by a signal, which leaves no word: a number is left.
        """
        file = self.path / _UNVERIFIED
        try:
            before = int(file.read_text())
        except (OSError, ValueError):
            before = 0
        with suppress(OSError):  # it is a help, no more
            file.write_text(f"{before + 1}\n")
        return before

    def note_verified(self) -> None:
        """The state was read whole, and is sound."""
        with suppress(OSError):
            (self.path / _UNVERIFIED).unlink(missing_ok=True)

    def new_environment(self, source: Path) -> Path:
        """Make `source`, a folder in this directory, the next environment; not yet in use."""
        with self._naming:
            taken = [int(path.name.removeprefix("env-")) for path in self.path.glob("env-[0-9]*")]
            folder = self.path / f"env-{max(taken, default=0) + 1}"
            source.rename(folder)
        return folder

    def remove_others(self) -> None:
        """Remove environments that are not in use, and whatever else was to go: at the start."""
        current = self.environment()
        for folder in (*self.path.glob("env-[0-9]*"), *self.path.glob(_GONE + "*")):
            if folder != current:
                shutil.rmtree(folder, ignore_errors=True)

    def discard(self, folder: Path) -> None:
        """Free the name of a folder in this directory, if there is one; its files go soon.

        A file system takes half a second for a gigabyte, and nobody who serves must wait.
        """
        gone = self.path / f"{_GONE}{secrets.randbits(63)}"
        try:
            folder.rename(gone)
        except OSError:  # if it is there still, whoever needs the name will say so
            return
        threading.Thread(
            target=shutil.rmtree, args=(gone,), kwargs={"ignore_errors": True},
            name="remove", daemon=True,
        ).start()  # fmt: skip

    def switch(self, name: str) -> None:
        """Point CURRENT to another environment, atomically and durably.

        Raises:
            OSError: it names the one that it did.
            DiskError: it names the other one, but after a crash it may be either.
        """
        fresh = self.path / (_CURRENT + ".new")
        with fresh.open("w") as file:
            file.write(name + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path / _CURRENT)
        _sync(self.path)

    def close(self) -> None:
        """Let the lock go."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _sync(folder: Path) -> None:
    """Make durable which names are in a folder.

    Raises:
        PermissionError: it can't be opened.
        DiskError: that failed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except PermissionError:
        raise
    except OSError as error:
        raise DiskError(f"{folder}: can't be synced ({error})") from error


def _refuse_foreign(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()}
    if not names or _CURRENT in names:
        return
    # a first start that was cut short leaves only what it had made so far
    beginnings = {_LOCK, _FIRST_ENVIRONMENT, _CURRENT + ".new", _UNVERIFIED, "copy-in", "copy-out"}
    if names <= beginnings:
        return
    if any(path.glob("env-[0-9]*/data.mdb")):
        raise damaged(f"--data-dir {path}: {_CURRENT}, which says what is in use, is missing")
    raise DataDirError(
        f"--data-dir {path} holds files that are not kvserver's (such as '{min(names)}'); "
        "name an empty or a new directory"
    )
