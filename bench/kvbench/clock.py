"""Time: the only module of the bench that reads a clock."""

import time


def monotonic() -> float:
    """Seconds since an arbitrary moment; never goes back. For everything that is measured."""
    return time.monotonic()  # noqa: TID251 - the one place


def wall() -> float:
    """Seconds since the epoch, as the nodes' logs have it. Only to compare with those."""
    return time.time()  # noqa: TID251 - the one place
