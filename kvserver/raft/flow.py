"""What a leader remembers of a peer: what is on its way to it, or that it takes over. Pure."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from kvserver.raft.seam import Node

WINDOW_BYTES_MAX: Final = 8 << 20
"""On its way to one peer; the library would send a whole backlog at once."""

MESSAGE_BYTES_MAX: Final = 1 << 20
MESSAGE_ENTRIES_MAX: Final = 1024

APPLY_ENTRIES_MAX: Final = 256
APPLY_BYTES_MAX: Final = 2 << 20
APPLY_S_MAX: Final = 0.03
"""Applied per turn: a long backlog must not keep the turn from its heartbeats."""


@dataclass
class Transfer:
    """Leadership on its way to `target`, until the clock says `give_up_at`."""

    target: Node
    give_up_at: float
    ask_at: float = float("-inf")
    """When it is told to stand, if it has everything then."""


class SendWindow:
    """Entries sent to a peer and not yet acknowledged."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def open(self) -> bool:
        """True if another message may be sent."""
        return self._bytes < WINDOW_BYTES_MAX

    def sent(self, last_index: int, size: int) -> None:
        """A message with entries up to `last_index` is on its way."""
        self._sent.append((last_index, size))
        self._bytes += size

    def acknowledged(self, index: int) -> None:
        """The peer has everything up to `index`."""
        while self._sent and self._sent[0][0] <= index:
            self._bytes -= self._sent.popleft()[1]

    def clear(self) -> None:
        """What was on its way is lost, or will be sent again."""
        self._sent.clear()
        self._bytes = 0
