"""The answers to reads that are being built or sent: each bounded, and one large one at a time."""

import asyncio
from typing import Any, Final

import grpc

from kvserver.errors import ResponseTooLargeError, TooManyRequestsError
from kvserver.mvcc.budget import Budget

RESPONSE_BYTES_MAX: Final = 64 << 20
"""Of the keys and values of one answer. gRPC takes it as one buffer: each MiB holds up all that is
served, and the thread that keeps the leadership, for half a millisecond."""

LARGE_BYTES: Final = 1 << 20
"""From here on an answer needs a place."""

LARGE_MAX: Final = 1
"""Places. While it is sent a large answer is there up to four times: as rows, as messages, as
bytes, and as the buffer of gRPC. And two of them in a row hold up all else for twice as long: with
two places fewer answers got through, and a leadership was lost."""

WAITING_MAX: Final = 128
"""Answers that wait for a place, each of a little more than LARGE_BYTES."""

WAIT_S: Final = 5.0

TAKEN_WITHIN_S: Final = 30.0
"""A client that has not taken its answer by then is hung up on: others wait for the place."""

Context = grpc.aio.ServicerContext


class Answers:
    """Who has a place. Main thread."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(LARGE_MAX)
        self._waiting = 0

    def room(self, context: "Context[Any, Any] | None") -> "Room":
        """For the answer to one call.

        Args:
            context: of the call; None for a read by this node itself, of a few keys.
        """
        return Room(self, context)

    async def take_place(self, context: "Context[Any, Any]") -> None:
        """Wait for a place; it is given back when the call has ended.

        Raises:
            TooManyRequestsError: too many wait, or it takes too long.
        """
        if self._waiting >= WAITING_MAX:
            raise TooManyRequestsError
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await self._places.acquire()
        except TimeoutError:
            raise TooManyRequestsError from None
        finally:
            self._waiting -= 1
        call = asyncio.current_task()
        assert call is not None
        hanging_up = asyncio.get_running_loop().call_later(TAKEN_WITHIN_S, call.cancel)

        def ended(_: object) -> None:
            hanging_up.cancel()
            self._places.release()

        context.add_done_callback(ended)  # type: ignore[arg-type] # the stub names the argument


class Room(Budget):
    """What one answer may still hold."""

    __slots__ = ("_answers", "_context", "_held", "_placed")

    def __init__(self, answers: Answers, context: "Context[Any, Any] | None") -> None:
        super().__init__(size=RESPONSE_BYTES_MAX, error=ResponseTooLargeError)
        self._answers = answers
        self._context = context
        self._held = 0
        self._placed = False

    def hold(self, size: int) -> None:
        """So many bytes are part of the answer."""
        super().hold(size)
        self._held += size

    async def go_on(self) -> None:
        """Let others have their turn; a large answer waits for its place, once.

        Raises:
            TooManyRequestsError: there is none for it.
        """
        if self._held < LARGE_BYTES or self._placed or self._context is None:
            await asyncio.sleep(0)
            return
        self._placed = True
        await self._answers.take_place(self._context)
