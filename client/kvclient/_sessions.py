"""Numbers for writes, so that the servers apply each once however often it is sent. Pure.

The other half, and what it promises, is in `kvserver/mvcc/sessions.py`.
"""

import os
import threading
from dataclasses import dataclass

from kvpb.session_pb2 import OpenSessionResponse, WriteId

WRITE_ID = "kv-write-id-bin"

TTL_S = 60
"""How long a session without writes is kept by the servers."""

PLAIN_S = 10.0
"""Servers that have refused to open a session are not asked again for so long."""

PLAIN_S_MIN = 0.3
"""Nor those that will be able to in a moment, perhaps."""


class Session:
    """A session of the servers, while this client uses it. For any thread.

    Invariants: no number is given to two writes; `done_to` covers none whose write may
    still be sent.
    """

    def __init__(self, opened: OpenSessionResponse, asked_at: float) -> None:
        """Begin with number 1; `asked_at` is when its opening was asked for."""
        self.number = opened.session
        self._ttl_s = opened.ttl_s
        self._window = opened.window
        self._lives_until = asked_at + opened.ttl_s
        self._newest = 0
        self._under_way: dict[int, float] = {}
        """When each began; the oldest at the front."""
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def inherited(self) -> bool:
        """True in a process that was forked: its parent goes on with these numbers."""
        return os.getpid() != self._pid

    def begin(self, now: float) -> "Numbered | None":
        """A number for a write; None if this session has no room, or may be over: open another.

        Load-bearing: nor in a process that was forked. Two writes with one number are one.
        """
        if self.inherited:
            return None
        with self._lock:
            sequence = self._newest + 1
            done_to = next(iter(self._under_way), sequence) - 1
            if now > self._lives_until or sequence > done_to + self._window:
                return None
            self._newest = sequence
            self._under_way[sequence] = now
        write_id = WriteId(session=self.number, sequence=sequence, done_to=done_to)
        return Numbered(self, sequence, ((WRITE_ID, write_id.SerializeToString()),))

    def end(self, sequence: int, *, answered: bool) -> None:
        """A write will not be sent again; if it was `answered`, the session lived when it began."""
        with self._lock:
            began = self._under_way.pop(sequence)
            if answered:
                self._lives_until = max(self._lives_until, began + self._ttl_s)


@dataclass(frozen=True)
class Numbered:
    """A write's place in a session."""

    session: Session
    sequence: int
    metadata: tuple[tuple[str, bytes], ...]
    """To send along, each time."""

    def end(self, *, answered: bool) -> None:
        """It will not be sent again."""
        self.session.end(self.sequence, answered=answered)
