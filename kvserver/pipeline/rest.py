"""How work at leisure rests between its slices, so that nobody feels it."""

import asyncio
import contextlib
from typing import Final

BUSY_PART_MAX: Final = 0.03
"""Of a core."""

PAUSE_S_MIN: Final = 0.002


def pause_s(busy_s: float) -> float:
    """How long to rest after a slice that took `busy_s`."""
    return max(PAUSE_S_MIN, busy_s / BUSY_PART_MAX - busy_s)


async def stopped(stop: asyncio.Event, within_s: float) -> bool:
    """Wait; True at once when it is to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            return await stop.wait()
    return False
