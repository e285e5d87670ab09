"""Two threads that watch each other, by their progress and not by the clock on the wall. Pure.

A node that was paused as a whole, or that waited for one slow sync, is not stuck: only time in
which the watching thread itself was running counts.
"""

from typing import Final

STEP_S_MAX: Final = 0.1
"""Longest time between two looks that counts: the rest is a pause of the watcher."""


class StallMeter:
    """How long something has made no progress, in the watcher's own running time."""

    def __init__(self, now: float) -> None:
        self._looked = now
        self._progress = -1
        self.stalled_s = 0.0

    def look(self, now: float, progress: int) -> float:
        """Note `progress`, a count that rises while all is well; seconds without a rise."""
        step = min(now - self._looked, STEP_S_MAX)
        self._looked = now
        if progress != self._progress:
            self._progress = progress
            self.stalled_s = 0.0
        else:
            self.stalled_s += step
        return self.stalled_s
