"""The log as files that are only appended to: one write and one fdatasync make a turn durable.

Layout: a folder `journal-<lineage>/` beside the database it belongs to, in it segments, numbered.
A segment grows ahead of its end by zeros, so that the ordinary write changes no length and its
sync is one flush of the disk. Once it is full the next one begins; the oldest are removed when
nothing in them is needed. A later entry takes the place of every earlier one from its index on.

What counts, and what is damage: batch n + 1 is written only after batch n was synced. So the very
last batch alone may be torn by a crash; nobody was promised anything by it, and it is cut off.
Everything else must be as written: an unsound batch before a sound one is damage, and so is a log
that ends before the batch that the database, committed later, names as synced (`synced`).
Ambiguous stays: damage to the very last batch after it was synced, within the moment until the
database names it (EFFECTS_HELD_S, and the next commit after a crash of the machine), looks like a
torn one.

A sync that failed is never tried again: the system may have dropped what it could not write. When
the log is opened, all that the database does not name yet, and all zeros behind it, is therefore
written again and synced before it counts.
"""

import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from kvserver.errors import DiskError
from kvserver.storage.contract import LogEntry
from kvserver.storage.log_batch import ENTRY_BYTES, Batch, BatchCodec, Place, decode_entry
from kvserver.storage.open_files import open_for_log
from kvserver.storage.rows import damaged
from kvserver.storage.trouble import shortage, trouble

SEGMENT_BYTES: Final = 8 << 20
"""A segment ends with the batch that would make it longer; one batch may be longer by itself."""

GROWN_BYTES: Final = 512 << 10
"""A segment grows ahead in steps of this."""

_CHECKED_BYTES: Final = 1 << 20
_COMPACTED: Final = 4096
_PREFIX: Final = "journal-"
_OFFSET_BITS: Final = 32


