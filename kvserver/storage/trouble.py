"""What it means when the system does not open or read a file of the data directory.

Damage is only what no other user, no higher limit and no later moment would change: whoever is told
of damage throws away what the node holds.
"""

import errno
import os
from pathlib import Path
from typing import Final

import lmdb

from kvserver.errors import AccessError, DiskError, NodeError, ShortageError
from kvserver.storage.rows import damaged

DAMAGE: Final = (
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.ProblemError,
)
"""What LMDB says when its pages make no sense; never so for sound ones."""

_DAMAGE_AT_OPEN: Final = (
    *DAMAGE,
    lmdb.IncompatibleError,
    lmdb.NotFoundError,
    lmdb.VersionMismatchError,
)
"""And when the databases are not those that were made."""

_BROKEN: Final = (
    errno.EIO,
    errno.EBADMSG,
    errno.EUCLEAN,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
)
"""What the disk holds is lost, or is not what was written there."""

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED: Final = (errno.EACCES, errno.EPERM)

_SHORT: Final = {
    errno.EMFILE: "raise the limit of open files of kvserver (ulimit -n, LimitNOFILE of systemd)",
    errno.ENFILE: "raise the limit of open files of this machine (fs.file-max)",
    errno.ENOMEM: "see what takes the memory of this machine, and whether the address space of "
    "kvserver is limited (ulimit -v): the database takes 64 GiB of it",
}
"""What the system is short of, by what would help."""


def trouble(what: str, path: Path, error: OSError | lmdb.Error) -> NodeError:
    """The error of ours for one of the system's, or of the engine's while it opens a database.

    Args:
        what: can't be done.
        path: of the file, or a folder with all that it may be about.
        error: why.
    """
    told = f"{path}: {what} ({error})"
    number = error.errno if isinstance(error, OSError) else getattr(error, "code", None)
    if isinstance(error, lmdb.DiskError) or number in FULL:
        return DiskError(f"{told}: no room on the disk")
    if number in _REFUSED:
        return AccessError(f"{told}: {_refusal(path)}")
    if isinstance(error, _DAMAGE_AT_OPEN) or number in _BROKEN:
        return damaged(told)
    return shortage(told, number) or AccessError(
        f"{told}: see whether the file system is mounted for writing, and lets files be mapped"
    )


def shortage(told: str, number: int | None) -> ShortageError | None:
    """The error with this number if the system is short of something, and what would help."""
    return None if number not in _SHORT else ShortageError(f"{told}: {_SHORT[number]}")


def _refusal(path: Path) -> str:
    barred = _barred(path)
    found = barred.stat()
    return (
        f"{barred} belongs to user {found.st_uid} (mode {found.st_mode & 0o7777:o}), kvserver runs "
        f"as user {os.geteuid()}; give that user all of --data-dir, as chown -R does"
    )


def _barred(path: Path) -> Path:
    """What on the way to `path`, or in it, this user may not use; `path` if nothing is seen."""
    for parent in reversed(path.parents):
        if not os.access(parent, os.X_OK, effective_ids=True):
            return parent
    if not path.exists():  # it was to be made
        path = path.parent
    for each in (path, *path.rglob("*")):
        wanted = os.R_OK | os.W_OK | (os.X_OK if each.is_dir() else 0)
        if not os.access(each, wanted, effective_ids=True):
            return each
    return path
