"""A stored or sent form: its golden bytes in a text file, and what this build makes of it.

The text files are the record: an entry is added once and never changed. The code beside them says
how each is read, and how it is written while some build still writes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent

Parts = Mapping[str, bytes]
"""The bytes of an entry, by name: `key` and `row`, or `bytes` alone."""

_WIDTH: Final = 96


@dataclass(frozen=True)
class Form:
    """One entry of a text file."""

    name: str
    read: Callable[[Parts], object]
    """What this build makes of the bytes."""
    means: object
    """What it has to make of them."""
    make: Callable[[], Parts] | None
    """The bytes as this build writes them; None for a form that is only read any more."""


def load(file: str) -> dict[str, Parts]:
    """The entries of a text file, by name."""
    found: dict[str, dict[str, str]] = {}
    parts: dict[str, str] = {}
    part = ""
    for line in (FOLDER / file).read_text().splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not line.startswith(" "):
            assert line not in found, f"{file}: '{line}' stands there twice"
            parts = found[line] = {}
        elif not line.startswith("      "):
            part = words[0]
            parts[part] = "".join(words[1:])
        else:
            parts[part] += words[0]
    return {name: {p: bytes.fromhex(h) for p, h in each.items()} for name, each in found.items()}


def text_of(form: Form) -> str:
    """An entry as it is recorded, with what it means beside it for people."""
    assert form.make is not None
    lines = [form.name, *(f"  # {line}" for line in str(form.means).splitlines())]
    for part, content in form.make().items():
        digits = content.hex()
        lines.append(f"  {part} {digits[:_WIDTH]}")
        lines += (f"      {digits[at : at + _WIDTH]}" for at in range(_WIDTH, len(digits), _WIDTH))
    return "\n".join(lines) + "\n"
