"""The answers to reads that are being built or sent: each bounded, and all of them together."""

from typing import Any, Final

import grpc

from kvserver.errors import ResponseTooLargeError, TooManyRequestsError
from kvserver.mvcc.budget import Budget

RESPONSE_BYTES_MAX: Final = 64 << 20
"""Of the keys and values of one answer. gRPC takes it as one buffer: each MiB holds up all that is
served, and the thread that keeps the leadership, for half a millisecond."""

ANSWERS_BYTES_MAX: Final = 128 << 20
"""Of all large answers. While one is sent it is there up to four times: as rows, as messages, as
bytes, and as the buffer of gRPC."""

STEP_BYTES: Final = 1 << 20
"""So much of an answer is free, and so much is taken at a time: small ones cost nothing."""

Context = grpc.aio.ServicerContext


class Answers:
    """What is left of ANSWERS_BYTES_MAX. Main thread."""

    def __init__(self) -> None:
        self.held_bytes = 0

    def room(self, context: "Context[Any, Any] | None") -> Budget:
        """For the answer to one call; given back when the call has ended.

        Args:
            context: of the call; None for a read by this node itself, of a few keys.
        """
        return _Room(self, context)


class _Room(Budget):
    __slots__ = ("_answers", "_context", "_free", "_held")

    def __init__(self, answers: Answers, context: "Context[Any, Any] | None") -> None:
        super().__init__(size=RESPONSE_BYTES_MAX, error=ResponseTooLargeError)
        self._answers = answers
        self._context = context
        self._free = STEP_BYTES
        self._held = 0

    def hold(self, size: int) -> None:
        super().hold(size)
        self._free -= size
        while self._free < 0 and self._context is not None:
            self._take()

    def _take(self) -> None:
        assert self._context is not None
        if self._answers.held_bytes + STEP_BYTES > ANSWERS_BYTES_MAX:
            raise TooManyRequestsError
        if not self._held:
            self._context.add_done_callback(self._give_back)  # type: ignore[arg-type] # its stub names it
        self._answers.held_bytes += STEP_BYTES
        self._held += STEP_BYTES
        self._free += STEP_BYTES

    def _give_back(self, _: object) -> None:
        self._answers.held_bytes -= self._held
        self._held = 0
