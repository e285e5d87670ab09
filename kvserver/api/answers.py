"""The answers to reads that are being built or sent: each bounded, and all large ones."""

import asyncio
from collections import deque
from typing import Any, Final

import grpc

from kvserver.errors import ResponseTooLargeError, TooManyRequestsError
from kvserver.mvcc.budget import Budget

RESPONSE_BYTES_MAX: Final = 64 << 20
"""Of the keys and values of one answer. gRPC takes it as one buffer: each MiB holds up all that is
served, and the thread that keeps the leadership, for half a millisecond."""

LARGE_BYTES: Final = 1 << 20
"""From here on an answer needs a place."""

SENDING_BYTES_MAX: Final = 3 * RESPONSE_BYTES_MAX
"""Of large answers that are being built or sent. While it is sent an answer is there twice, as
bytes and as the buffer of gRPC; while it is built up to four times, so one is built at a time. Two
in a row would also hold up all else for twice as long: a leadership was lost by it."""

WAITING_MAX: Final = 128
"""Answers that wait for a place, each of a little more than LARGE_BYTES."""

WAIT_S: Final = 5.0

TAKEN_WITHIN_S: Final = 60.0
"""A client that has not taken its answer by then is hung up on: others wait for the room."""

Context = grpc.aio.ServicerContext


class Answers:
    """Who builds a large answer, and how many bytes are being sent. Main thread."""

    def __init__(self) -> None:
        self._building = False
        self._bytes = 0
        """Of all that have a place, as long as their calls last. Invariant: at most
        SENDING_BYTES_MAX; who builds counts as if its answer were as large as one may be."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    def room(self, context: "Context[Any, Any] | None") -> "Room":
        """For the answer to one call.

        Args:
            context: of the call; None for a read by this node itself, of a few keys.
        """
        return Room(self, context)

    async def take_place(self, context: "Context[Any, Any]") -> "Place":
        """Wait until this one may be built.

        Raises:
            TooManyRequestsError: too many wait, or it takes too long.
        """
        self._waiting = deque(each for each in self._waiting if not each.done())
        if len(self._waiting) >= WAITING_MAX:
            raise TooManyRequestsError
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(admitted)
        self._admit()
        try:
            async with asyncio.timeout(WAIT_S):
                await admitted
        except BaseException as error:
            if admitted.done() and not admitted.cancelled():  # it was let in, and is gone
                self.leave(RESPONSE_BYTES_MAX, building=True)
            if isinstance(error, TimeoutError):
                raise TooManyRequestsError from None
            raise
        return Place(self, context)

    def _admit(self) -> None:
        while (
            self._waiting
            and not self._building
            and self._bytes + RESPONSE_BYTES_MAX <= SENDING_BYTES_MAX
        ):
            admitted = self._waiting.popleft()
            if not admitted.done():
                self._building = True
                self._bytes += RESPONSE_BYTES_MAX
                admitted.set_result(None)

    def leave(self, size: int, *, building: bool) -> None:
        """So many bytes are free again, and with `building` so is the place of who builds."""
        self._bytes -= size
        self._building = self._building and not building
        self._admit()


class Place:
    """Of one large answer, until its call has ended."""

    def __init__(self, answers: Answers, context: "Context[Any, Any]") -> None:
        self._answers = answers
        self._size = RESPONSE_BYTES_MAX
        self._building = True
        call = asyncio.current_task()
        assert call is not None
        loop = asyncio.get_running_loop()
        self._hanging_up = loop.call_later(TAKEN_WITHIN_S, call.cancel)
        context.add_done_callback(self._end)  # type: ignore[arg-type] # its stub names it

    def built(self, size: int) -> None:
        """The answer has so many bytes, and goes to gRPC as the task of the call goes on."""
        # not before: gRPC turns it into bytes in the same step of the loop
        asyncio.get_running_loop().call_soon(self._leave, size)

    def _leave(self, size: int) -> None:
        if self._building:
            self._building = False
            freed, self._size = self._size - size, size
            self._answers.leave(freed, building=True)

    def _end(self, _: object) -> None:
        self._hanging_up.cancel()
        self._answers.leave(self._size, building=self._building)
        self._building = False


class Room(Budget):
    """What one answer may still hold."""

    __slots__ = ("_answers", "_context", "_held", "_place")

    def __init__(self, answers: Answers, context: "Context[Any, Any] | None") -> None:
        super().__init__(size=RESPONSE_BYTES_MAX, error=ResponseTooLargeError)
        self._answers = answers
        self._context = context
        self._held = 0
        self._place: Place | None = None

    def hold(self, size: int) -> None:
        """So many bytes are part of the answer."""
        super().hold(size)
        self._held += size

    async def go_on(self) -> None:
        """Let others have their turn; a large answer waits for its place, once.

        Raises:
            TooManyRequestsError: there is none for it.
        """
        if self._held < LARGE_BYTES or self._place is not None or self._context is None:
            await asyncio.sleep(0)
        else:
            self._place = await self._answers.take_place(self._context)

    def built(self) -> None:
        """The answer is whole: the next one may be built."""
        if self._place is not None:
            self._place.built(self._held)
