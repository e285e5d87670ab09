"""The scrub: all rows and the log on the disk are read now and then, so that damage is found early.

Slices are read in a thread of the loop's, since the disk may be slow, with long rests in between:
nobody must feel a pass.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from kvserver.clock import Clock
from kvserver.errors import NodeError, ShortageError
from kvserver.storage.check import Check
from kvserver.storage.contract import Storage

FIRST_S_MAX: Final = 60.0
"""The first pass begins this long after the start: then a restart is over, and damage is fresh."""

RETRY_S: Final = 60.0
"""From a pass that the system was too short of something for, to the next."""

BUSY_PART_MAX: Final = 0.03
"""Of a core."""

PAUSE_S_MIN: Final = 0.002


def pause_s(busy_s: float) -> float:
    """How long to rest after a slice that took `busy_s`."""
    return max(PAUSE_S_MIN, busy_s / BUSY_PART_MAX - busy_s)


async def scrub(
    storage: Storage,
    clock: Clock,
    *,
    interval_s: float,
    stop: asyncio.Event,
    on_event: Callable[..., None],
    on_damage: Callable[[NodeError], object],
) -> None:
    """Make one pass after the other until `stop` is set; no slice is under way after the return.

    Args:
        storage: of the node.
        clock: of the node.
        interval_s: from the end of a pass to the beginning of the next.
        stop: ends it.
        on_event: log.
        on_damage: told once; then it ends.
    """
    loop = asyncio.get_running_loop()
    wait_s = min(FIRST_S_MAX, interval_s)
    while not await _stopped(stop, wait_s):
        check, done = Check(storage, storage.log.check()), False
        began = clock.monotonic()
        while not done:
            before = clock.monotonic()
            try:
                done = await loop.run_in_executor(None, check.step)
            except ShortageError as error:  # it is all read anew, since a check can't go on
                on_event("scrub.failed", reason=str(error))
                break
            except NodeError as error:
                on_damage(error)
                return
            if await _stopped(stop, pause_s(clock.monotonic() - before)):
                return
        if done:
            on_event("scrub.done", rows=check.rows, seconds=round(clock.monotonic() - began, 3))
        wait_s = interval_s if done else min(RETRY_S, interval_s)


async def _stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Wait; True at once when it is to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            return await stop.wait()
    return False
