"""Two threads that watch each other, by their progress and not by the clock on the wall. Pure.

A node that was paused as a whole, or that waited for one slow sync, is not stuck: only time in
which the watching thread itself was running counts.
"""

from enum import Enum
from typing import Final

STEP_S_MAX: Final = 0.1
"""Longest time between two looks that counts: the rest is a pause of the watcher."""

STUCK: Final = "raft thread stuck"


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


class RaftWatch:
    """What the main thread concludes from the progress of the raft thread.

    Without turns this node can answer nobody, so it steps aside; it is back with the next turn. An
    entry that takes long to apply is no turn, but a sign of life.
    """

    def __init__(self, now: float, stuck_after_s: float) -> None:
        """Begin to watch.

        Args:
            now: of the node's clock.
            stuck_after_s: seconds without a turn after which this node serves nobody.
        """
        self._stuck_after_s = stuck_after_s
        self._turns = StallMeter(now)
        self._life = StallMeter(now)

    def look(self, now: float, *, turns: int, steps: int) -> None:
        """Note how many turns the thread has taken, and steps within turns, since it began."""
        self._turns.look(now, turns)
        self._life.look(now, turns + steps)

    @property
    def obstacle(self) -> str | None:
        """Why this node must not serve now, None if the raft thread is no reason."""
        return STUCK if self._turns.stalled_s > self._stuck_after_s else None

    @property
    def silent_s(self) -> float:
        """Seconds for which the raft thread has shown no sign of life."""
        return self._life.stalled_s


class MainStep(Enum):
    """What the raft thread does about a main thread that does not go on."""

    NONE = "none"
    HAND_OVER = "hand over"
    """Once: this node can answer nobody."""
    WITHHOLD = "withhold heartbeats"
    """Nobody could take over by then: let the others elect whom they want."""


class MainWatch:
    """What the raft thread concludes from the beats of the main thread."""

    def __init__(self, now: float, *, hand_over_after_s: float, withhold_after_s: float) -> None:
        """Begin to watch.

        Args:
            now: of the node's clock.
            hand_over_after_s: without a beat.
            withhold_after_s: after that.
        """
        self._beats = StallMeter(now)
        self._hand_over_after_s = hand_over_after_s
        self._withhold_after_s = withhold_after_s
        self._stuck_since: float | None = None

    @property
    def silent_s(self) -> float:
        """Seconds for which there was no beat."""
        return self._beats.stalled_s

    def look(self, now: float, beats: int) -> MainStep:
        """Note how many beats there were."""
        if self._beats.look(now, beats) <= self._hand_over_after_s:
            self._stuck_since = None
            return MainStep.NONE
        if self._stuck_since is None:
            self._stuck_since = now
            return MainStep.HAND_OVER
        late = now - self._stuck_since > self._withhold_after_s
        return MainStep.WITHHOLD if late else MainStep.NONE
