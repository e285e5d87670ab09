"""One slot of the log, as PySyncObj passes it around, and the kinds of payload."""

from typing import Final, NamedTuple, NewType

MemberId = NewType("MemberId", int)
"""64 bits, never 0."""

REGULAR: Final = b"\x00"
NO_OP: Final = b"\x01"
MEMBERSHIP: Final = b"\x02"
"""First byte of a payload; the numbers are the library's."""


class Entry(NamedTuple):
    """A log entry. The order of the fields is the library's: it indexes entries by position."""

    payload: bytes
    """Kind byte, then the encoded CommandBatch or Membership."""
    index: int  # type: ignore[assignment] # hides tuple.index
    """From 1, without gaps."""
    term: int
    """Term in which a leader made it."""
