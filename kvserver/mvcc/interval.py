"""Ranges of keys as requests name them: `key` and `range_end`. Pure."""

from typing import Final

TO_THE_END: Final = b"\0"
"""A range_end that means: all keys from `key` on."""

KEY_BYTES_MAX: Final = 480
"""Longest key: what the storage engine can order, less a margin."""


Interval = tuple[bytes, bytes | None]
"""`[lo, hi)`; `hi` None means no upper bound."""


def bounds(key: bytes, range_end: bytes) -> Interval:
    """The interval of a request.

    An empty range_end names one key. Bounds longer than any key are cut in a way that selects the
    same keys: storage can't look for them.
    """
    if not range_end:
        return _as_bound(key), _as_bound(key + b"\0")
    return _as_bound(key), None if range_end == TO_THE_END else _as_bound(range_end)


def _as_bound(bound: bytes) -> bytes:
    """No key is longer than KEY_BYTES_MAX, so one byte more decides everything."""
    return bound[: KEY_BYTES_MAX + 1]


def covers(interval: Interval, key: bytes) -> bool:
    """True if `key` is in the interval."""
    lo, hi = interval
    return lo <= key and (hi is None or key < hi)
