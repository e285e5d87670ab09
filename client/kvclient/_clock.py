"""The client's one clock."""

import time

now = time.monotonic  # noqa: TID251 - here, and nowhere else
"""Seconds, from a start of its own."""
