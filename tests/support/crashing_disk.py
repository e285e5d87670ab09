"""A disk in memory that tells what is written from what is durable, for `storage/log_files.py`.

What the process sees is the cache of the system. A loss of power leaves of each sector of 512 bytes
the durable version or any that was written since, of each size and of each name in a folder the
same: one by one, at random. The end of the process alone leaves the cache.

A sync that fails drops data: the cache counts as clean from then on, although the disk has taken
any part of it; a clean sector may be read from the disk again at any later start. Sizes and names
stay unsynced: a file system keeps its own notes, or gives up altogether.

The process may die at any call, before it, after it or in the middle of a write.
"""

import errno
import os
import random
from collections.abc import Callable, Generator
from pathlib import Path, PosixPath
from types import ModuleType
from typing import Any, ClassVar, Final

import pytest

SECTOR_BYTES: Final = 512


class DiedError(BaseException):
    """The process is dead; nobody may catch it but the test."""


class File:
    """What is in the cache, and what the disk may hold."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self._durable = bytearray()
        self._versions: dict[int, list[bytes]] = {}
        """Of each dirty sector, in the order of the writes."""
        self._sizes: list[int] = []
        """Since the last sync."""

    def write(self, data: bytes, at: int) -> None:
        end = at + len(data)
        if end > len(self.seen):
            self._resize(end)
        self.seen[at:end] = data
        for number in range(at // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            self._versions.setdefault(number, []).append(_sector(self.seen, number))

    def truncate(self) -> None:
        self._resize(0)

    def _resize(self, size: int) -> None:
        self.seen = self.seen[:size] + bytes(max(0, size - len(self.seen)))
        self._sizes.append(size)

    def sync(self) -> None:
        """What is dirty goes to the disk, and nothing else."""
        self._durable = self._of_size(len(self.seen))
        for number in self._versions:
            _put(self._durable, number, _sector(self.seen, number))
        self._versions.clear()
        self._sizes.clear()

    def fail(self, rng: random.Random) -> None:
        """A sync fails: the cache counts as clean, whatever the disk has taken."""
        self._durable = self._taken(rng, max([len(self._durable), *self._sizes]))
        self._versions.clear()

    def _taken(self, rng: random.Random, size: int) -> bytearray:
        taken = self._of_size(size)
        for number, versions in self._versions.items():
            _put(taken, number, rng.choice([_sector(taken, number), *versions]))
        return taken

    def _of_size(self, size: int) -> bytearray:
        kept = self._durable[: min([size, *self._sizes])]
        return kept + bytes(size - len(kept))

    def lose_power(self, rng: random.Random) -> None:
        self._durable = self._taken(rng, rng.choice([len(self._durable), *self._sizes]))
        self.seen = self._durable[:]
        self._versions.clear()
        self._sizes.clear()

    def evict(self, rng: random.Random) -> None:
        """Of clean sectors some are forgotten, and read from the disk when they are asked for."""
        part = rng.choice([0.0, 0.0, 0.1, 0.5, 1.0])
        for number in range(-(-len(self.seen) // SECTOR_BYTES)):
            if number not in self._versions and rng.random() < part:
                _put(self.seen, number, _sector(self._durable, number))


def _sector(data: bytearray, number: int) -> bytes:
    found = bytes(data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])
    return found.ljust(SECTOR_BYTES, b"\0")


def _put(data: bytearray, number: int, sector: bytes) -> None:
    at = number * SECTOR_BYTES
    data[at : at + SECTOR_BYTES] = sector[: max(0, len(data) - at)]


class Folder:
    """Names, and what they may be after a loss of power."""

    def __init__(self) -> None:
        self.seen: dict[str, File | Folder] = {}
        self._durable: dict[str, File | Folder] = {}
        self._changes: dict[str, list[File | Folder | None]] = {}

    def name(self, name: str, node: "File | Folder | None") -> None:
        """Let a name be of something else, or of nothing."""
        if node is None:
            del self.seen[name]
        else:
            self.seen[name] = node
        self._changes.setdefault(name, []).append(node)

    def sync(self) -> None:
        self._durable = dict(self.seen)
        self._changes.clear()

    def lose_power(self, rng: random.Random) -> None:
        self.seen = dict(self._durable)
        for name, nodes in self._changes.items():
            node = rng.choice([self._durable.get(name), *nodes])
            self.seen.pop(name, None)
            if node is not None:
                self.seen[name] = node
        self.sync()
        for each in self.seen.values():
            each.lose_power(rng)

    def evict(self, rng: random.Random) -> None:
        for each in self.seen.values():
            each.evict(rng)


class Disk:
    """What `log_files` sees of the system."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.root = Folder()
        self.calls_left: int | None = None
        """Until the process dies; None: it lives."""
        self.failures_in: int | None = None
        """Calls that may fail until one does."""
        self._dead = False
        self._files: dict[int, File | Folder] = {}
        self._next = 3
        self.path: Path = type("DiskPath", (DiskPath,), {"disk": self})("/")

    def install(self, module: ModuleType, patch: pytest.MonkeyPatch) -> None:
        """Let a module that opens its files by `open_for_log` live on this disk."""
        patch.setattr(module, "os", self)
        patch.setattr(module, "shutil", self)
        patch.setattr(module, "open_for_log", self.open)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("O_"):
            return getattr(os, name)
        raise AssertionError(f"this disk does not know {name}: teach it")

    # ------------------------------------------------------------------ what befalls it

    def restart(self, *, power: bool) -> None:
        """The process starts again; with `power` the machine does."""
        self._files.clear()
        self._dead, self.calls_left, self.failures_in = False, None, None
        if power:
            self.root.lose_power(self.rng)
        else:
            self.root.evict(self.rng)

    def _call(self, effect: Callable[[], Any]) -> Any:
        """Do it, or die before or after it."""
        if self._dead:
            raise DiedError
        if self.calls_left is None:
            return effect()
        self.calls_left -= 1
        if self.calls_left > 0:
            return effect()
        self._dead = True
        if self.rng.random() < 0.5:
            effect()
        raise DiedError

    def _fails(self) -> bool:
        if self.failures_in is None:
            return False
        self.failures_in -= 1
        if self.failures_in > 0:
            return False
        self.failures_in = None
        return True

    # ------------------------------------------------------------------ files

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        def effect() -> int:
            folder = self._folder(path.parent)
            node = folder.seen.get(path.name) if path.name else self.root
            if node is None and not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            if node is None:
                node = File()
                folder.name(path.name, node)
            elif flags & os.O_TRUNC:
                assert isinstance(node, File)
                node.truncate()
            self._next += 1
            self._files[self._next] = node
            return self._next

        return int(self._call(effect))

    def close(self, file: int) -> None:
        self._files.pop(file, None)

    def pwrite(self, file: int, data: bytes, at: int) -> int:
        target = self._files[file]
        assert isinstance(target, File)
        short = self.rng.random() < 0.1
        size = self.rng.randint(1, len(data)) if short else len(data)
        if self._fails():
            target.write(bytes(data[: size // 2]), at)
            raise OSError(errno.ENOSPC, "no space left")
        dying = self.calls_left == 1
        if dying:
            size = self.rng.randint(1, size)

        def effect() -> int:
            target.write(bytes(data[:size]), at)
            return size

        return int(self._call(effect))

    def pread(self, file: int, size: int, at: int) -> bytes:
        source = self._files[file]
        assert isinstance(source, File)
        return bytes(source.seen[at : at + size])

    def fdatasync(self, file: int) -> None:
        target = self._files[file]
        assert isinstance(target, File)
        if self._fails():
            target.fail(self.rng)
            raise OSError(errno.EIO, "input/output error")
        self._call(target.sync)

    def fsync(self, file: int) -> None:
        target = self._files[file]
        if isinstance(target, File):
            self.fdatasync(file)
            return
        if self._fails():
            raise OSError(errno.EIO, "input/output error")
        self._call(target.sync)

    # ------------------------------------------------------------------ names

    def _node(self, path: Path) -> File | Folder | None:
        node: File | Folder | None = self.root
        for part in path.parts[1:]:
            node = node.seen.get(part) if isinstance(node, Folder) else None
        return node

    def _folder(self, path: Path) -> Folder:
        node = self._node(path)
        if not isinstance(node, Folder):
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        return node

    def make_folder(self, path: Path) -> None:
        if path.name in self._folder(path.parent).seen:
            raise FileExistsError(errno.EEXIST, "it exists", str(path))
        self._call(lambda: self._folder(path.parent).name(path.name, Folder()))

    def unlink(self, path: Path) -> None:
        if path.name not in self._folder(path.parent).seen:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._call(lambda: self._folder(path.parent).name(path.name, None))

    def rmtree(self, path: Path, *, ignore_errors: bool = False) -> None:
        for name in list(self._folder(path).seen):
            self.unlink(path / name)
        self.unlink(path)


class DiskPath(PosixPath):
    """A path on a disk in memory."""

    disk: ClassVar[Disk]

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        self.disk.make_folder(self)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.disk.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def exists(self, **_: Any) -> bool:
        return self.disk._node(self) is not None

    def iterdir(self) -> Generator[Any, None, None]:
        yield from [self / name for name in self.disk._folder(self).seen]

    def glob(self, pattern: str, **_: Any) -> Generator[Any, None, None]:
        yield from [path for path in self.iterdir() if path.match(pattern)]

    def read_bytes(self) -> bytes:
        file = self.disk._node(self)
        if not isinstance(file, File):
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        return bytes(file.seen)