class _Segment:
    """One file."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.number = int(path.name)
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if fresh else 0)
        self.file = open_for_log(path, flags)
        self.grown = 0
        self.end = 0
        """Of the synced batches."""

    def write(self, data: bytes, at: int) -> None:
        """Write and sync."""
        end = at + len(data)
        if end > self.grown:
            self.grown = max(end, min(SEGMENT_BYTES, -(-end // GROWN_BYTES) * GROWN_BYTES))
            data += bytes(self.grown - end)
        left = memoryview(data)
        while left:
            wrote = os.pwrite(self.file, left, at)
            left, at = left[wrote:], at + wrote
        os.fdatasync(self.file)

    def close(self) -> None:
        os.close(self.file)


class LogFiles:
    """The log of one node. The thread that writes does everything but `check`."""

    def __init__(self, folder: Path, lineage: int) -> None:
        """Hold nothing yet: `create_log` and `open_log` fill it."""
        self.lineage = lineage
        self.folder = folder
        self.state = b""
        """Newest hard state that was synced."""
        self.synced = 0
        """Number of the newest batch. Invariant: everything up to it is on disk."""
        self.first_index = 0
        self._codec = BatchCodec(lineage)
        self._checksum = self._codec.seed
        self._segments: tuple[_Segment, ...] = ()
        """Oldest first; only the last one is written to. A new object whenever it changes."""
        self._base_index = 0
        """Index of the first of these."""
        self._places = array("Q")
        """Segment and offset of each synced entry, in order."""
        self._sizes = array("I")
        self._pending: list[LogEntry] = []
        """Appended and not synced, without gaps."""
        self._failed = False

    # ------------------------------------------------------------------ reading

    @property
    def last_index(self) -> int:
        """Index of the newest entry, synced or not."""
        return self._pending[-1][1] if self._pending else self._base_index + len(self._places) - 1

    @property
    def size(self) -> int:
        """Bytes that the synced entries take."""
        skipped = self.first_index - self._base_index
        return sum(self._sizes[skipped:]) + ENTRY_BYTES * (len(self._sizes) - skipped)

    def entry_bytes(self, index: int) -> int:
        """Bytes that an entry takes."""
        return self._sizes[index - self._base_index] + ENTRY_BYTES

    def read(self, index: int) -> LogEntry:
        """The entry at an index from the first to the last.

        Raises:
            DataDirError: it is damaged.
            ShortageError: the system can't read it now.
        """
        if self._pending and index >= self._pending[0][1]:
            return self._pending[index - self._pending[0][1]]
        assert index >= self.first_index, (index, self.first_index)
        place = self._places[index - self._base_index]
        number, offset = place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1)
        segment = self._segments[number - self._segments[0].number]
        data = _read(segment.file, segment.path, self.entry_bytes(index), offset)
        return decode_entry(data, index)

    def check(self) -> Iterator[int]:
        """Read all that is synced now, about 1 MiB at a time; from any thread.

        Yields:
            How many batches were sound.

        Raises:
            DataDirError: one is damaged.
            ShortageError: the system can't open or read it now; another check may.
        """
        for segment, end in [(each, each.end) for each in self._segments]:
            try:
                file = os.open(segment.path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # not needed any more
            except OSError as error:
                raise trouble("it can't be opened", segment.path, error) from error
            try:
                yield from self._check_segment(file, segment.path, end)
            finally:
                os.close(file)

    def _check_segment(self, file: int, path: Path, end: int) -> Iterator[int]:
        at, before = 0, None
        while at < end:
            data = _read(file, path, min(_CHECKED_BYTES, end - at), at)
            whole = self._codec.size(data, 0)
            if whole is not None and len(data) < whole <= end - at:
                data = _read(file, path, whole, at)
            sound, position = 0, 0
            while (batch := self._codec.parse(data, position)) is not None:
                if before is not None and not _follows(batch, *before):
                    raise damaged(f"{path} is damaged: a batch is missing at {at + position}")
                before = batch.number, batch.checksum
                position, sound = batch.end, sound + 1
            if not sound:
                raise damaged(f"{path} is damaged at {at}")
            at += position
            yield sound

    # ------------------------------------------------------------------ writing

    def append(self, entry: LogEntry) -> None:
        """Put an entry at its index; what was there and behind it is gone. Durable by `sync`."""
        index = entry[1]
        assert self.first_index < index <= self.last_index + 1, (index, self.last_index)
        pending = self._pending
        del pending[max(0, index - pending[0][1]) if pending else 0 :]
        pending.append(entry)

    def sync(self, state: bytes) -> None:
        """Make what was appended, and the hard state, durable: all of it or nothing.

        Raises:
            DiskError: the log must not be used any more.
        """
        assert not self._failed, "a failed log is not used again"
        data, checksum, places = self._codec.encode(
            self.synced + 1, self._checksum, state, self._pending
        )
        try:
            segment = self._segments[-1]
            if segment.end + len(data) > SEGMENT_BYTES and segment.end:
                segment = self._begin_segment(segment.number + 1)
                segment.write(data, 0)
                _sync_folder(self.folder)
            else:
                segment.write(data, segment.end)
        except OSError as error:
            self._failed = True
            raise _disk_error(error) from error
        self._place(places, segment.number, segment.end)
        segment.end += len(data)
        self.synced, self._checksum, self.state = self.synced + 1, checksum, state
        self._pending.clear()

    def trim(self, first: int) -> None:
        """Entries before `first` are not needed any more."""
        assert self.first_index <= first <= self.last_index, (first, self.first_index)
        self.first_index = first
        skipped = min(first - self._base_index, len(self._places) - 1)
        needed = self._places[skipped] >> _OFFSET_BITS
        if skipped >= _COMPACTED:
            del self._places[:skipped], self._sizes[:skipped]
            self._base_index += skipped
        while self._segments[0].number < needed:
            oldest, self._segments = self._segments[0], self._segments[1:]
            oldest.close()
            oldest.path.unlink(missing_ok=True)  # if a crash brings it back, nobody minds

    def link_into(self, parent: Path) -> None:
        """Give the files second names beside another database, durably.

        So whichever database counts after a crash has its log. This one goes on where it is, until
        `move`.

        Raises:
            DiskError: it can't be done.
        """
        folder = parent / self.folder.name
        try:
            folder.mkdir(mode=0o700)
            for segment in self._segments:
                os.link(segment.path, folder / segment.path.name)
            _sync_folder(folder)
            _sync_folder(parent)
        except OSError as error:
            raise _disk_error(error) from error

    def move(self, parent: Path) -> None:
        """Go on beside the database that the files were linked to."""
        self.folder = parent / self.folder.name
        for segment in self._segments:
            segment.path = self.folder / segment.path.name

    def close(self) -> None:
        """Let go of the files; what was not synced is lost."""
        for segment in self._segments:
            segment.close()
        self._segments = ()

    def remove(self) -> None:
        """Close, and remove the files."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin_segment(self, number: int) -> _Segment:
        segment = _Segment(self.folder / f"{number:08}", fresh=True)
        self._segments = (*self._segments, segment)
        return segment

    def _place(self, places: Sequence[Place], segment: int, offset: int) -> None:
        """Take over where entries lie; a lower index takes the place of all from there on."""
        for place in places:
            keep = place.index - self._base_index
            if keep < 0 or not self._places:
                self._base_index = self.first_index = place.index
                keep = 0
            if keep > len(self._places):
                raise damaged(f"{self.folder}: the log has a gap before entry {place.index}")
            if keep < len(self._places):
                del self._places[keep:], self._sizes[keep:]
            self._places.append(segment << _OFFSET_BITS | offset + place.offset)
            self._sizes.append(place.size)

    # ------------------------------------------------------------------ the beginning

    def create(self, state: bytes, entries: Sequence[LogEntry]) -> None:
        """Begin with these entries, durably."""
        try:
            self.folder.mkdir(mode=0o700)
            self._begin_segment(1)
            self._base_index = self.first_index = entries[0][1]
            self._pending = list(entries)
            self.sync(state)
            _sync_folder(self.folder)
            _sync_folder(self.folder.parent)
        except OSError as error:
            raise _disk_error(error) from error

    def open(self, synced: int) -> None:
        """Take over what the files hold; cut off a torn end.

        Args:
            synced: number of a batch that is certainly on disk.

        Raises:
            DataDirError: damage.
            AccessError: this process may not open it.
            DiskError: what was found can't be made durable, or the system is short of something.
        """
        content = before = b""  # one segment at a time: all of them may be a gigabyte
        rewrite_at = 0
        try:
            found = _newest_run(self.folder)
            self._segments = tuple(_Segment(path, fresh=False) for path in found)
            for position, path in enumerate(found):
                before, content = content, path.read_bytes()
                rewrite_at = self._replay(position, content, synced)
        except OSError as error:
            raise trouble("the log can't be read", self.folder, error) from error
        if not found:
            raise damaged(f"{self.folder}: the log is missing")
        if self.synced < synced:
            raise damaged(f"{self.folder}: the log ends before what was on disk once")
        try:
            self._settle(content, before, rewrite_at)
        except OSError as error:
            raise _disk_error(error) from error

    def _replay(self, position: int, content: bytes, synced: int) -> int:
        """Read a segment; returns where what the database does not name yet begins in it."""
        segment = self._segments[position]
        segment.grown = len(content)
        at = rewrite_at = 0
        while (batch := self._codec.parse(content, at)) is not None:
            if (position or at) and not _follows(batch, self.synced, self._checksum):
                break
            self._place(batch.places, segment.number, 0)
            self.synced, self._checksum, self.state = batch.number, batch.checksum, batch.state
            at = batch.end
            if batch.number <= synced:
                rewrite_at = at
        segment.end = at
        newest = position == len(self._segments) - 1
        torn = newest and (at or position) and not self._codec.any(content, at)
        if not torn and (not at or content[at:].strip(b"\0")):
            raise damaged(f"{segment.path} is damaged at {at}")
        return rewrite_at

    def _settle(self, content: bytes, before: bytes, rewrite_at: int) -> None:
        """Remove what is torn, write again what may not be on disk, zeros too, and sync.

        Args:
            content: of the last segment.
            before: of the one before it.
            rewrite_at: from where on in the last one.
        """
        segment = self._segments[-1]
        if not segment.end:  # it was begun by the write that was torn
            self._segments = self._segments[:-1]
            segment.close()
            segment.path.unlink()
            segment, content, rewrite_at = self._segments[-1], before, 0
        # All up to the grown end, though it may read as zeros already: these may be an earlier
        # start's that never reached the disk. What was torn would come back with the next crash of
        # the machine, behind batches that count by then, and pass for damage.
        zeros = bytes(segment.grown - segment.end)
        segment.write(content[rewrite_at : segment.end] + zeros, rewrite_at)
        _sync_folder(self.folder)
        for other in self.folder.parent.glob(f"{_PREFIX}*"):
            if other != self.folder:  # of a birth or a recovery that was cut short
                shutil.rmtree(other, ignore_errors=True)


