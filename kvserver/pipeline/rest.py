"""How work at leisure rests between its slices, so that nobody feels it."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from kvserver.clock import Clock

BUSY_PART_MAX: Final = 0.03
"""Of a core."""

PAUSE_S_MIN: Final = 0.002

OWN_WORK_MIN: Final = 0.1
"""Of a core: a node without clients takes a few hundredths for its heartbeats."""


class OwnLoad:
    """Whether this process, without its children, has work of its own."""

    def __init__(self, clock: Clock, used: Callable[[], float] = time.process_time) -> None:
        """Begin to measure.

        Args:
            clock: of the node.
            used: CPU time of this process, in seconds.
        """
        self._clock, self._used = clock, used
        self._before = clock.monotonic(), used()

    def busy(self) -> bool:
        """Whether it had, since this was asked last."""
        since, used = self._before
        self._before = now, now_used = self._clock.monotonic(), self._used()
        return now_used - used > OWN_WORK_MIN * (now - since)


def pause_s(busy_s: float) -> float:
    """How long to rest after a slice that took `busy_s`."""
    return max(PAUSE_S_MIN, busy_s / BUSY_PART_MAX - busy_s)


async def stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Wait; True at once when it is to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            return await stop.wait()
    return False
