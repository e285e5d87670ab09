"""One database of the in-memory storage: its rows in order, and their digest."""

from bisect import bisect_left, insort
from typing import Any

from kvserver.storage.digest import MASK, row_digest

Name = bytes | tuple[bytes, bytes]
"""How a table finds a row: its key, or key and value where a key may have many."""


class Table:
    """One database: a dict and its names in order."""

    def __init__(self) -> None:
        self.rows: dict[Name, bytes] = {}
        self.order: list[Any] = []
        self.digest = 0
        """Kept as the real storage keeps it: damage changes rows, and not this."""

    def put(self, name: Name, value: bytes) -> None:
        if name not in self.rows:
            insort(self.order, name)
        else:
            self._count(name, -1)
        self.rows[name] = value
        self._count(name, 1)

    def delete(self, name: Name) -> None:
        self._count(name, -1)
        del self.rows[name]
        del self.order[bisect_left(self.order, name)]

    def _count(self, name: Name, sign: int) -> None:
        key, value = name if isinstance(name, tuple) else (name, self.rows[name])
        self.digest = (self.digest + sign * row_digest(key, value)) & MASK

    def counted(self) -> int:
        """What the digest of these rows is."""
        pairs = (name if isinstance(name, tuple) else (name, self.rows[name]) for name in self.rows)
        return sum(row_digest(key, value) for key, value in pairs) & MASK
