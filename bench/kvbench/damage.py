"""Damage to the disk of one node: what is written over which of its files."""

import mmap
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 4096
FLIPS_MAX: Final = 64
ZEROS_BYTES_MAX: Final = 16 * PAGE_BYTES
OFFSETS_SHOWN_MAX: Final = 4

Content = bytes | mmap.mmap


class Damage(Enum):
    """What happens to the files."""

    BITS = "flipped bits"
    ZEROS = "a zeroed range"
    PAGE = "a page in the place of another"
    LOG_BIT = "a flipped bit of the log"
    CUT = "data.mdb cut off"
    CURRENT = "CURRENT emptied"


@dataclass(frozen=True)
class Patch:
    """Bytes that take the place of as many others."""

    offset: int
    data: bytes


def flip(content: Content, rng: random.Random, flips: int) -> list[Patch]:
    """Bits anywhere, each in a byte of its own."""
    offsets = rng.sample(range(len(content)), min(flips, len(content)))
    return [Patch(at, bytes([content[at] ^ 1 << rng.randrange(8)])) for at in sorted(offsets)]


def zero(content: Content, rng: random.Random) -> list[Patch]:
    """A range anywhere, up to the end at most."""
    at = rng.randrange(len(content))
    return [Patch(at, bytes(min(rng.randint(1, ZEROS_BYTES_MAX), len(content) - at)))]


def misplace(content: Content, rng: random.Random) -> list[Patch]:
    """A page written to where another belongs; the two are never the same one."""
    source, target = rng.sample(range(len(content) // PAGE_BYTES), 2)
    start = source * PAGE_BYTES
    return [Patch(target * PAGE_BYTES, bytes(content[start : start + PAGE_BYTES]))]


def written(content: Content) -> bytes:
    """A file of the log without the zeros that it has grown ahead by: the next write heals them."""
    return bytes(content[:]).rstrip(b"\0")


_PATCHES: Final[Mapping[Damage, Callable[[Content, random.Random], list[Patch]]]] = {
    Damage.BITS: lambda content, rng: flip(content, rng, rng.randint(1, FLIPS_MAX)),
    Damage.ZEROS: zero,
    Damage.PAGE: misplace,
    Damage.LOG_BIT: lambda content, rng: flip(written(content), rng, 1),
}


def inflict(data_dir: Path, kind: Damage, rng: random.Random) -> str:
    """Damage the files of a node, running or not.

    Args:
        data_dir: of the node.
        kind: what is done.
        rng: decides where.

    Returns:
        What was done, for people; it names the file and the places in it.
    """
    current = data_dir / "CURRENT"
    folder = data_dir / current.read_text().strip()
    if kind is Damage.CURRENT:
        os.truncate(current, 0)
        return f"{kind.value}"
    if kind is Damage.CUT:
        size = (folder / "data.mdb").stat().st_size
        left = rng.randrange(size)
        os.truncate(folder / "data.mdb", left)
        return f"{kind.value} at {left} of {size}"
    file = _segment(folder, rng) if kind is Damage.LOG_BIT else folder / "data.mdb"
    with file.open("r+b") as opened:
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            patches = _PATCHES[kind](content, rng)
            size = len(content)
        for patch in patches:
            os.pwrite(opened.fileno(), patch.data, patch.offset)
    return f"{kind.value}, {file.relative_to(data_dir)} at {_places(patches)} of {size}"


def _segment(folder: Path, rng: random.Random) -> Path:
    """A file of the log, but not one that a running node may be about to remove."""
    segments = sorted(folder.glob("journal-*/*"))
    kept = segments[1:] or segments
    return rng.choice([path for path in kept if path.stat().st_size] or segments)


def _places(patches: Sequence[Patch]) -> str:
    shown = ", ".join(str(patch.offset) for patch in patches[:OFFSETS_SHOWN_MAX])
    more = len(patches) - OFFSETS_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown
