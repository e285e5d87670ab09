"""The raft thread: an event loop of its own that turns the engine when there is something to do.

It blocks in the sync of a turn and nowhere else.
"""

import asyncio
import threading
from collections.abc import Callable

import uvloop

from kvserver.clock import Clock
from kvserver.raft.engine import RaftEngine
from kvserver.raft.transport import PeerTransport


class RaftThread:
    """Owns the thread, its loop, the engine and the peer connections."""

    def __init__(
        self,
        engine: RaftEngine,
        transport: PeerTransport,
        clock: Clock,
        *,
        before_turn: Callable[[], None],
        on_failure: Callable[[BaseException], object],
    ) -> None:
        """Wire it up; `start` runs it.

        Args:
            engine: turned by this thread only.
            transport: its connections live on this thread's loop.
            clock: for the timers.
            before_turn: called in the thread at the start of each turn.
            on_failure: called in the thread when it can't go on; the thread then ends.
        """
        self._engine = engine
        self._transport = transport
        self._clock = clock
        self._before_turn = before_turn
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None
        self.turns = 0
        """Turns so far: others see by it whether the thread makes progress."""

    def start(self) -> None:
        """Start the thread; returns when it listens.

        Raises:
            AddressError: the peer address can't be bound.
        """
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def call(self, step: Callable[[], object]) -> None:
        """Run `step` in the thread, soon, and take a turn after it. From any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._call, step)

    def stop(self, within_s: float) -> bool:
        """End the thread; False if it did not end in time."""
        loop, stopped = self._loop, self._stopped
        if loop is not None and stopped is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stopped.set)
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Take a turn soon. From the thread itself."""
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    # ------------------------------------------------------------------ inside the thread

    def _run(self) -> None:
        try:
            uvloop.run(self._main())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the node must know
            self._failure = error
            if self._started.is_set():
                self._on_failure(error)
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._loop.set_exception_handler(self._on_stray_error)
        await self._transport.start()
        self._started.set()
        self.wake()
        try:
            await self._stopped.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._scheduled = True  # no more turns
            await self._transport.close()
        if self._failure is not None:
            raise self._failure

    def _on_stray_error(self, _loop: object, context: dict[str, object]) -> None:
        """A programmer's error in a callback ends the thread as one in a turn does."""
        error = context.get("exception")
        if not isinstance(error, BaseException):
            error = RuntimeError(str(context.get("message")))
        self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        assert self._stopped is not None
        self._failure = self._failure or error
        self._scheduled = True
        self._stopped.set()

    def _call(self, step: Callable[[], object]) -> None:
        step()
        self.wake()

    def _turn(self) -> None:
        assert self._loop is not None
        assert self._stopped is not None
        if self._stopped.is_set():
            return
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self._before_turn()
            more = self._engine.turn()
        except BaseException as error:  # noqa: BLE001 - a failed turn is never retried
            self._give_up(error)
            return
        self.turns += 1
        if more:
            self.wake()
            return
        delay = self._engine.next_deadline() - self._clock.monotonic()
        self._timer = self._loop.call_later(max(0.0, delay), self.wake)
