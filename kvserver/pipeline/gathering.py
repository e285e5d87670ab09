"""Holds back for a moment what many ask for, so that more of it goes together.

A log entry, or a read round, costs every node far more than each write or read in it, and it takes
the active the time in which the next requests would be read. Whoever was just answered will soon
ask again: while many do, the next batch waits for most of them. Few wait only now and then, to see
whether they are more.

`came` belongs to the main thread, `holds`, `taken` and `forget` to the raft thread, `answered` to
the one that learns how a batch has ended.
"""

import asyncio
from collections.abc import Callable, Sized
from typing import Final

from kvserver.clock import Clock

GATHER_FROM: Final = 5
"""Callers at a time from which on they are waited for."""

GATHER_PART: Final = 7 / 8
"""Of the callers that are waited for: the last ones come while the batch is under way."""

GATHER_MAX: Final = 64
"""So many are worth a batch at any time."""

GATHER_S: Final = 0.02
"""At the most from one batch to the next while something waits, and `IDLE_S` beyond it."""

IDLE_S: Final = 0.004
"""Once nothing new was read for so long, noticed within twice that, nobody is waited for: who has
not sent by then may take any time."""


PROBE_FROM: Final = 2
"""Callers at a time from which on there may be more than are seen: batches that end soon take from
the main thread the time in which it would read what the others have sent."""

PROBE_AFTER: Final = 4
"""Batches in a row of so many. One client and an entry of the node's own are two callers for a
batch or two, above all right after a failover, and must not be held back for that."""

PROBE_PAUSE_S: Final = (0.25, 4.0)
"""After one that found too few: at first, and at most, as each of them doubles it."""


class Gathering:
    """When the next batch of a queue goes.

    Invariant: as long as something waits, either a turn is coming that asks `holds`, or a batch is
    under way whose end brings one, or a call of `_look` is.
    """

    def __init__(self, waiting: Sized, clock: Clock, knock: Callable[[], None]) -> None:
        """Watch a queue.

        Args:
            waiting: the queue.
            clock: of the node.
            knock: makes the raft thread take a turn; safe from the main thread.
        """
        self._waiting = waiting
        self._clock = clock
        self._knock = knock
        self._knocked = False
        """Somebody has, since the last batch."""
        self._wanted = 0
        """Callers that the next batch is held back for."""
        self._until = 0.0
        """When it is held back no longer."""
        self._holding = False
        """What waits is held back: who ends that has to knock."""
        self._probing = False
        """More are wanted than are known, to see whether they are there."""
        self._probe_at = 0.0
        self._row = 0
        """Batches in a row that may be more."""
        self._pause_s, self._pause_s_max = PROBE_PAUSE_S
        self._came = 0
        self._idle = True
        """Nothing new was read for a moment. Invariant: until it is set, a call of `_look` is under
        way."""

    def came(self) -> None:
        """One more waits."""
        self._came += 1
        if self._idle:
            self._idle = False
            loop = asyncio.get_running_loop()
            loop.call_later(IDLE_S, self._look, loop, self._came)
        if not self._knocked:
            self._knocked = True
            self._knock()
        elif len(self._waiting) >= self._wanted:
            self._release()

    def _look(self, loop: asyncio.AbstractEventLoop, came: int) -> None:
        """Notice that nothing new is read, or that it was waited for long enough."""
        self._idle = self._came == came
        if self._idle or self._clock.monotonic() >= self._until:
            self._release()
        if not self._idle:
            loop.call_later(IDLE_S, self._look, loop, self._came)

    def _release(self) -> None:
        if self._holding:
            self._holding = False
            self._knock()

    def answered(self, callers: int) -> None:
        """A batch has ended, or will in this turn; so many were in it, or wait already."""
        may_be_more = PROBE_FROM <= callers < GATHER_MAX
        self._row = self._row + 1 if may_be_more else 0
        self._probing = self._row >= PROBE_AFTER and self._clock.monotonic() >= self._probe_at
        if self._probing:
            wanted = 2 * callers
        else:
            wanted = int(callers * GATHER_PART) if callers >= GATHER_FROM else 0
        self._wanted = min(wanted, GATHER_MAX)

    def holds(self) -> bool:
        """Whether what waits is left where it is; then somebody will knock."""
        if self._waiting and self._clock.monotonic() < self._until:
            self._holding = True  # looked at before the reasons: from here on who ends one knocks
            if len(self._waiting) < self._wanted and not self._idle:
                return True
        self._holding = self._knocked = False
        if self._waiting and self._probing:
            self._probed(found=len(self._waiting) >= self._wanted)
        return False

    def _probed(self, *, found: bool) -> None:
        self._probing = False
        if found:
            self._pause_s, _ = PROBE_PAUSE_S
        else:
            self._probe_at = self._clock.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, self._pause_s_max)

    def taken(self) -> None:
        """A batch goes."""
        self._wanted = 0
        self._until = self._clock.monotonic() + GATHER_S

    def forget(self) -> None:
        """Nothing waits here any more."""
        self._holding = self._knocked = self._probing = False
        self._wanted = self._row = 0