def create_log(parent: Path, lineage: int, state: bytes, entries: Sequence[LogEntry]) -> LogFiles:
    """A new log with these entries, at least one, durably.

    Raises:
        DiskError: it can't be written.
    """
    log = LogFiles(parent / f"{_PREFIX}{lineage:016x}", lineage)
    log.create(state, entries)
    return log


def open_log(parent: Path, lineage: int, synced: int) -> LogFiles:
    """The log of this lineage, with all that counts durable.

    Raises:
        DataDirError: it is damaged.
        AccessError: this process may not open it.
        DiskError: the disk takes nothing, or the system is short of something.
    """
    log = LogFiles(parent / f"{_PREFIX}{lineage:016x}", lineage)
    try:
        log.open(synced)
    except BaseException:
        log.close()
        raise
    return log


def _follows(batch: Batch, number: int, checksum: int) -> bool:
    return (batch.number, batch.previous) == (number + 1, checksum)


def _newest_run(folder: Path) -> list[Path]:
    """The newest segments without a gap; older ones are such as a crash brought back."""
    if not folder.exists():
        return []
    found = sorted(path for path in folder.iterdir() if path.name.isdecimal())
    for position in range(len(found) - 1, 0, -1):
        if int(found[position - 1].name) != int(found[position].name) - 1:
            return found[position:]
    return found


def _read(file: int, path: Path, size: int, at: int) -> bytes:
    try:
        return os.pread(file, size, at)
    except OSError as error:
        raise trouble("it can't be read", path, error) from error


def _sync_folder(folder: Path) -> None:
    opened = open_for_log(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _disk_error(error: OSError) -> DiskError:
    told = f"writing to the log failed ({error})"
    return shortage(told, error.errno) or DiskError(
        f"{told}: see whether the disk of --data-dir is full or broken"
    )
