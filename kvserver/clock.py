"""Time, handed in: the only module of the server that reads a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time. Simulations hand in their own."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        return time.monotonic()  # noqa: TID251 - the one place
