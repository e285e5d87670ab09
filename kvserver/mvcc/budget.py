"""How much a command may look at and answer. Pure.

Whatever is committed is applied by every node, and again after every restart, so it must never need
unbounded work or memory. A command that changes something is held to the limits from a place in the
log on (`LIMITS_LEVEL`), which is the same for all members; before the first change, so that nothing
is half done. They are constants: members with different ones would hold different states.
"""

from typing import Final

from kvserver.errors import RequestError, WriteTooExpensiveError

VISITED_ROWS_MAX: Final = 20_000
"""Rows that the compares, ranges and deletions with previous values of one command may look at:
some tens of milliseconds of every node."""

READ_BYTES_MAX: Final = 64 << 20
"""Of those rows: each is copied, and its checksum is looked at."""

ANSWER_BYTES_MAX: Final = 16 << 20
"""Keys and values that it may answer with, has to sort for its answer, or writes again since a put
keeps the value that is there."""

STEP_ROWS: Final = 1_000
"""After so many rows whoever waits for the work sees that it goes on."""

STEP_BYTES: Final = 1 << 20
"""Or after so many bytes of values."""

UNBOUNDED: Final = 1 << 62


class Budget:
    """What is left of the limits."""

    __slots__ = ("_bytes", "_error", "_read", "_rows")

    def __init__(
        self,
        rows: int = UNBOUNDED,
        read: int = UNBOUNDED,
        size: int = UNBOUNDED,
        error: type[RequestError] = WriteTooExpensiveError,
    ) -> None:
        """Begin with rows to look at, their bytes, and bytes to hold; `error` is raised beyond."""
        self._rows = rows
        self._read = read
        self._bytes = size
        self._error = error

    def visit(self, size: int = 0) -> None:
        """One more row was looked at; `size` 0 if its value was not."""
        self._rows -= 1
        self._read -= size
        if self._rows < 0 or self._read < 0:
            raise self._error

    def hold(self, size: int) -> None:
        """So many bytes are part of an answer, or wait for it."""
        self._bytes -= size
        if self._bytes < 0:
            raise self._error
