"""What a client did and what became of it, judged: pure functions over records.

Every key is written at most once, so what is right is simple: an acknowledged write is there as
written, one of unknown outcome is there once or not at all, a refused one is not there.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Fate(Enum):
    """What the client was told about a write."""

    ACKNOWLEDGED = "acknowledged"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    """Nothing was changed: no node could be asked, or the server said no."""


@dataclass(frozen=True, slots=True)
class Write:
    """One put of a key that nobody else writes."""

    key: str
    value: str
    begun: float
    ended: float
    fate: Fate
    revision: int = 0
    """Of the answer, if acknowledged."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A key as it was read."""

    value: bytes
    version: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Read:
    """A linearizable read of the newest key that was acknowledged when it began."""

    expected: Write
    begun: float
    ended: float
    revision: int
    """Of the store, in the answer's header."""
    found: Stored | None


@dataclass(frozen=True)
class Verdict:
    """Counts of what was promised, and the keys where a promise was broken."""

    acknowledged: int
    unknown: int
    refused: int
    reads: int
    lost: Sequence[str] = ()
    """Acknowledged and not there."""
    altered: Sequence[str] = ()
    """There with another value, or at another revision than was acknowledged."""
    duplicated: Sequence[str] = ()
    """Applied more than once."""
    phantom: Sequence[str] = ()
    """There though refused, or though never written."""
    disordered: Sequence[str] = ()
    """At a revision not above that of a write acknowledged before it began, or at another's."""
    stale: Sequence[str] = ()
    """Not found, or found in an older state than that of an acknowledgement or of another read
    that came before."""
    applied_of_unknown: int = 0
    differing_hashes: Mapping[str, int] = field(default_factory=dict)
    """Hash of each node's copy, if they are not all the same."""

    @property
    def broken(self) -> dict[str, int]:
        """Each broken promise with its number of cases; empty if all is well."""
        counts = {
            "lost": len(self.lost),
            "altered": len(self.altered),
            "duplicated": len(self.duplicated),
            "phantom": len(self.phantom),
            "disordered": len(self.disordered),
            "stale": len(self.stale),
            "differing copies": len(set(self.differing_hashes.values())),
        }
        return {what: count for what, count in counts.items() if count}


def judge(
    writes: Sequence[Write],
    stored: Mapping[str, Stored],
    reads: Sequence[Read] = (),
    hashes: Mapping[str, int] | None = None,
) -> Verdict:
    """Compare what a client was told with what is there.

    Args:
        writes: of one client that writes one after the other, in that order.
        stored: everything under the client's prefix, read after all writes had ended.
        reads: of newest keys, made while writes went on.
        hashes: hash of each node's copy at one revision, by node name.
    """
    acknowledged = [write for write in writes if write.fate is Fate.ACKNOWLEDGED]
    unknown = [write for write in writes if write.fate is Fate.UNKNOWN]
    written = {write.key: write for write in (*acknowledged, *unknown)}
    present = [(written[key], found) for key, found in stored.items() if key in written]
    hashes = hashes or {}
    return Verdict(
        acknowledged=len(acknowledged),
        unknown=len(unknown),
        refused=len(writes) - len(acknowledged) - len(unknown),
        reads=len(reads),
        lost=[write.key for write in acknowledged if write.key not in stored],
        altered=[write.key for write, found in present if _altered(write, found)],
        duplicated=[write.key for write, found in present if found.version != 1],
        phantom=[key for key in stored if key not in written],
        disordered=_disordered(writes, stored),
        stale=_stale(reads),
        applied_of_unknown=sum(write.key in stored for write in unknown),
        differing_hashes=hashes if len(set(hashes.values())) > 1 else {},
    )


def _altered(write: Write, found: Stored) -> bool:
    """A second application moves the revision too, but is counted as that alone."""
    if found.value != write.value.encode():
        return True
    moved = found.mod_revision != write.revision and found.version == 1
    return write.fate is Fate.ACKNOWLEDGED and moved


def _disordered(writes: Iterable[Write], stored: Mapping[str, Stored]) -> list[str]:
    """One of unknown outcome may be applied late, but not early."""
    keys: list[str] = []
    highest = 0
    taken: set[int] = set()
    for write in writes:
        revision = _applied_at(write, stored)
        if revision is None:
            continue
        if revision <= highest or revision in taken:
            keys.append(write.key)
        taken.add(revision)
        if write.fate is Fate.ACKNOWLEDGED:
            highest = max(highest, revision)
    return keys


def _applied_at(write: Write, stored: Mapping[str, Stored]) -> int | None:
    """Revision of a write; None for one that is not there."""
    if write.fate is Fate.ACKNOWLEDGED:
        return write.revision
    found = stored.get(write.key)
    if write.fate is Fate.REFUSED or found is None:
        return None
    return found.mod_revision


def _stale(reads: Iterable[Read]) -> list[str]:
    """Keys of reads behind an acknowledgement, or behind a read that had ended before."""
    reads = sorted(reads, key=lambda read: read.begun)
    by_end = deque(sorted(reads, key=lambda read: read.ended))
    keys: list[str] = []
    seen = 0
    for read in reads:
        while by_end and by_end[0].ended < read.begun:
            seen = max(seen, by_end.popleft().revision)
        if is_stale(read) or read.revision < seen:
            keys.append(read.expected.key)
    return keys


def is_stale(read: Read) -> bool:
    """Whether a read that began after `expected` was acknowledged does not show it."""
    expected = read.expected
    assert expected.ended <= read.begun, "a read can only be held to what was acknowledged before"
    if read.found is None or read.found.value != expected.value.encode():
        return True
    return read.revision < expected.revision
