"""Batches of the log as they lie in its files: what one write of a turn holds.

A batch is a header, the hard state and the entries, so every batch alone tells term and vote. Its
mark and its checksum are seeded by the lineage of the log, a random number: no bytes that a client
sends, and nothing of another log, are ever taken for a batch. It names its number and the checksum
of the one before it, so one that is missing, doubled or misplaced is noticed. Each entry has a
checksum of its own, for when it is read back alone.

    header  mark 4s, size of the rest u32, number u64, checksum of the one before u32, checksum u32
    rest    size u32 and hard state; then entries: checksum u32, size of the payload u32, index u64,
            term u64, payload

All little-endian. Behind the last batch of a file there are zeros.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvserver.storage.contract import LogEntry
from kvserver.storage.rows import damaged

HEADER: Final = struct.Struct("<4sIQII")
_HEADER_PART: Final = struct.Struct("<4sIQI")
_STATE: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<IIQQ")
_ENTRY_PART: Final = struct.Struct("<IQQ")

ENTRY_BYTES: Final = _ENTRY.size
"""Of an entry, besides its payload."""


class Place(NamedTuple):
    """Where an entry lies."""

    index: int  # type: ignore[assignment] # hides tuple.index
    offset: int
    """From where its batch was looked for."""
    size: int
    """Of the payload."""


class Batch(NamedTuple):
    """A sound batch."""

    number: int
    previous: int
    """Checksum of the batch before it."""
    checksum: int
    state: bytes
    places: list[Place]
    end: int


class BatchCodec:
    """Batches of the log of one lineage."""

    def __init__(self, lineage: int) -> None:
        """Take the mark and the seed of the lineage, 64 bits whose highest is set."""
        self._magic = lineage.to_bytes(8, "big")[:4]
        self.seed = zlib.crc32(lineage.to_bytes(8, "big"))
        """What the first batch names as the checksum before it."""

    def encode(
        self, number: int, previous: int, state: bytes, entries: Sequence[LogEntry]
    ) -> tuple[bytes, int, list[Place]]:
        """Bytes, checksum, and places of the entries from the first byte on."""
        parts = [_STATE.pack(len(state)), state]
        at = HEADER.size + _STATE.size + len(state)
        places = []
        for payload, index, term in entries:
            part = _ENTRY_PART.pack(len(payload), index, term)
            checksum = zlib.crc32(payload, zlib.crc32(part))
            parts += (checksum.to_bytes(4, "little"), part, payload)
            places.append(Place(index, at, len(payload)))
            at += _ENTRY.size + len(payload)
        rest = b"".join(parts)
        head = _HEADER_PART.pack(self._magic, len(rest), number, previous)
        checksum = zlib.crc32(rest, zlib.crc32(head, self.seed))
        return b"".join((head, checksum.to_bytes(4, "little"), rest)), checksum, places

    def size(self, data: bytes, at: int) -> int | None:
        """Size of the batch whose header stands at `at`; None if none can."""
        if len(data) - at < HEADER.size or data[at : at + len(self._magic)] != self._magic:
            return None
        return HEADER.size + int(HEADER.unpack_from(data, at)[1])

    def parse(self, data: bytes, at: int) -> Batch | None:
        """The batch at `at`, None if no whole and sound one is there."""
        size = self.size(data, at)
        if size is None or size > len(data) - at:
            return None
        _, _, number, previous, checksum = HEADER.unpack_from(data, at)
        end = at + size
        rest = memoryview(data)[at + HEADER.size : end]
        head = data[at : at + _HEADER_PART.size]
        if zlib.crc32(rest, zlib.crc32(head, self.seed)) != checksum:
            return None
        (state_size,) = _STATE.unpack_from(rest)
        position = at + HEADER.size + _STATE.size + state_size
        state = data[position - state_size : position]
        places = []
        while position < end:
            _, payload_size, index, _ = _ENTRY.unpack_from(data, position)
            places.append(Place(index, position, payload_size))
            position += _ENTRY.size + payload_size
        assert position == end, "what was written has a sound checksum and yet makes no sense"
        return Batch(number, previous, checksum, state, places, end)

    def any(self, data: bytes, at: int) -> bool:
        """Whether a whole and sound batch lies anywhere from `at` on."""
        while (at := data.find(self._magic, at)) >= 0:
            if self.parse(data, at) is not None:
                return True
            at += 1
        return False


def decode_entry(data: bytes, wanted: int) -> LogEntry:
    """The entry whose bytes these are.

    Raises:
        DataDirError: it is damaged, or another than the `wanted` index.
    """
    if len(data) >= _ENTRY.size:
        checksum, size, index, term = _ENTRY.unpack_from(data)
        payload = data[_ENTRY.size :]
        sound = zlib.crc32(payload, zlib.crc32(data[4 : _ENTRY.size])) == checksum
        if sound and (size, index) == (len(payload), wanted):
            return payload, index, term
    raise damaged(f"log entry {wanted} is damaged on disk")
