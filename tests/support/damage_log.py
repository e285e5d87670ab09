"""Damage in the segments of a log: fields of batches, the batches themselves, whole segments."""

import struct
from collections.abc import Callable, Iterator
from random import Random

from support.damage_file import Drawn, cut, flipped, lost, patched, stretch

from kvserver.storage.log_batch import HEADER, BatchCodec

Draw = Callable[[Random], tuple[str, Drawn] | None]

_ENTRY = struct.Struct("<IIQQ")
_HEADER_FIELDS = {
    "mark": (0, 4), "size": (4, 4), "number": (8, 8), "previous": (16, 4), "checksum": (20, 4),
}  # fmt: skip


class LogDamages:
    """Of one log."""

    def __init__(self, folder: str, segments: dict[str, bytes]) -> None:
        """Find the batches; `folder` names the lineage."""
        codec = BatchCodec(int(folder.partition("-")[2], 16))
        self._segments = segments
        self._batches: list[tuple[str, int, int]] = []
        """Segment, offset and end of each."""
        self._fields: dict[str, list[tuple[str, int, int]]] = {}
        """Segment, offset and size, by what it is."""
        for name, content in segments.items():
            at = 0
            while (batch := codec.parse(content, at)) is not None:
                self._batches.append((name, at, batch.end))
                self._field("header", name, at)
                state = at + HEADER.size
                self._add("state", name, state, 4 + len(batch.state))
                for place in batch.places:
                    self._add("entry", name, place.offset, _ENTRY.size)
                    self._add("payload", name, place.offset + _ENTRY.size, place.size)
                at = batch.end
            self._add("behind the last batch", name, at, len(content) - at)

    def _field(self, kind: str, name: str, at: int) -> None:
        for offset, size in _HEADER_FIELDS.values():
            self._add(kind, name, at + offset, size)

    def _add(self, kind: str, name: str, at: int, size: int) -> None:
        if size:
            self._fields.setdefault(kind, []).append((name, at, size))

    def kinds(self) -> Iterator[tuple[str, Draw]]:
        """Names of kinds, and what draws one of each, with the name of the segment."""
        for kind in ("header", "state", "entry", "payload", "behind the last batch"):
            yield f"log bit: {kind}", self._flip_in(kind)
        yield "log: zeros in whole sectors", lambda rng: self._zeros(rng, aligned=True)
        yield "log: zeros anywhere", lambda rng: self._zeros(rng, aligned=False)
        yield "log: batches at the end are zeros", self._undone
        yield "log: a batch is zeros", self._batch_zeros
        yield "log: two batches swapped", self._swap
        yield "log: cut off", self._cut
        yield "log: ends with a whole batch too early", self._cut_batch
        yield "log: a segment is empty", lambda rng: (self._segment(rng), Drawn("empty", cut(0)))
        yield "log: a segment is lost", lambda rng: (self._segment(rng), Drawn("it is gone", lost))
        yield "log: a segment is another one", self._other

    def _segment(self, rng: Random) -> str:
        """The last one as often as all others."""
        names = list(self._segments)
        return names[-1] if rng.random() < 0.5 else rng.choice(names)

    def _flip_in(self, kind: str) -> Draw:
        def draw(rng: Random) -> tuple[str, Drawn] | None:
            segment = self._segment(rng)
            found = [each for each in self._fields.get(kind, []) if each[0] == segment]
            if not found:
                return None
            name, start, size = rng.choice(found[-3:] if rng.random() < 0.3 else found)
            at, bit = start + rng.randrange(size), rng.randrange(8)
            return name, Drawn(f"bit {bit} of byte {at}, {kind}", flipped(at, bit))

        return draw

    def _zeros(self, rng: Random, *, aligned: bool) -> tuple[str, Drawn]:
        name = self._segment(rng)
        at, size = stretch(rng, len(self._segments[name]), aligned=aligned)
        return name, Drawn(f"{size} zeros at {at}", patched((at, bytes(size))))

    def _batches_of(self, name: str) -> list[tuple[int, int]]:
        return [(at, end) for segment, at, end in self._batches if segment == name]

    def _undone(self, rng: Random) -> tuple[str, Drawn]:
        """As if the newest ones were never written."""
        name = list(self._segments)[-1]
        batches = self._batches_of(name)
        count = rng.randint(1, min(8, len(batches)))
        at, end = batches[-count][0], batches[-1][1]
        return name, Drawn(f"the last {count} batches are zeros", patched((at, bytes(end - at))))

    def _batch_zeros(self, rng: Random) -> tuple[str, Drawn]:
        name = self._segment(rng)
        at, end = rng.choice(self._batches_of(name))
        return name, Drawn(f"the batch at {at} is zeros", patched((at, bytes(end - at))))

    def _swap(self, rng: Random) -> tuple[str, Drawn] | None:
        name = self._segment(rng)
        batches = self._batches_of(name)
        if len(batches) < 2:
            return None
        position = rng.randrange(len(batches) - 1)
        at, end = batches[position][0], batches[position + 1][1]
        middle = batches[position][1]
        content = self._segments[name]
        fresh = content[middle:end] + content[at:middle]
        return name, Drawn(f"the batches at {at} and {middle} are swapped", patched((at, fresh)))

    def _cut(self, rng: Random) -> tuple[str, Drawn]:
        name = self._segment(rng)
        length, end = len(self._segments[name]), self._batches_of(name)[-1][1]
        left = rng.choice([length // 2, length - 1, end - 1, end // 2, rng.randrange(length)])
        return name, Drawn(f"cut from {length} to {left} bytes, batches end at {end}", cut(left))

    def _cut_batch(self, rng: Random) -> tuple[str, Drawn]:
        name = self._segment(rng)
        batches = self._batches_of(name)
        at, _ = rng.choice(batches[-3:])
        return name, Drawn(f"cut to {at} bytes, where a batch began", cut(at))

    def _other(self, rng: Random) -> tuple[str, Drawn] | None:
        name, other = self._segment(rng), rng.choice(list(self._segments))
        content = self._segments[other]
        if name == other:
            return None
        return name, Drawn(f"it holds what {other} does", lambda _: content)
