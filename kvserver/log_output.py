"""Where log lines go: to a file descriptor, by a thread of its own, so that nobody waits for it.

A disk that is full, a pipe that nobody reads, a terminal that is gone: none of them may stop a
node, or end it. Lines that can't be written in time are dropped and counted, and the count is
reported when lines get through again.
"""

import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

WAITING_BYTES_MAX: Final = 1 << 20
"""Some thousands of lines."""

PART_BYTES_MAX: Final = 1 << 16

RETRY_S: Final = 0.05
"""Pause before another try where the descriptor says that it can't take more now."""


class LogOutput(io.TextIOBase):
    """A text stream that never blocks and never fails. For any thread."""

    def __init__(self, descriptor: int, told: Callable[[int], str]) -> None:
        """Start the thread that writes.

        Args:
            descriptor: where to.
            told: the line that says how many lines were dropped.
        """
        super().__init__()
        self._descriptor = descriptor
        self._told = told
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        """Invariant: at most WAITING_BYTES_MAX, with the part that is being written."""
        self._begun = threading.local()
        """Of each thread, a line that is not complete."""
        self._dropped = 0
        """Lines that were lost and not reported yet."""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Take a text: its lines are written soon, or dropped, once they are complete."""
        begun = getattr(self._begun, "text", "") + text  # `print` writes a line in two
        lines, end, rest = begun.rpartition("\n")
        if len(rest) > PART_BYTES_MAX:
            lines, end, rest = begun, "\n", ""
        self._begun.text = rest
        if end:
            self._take_in((lines + end).encode(errors="backslashreplace"))
        return len(text)

    def _take_in(self, data: bytes) -> None:
        with self._changed:
            if self._waiting_bytes + len(data) > WAITING_BYTES_MAX:
                self._dropped += data.count(b"\n")
            else:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                self._changed.notify_all()

    def flush(self) -> None:
        """Nothing waits here for longer than it must."""

    def drain(self, within_s: float) -> bool:
        """Wait until all was written or dropped; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting_bytes, within_s)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                part = self._take()
            lost = self._write_out(part)
            with self._changed:
                self._dropped += lost
                dropped = 0 if lost else self._dropped
            if dropped and not self._write_out(self._told(dropped).encode() + b"\n"):
                with self._changed:
                    self._dropped -= dropped
            with self._changed:
                self._waiting_bytes -= len(part)
                self._changed.notify_all()

    def _take(self) -> bytes:
        taken = [self._waiting.popleft()]
        size = len(taken[0])
        while self._waiting and size + len(self._waiting[0]) <= PART_BYTES_MAX:
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
        return b"".join(taken)

    def _write_out(self, data: bytes) -> int:
        """Write it; how many lines of it were lost."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody who shares it has asked for that
                time.sleep(RETRY_S)
            except OSError:
                return bytes(left).count(b"\n")
        return 0
