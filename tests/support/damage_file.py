"""What can happen to any file: bits, zeros, noise, a cut, its loss."""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

Change = Callable[[bytes], bytes | None]

SECTOR = 512
PAGE = 4096
FRONT_PART = 0.2
"""Of ranges that begin with the file: there lies what all depends on."""


class Drawn(NamedTuple):
    """One damage of a file."""

    description: str
    change: Change


def patched(*patches: tuple[int, bytes]) -> Change:
    """Bytes are others at these offsets."""

    def change(content: bytes) -> bytes:
        fresh = bytearray(content)
        for at, data in patches:
            fresh[at : at + len(data)] = data
        assert len(fresh) == len(content)
        return bytes(fresh)

    return change


def flipped(at: int, bit: int) -> Change:
    """One bit is another."""

    return lambda content: patched((at, bytes([content[at] ^ 1 << bit])))(content)


def cut(length: int) -> Change:
    return lambda content: content[:length]


def lost(content: bytes) -> None:
    """There is no file any more."""


def stretch(rng: Random, length: int, *, aligned: bool) -> tuple[int, int]:
    """Where a range of 512 bytes to 64 KiB lies in a file: offset and size."""
    step = SECTOR if aligned else 1
    size = min(length, rng.choice([1, 2, 8, 16, 64, 128]) * SECTOR)
    if not aligned:
        size = max(1, size - rng.randrange(min(size, SECTOR)))
    at = rng.randrange((length - size) // step + 1) * step
    return (0 if rng.random() < FRONT_PART else at), size


class FileDamages:
    """Of one file, whatever is in it."""

    def __init__(self, name: str, content: bytes) -> None:
        self._name = name
        self._length = len(content)

    def kinds(self) -> Iterator[tuple[str, Callable[[Random], Drawn | None]]]:
        """Names of kinds, and what draws one of each."""
        yield f"{self._name}: a bit", self._bit
        yield f"{self._name}: zeros in whole sectors", lambda rng: self._zeros(rng, aligned=True)
        yield f"{self._name}: zeros anywhere", lambda rng: self._zeros(rng, aligned=False)
        yield f"{self._name}: noise", self._noise
        yield f"{self._name}: cut off", self._cut
        yield f"{self._name}: empty", lambda rng: Drawn("cut to nothing", cut(0))
        yield f"{self._name}: lost", lambda rng: Drawn("the file is gone", lost)

    def _bit(self, rng: Random) -> Drawn:
        at, bit = rng.randrange(self._length), rng.randrange(8)
        return Drawn(f"bit {bit} of byte {at}", flipped(at, bit))

    def _zeros(self, rng: Random, *, aligned: bool) -> Drawn:
        at, size = stretch(rng, self._length, aligned=aligned)
        return Drawn(f"{size} zeros at {at}", patched((at, bytes(size))))

    def _noise(self, rng: Random) -> Drawn:
        at, size = stretch(rng, self._length, aligned=True)
        return Drawn(f"{size} bytes of noise at {at}", patched((at, rng.randbytes(size))))

    def _cut(self, rng: Random) -> Drawn:
        length = self._length
        left = rng.choice(
            [length // 2, length - PAGE, length - 1, length // 2 // PAGE * PAGE,
             rng.randrange(length)]
        )  # fmt: skip
        return Drawn(f"cut from {length} to {max(0, left)} bytes", cut(max(0, left)))
