"""Log time: milliseconds the log has lived, stamped on every batch by the active. Pure.

Last stamp + the active's monotonic time since: no clock step and no failover makes it jump.
"""


class LogClock:
    """Stamps of one leadership."""

    def __init__(self, now: float, last_ms: int) -> None:
        """Go on from `last_ms`, the newest applied stamp, at `now` seconds of the node's clock."""
        self._started = now
        self._base_ms = last_ms

    def stamp(self, now: float) -> int:
        """Log time at `now`. Never below an earlier stamp."""
        return self._base_ms + max(0, int((now - self._started) * 1000))
