"""Where data and logs of a run live: deleted afterwards unless wanted or needed as evidence."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class WorkFolder:
    """A folder for one run."""

    path: Path
    keep: bool
    """Set it, and the folder stays."""


class FolderInUse(Exception):  # noqa: N818 - named after what happened
    """The folder given holds something already."""


@contextmanager
def work_folder(given: Path | None) -> Iterator[WorkFolder]:
    """The given folder, which stays, or a temporary one, which goes."""
    if given is None:
        folder = WorkFolder(Path(tempfile.mkdtemp(prefix="kvbench-")), keep=False)
    else:
        if given.exists() and any(given.iterdir()):
            raise FolderInUse(f"{given} is not empty: name a new folder")
        given.mkdir(parents=True, exist_ok=True)
        folder = WorkFolder(given, keep=True)
    try:
        yield folder
    finally:
        if not folder.keep:
            shutil.rmtree(folder.path, ignore_errors=True)
