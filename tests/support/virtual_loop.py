"""An asyncio loop whose time is the simulation's: the main thread of a simulated node."""

import asyncio
import heapq
import inspect
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from support.sim_disk import SimClock

T = TypeVar("T")


class VirtualLoop(asyncio.AbstractEventLoop):
    """What tasks, futures and timeouts need, and nothing else. Runs when it is told to."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = 0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.failure: BaseException | None = None

    # ------------------------------------------------------------------ for the simulation

    def due(self) -> float:
        """When there is something to do; the past if there is now."""
        if self._ready:
            return 0.0
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else float("inf")

    def run(self) -> None:
        """Do all that is due."""
        outer = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while self.due() <= self._clock.now:
                while self._timers and self._timers[0][0] <= self._clock.now:
                    self._ready.append(heapq.heappop(self._timers)[2])
                for _ in range(len(self._ready)):
                    handle = self._ready.popleft()
                    if not handle.cancelled():
                        handle._run()
        finally:
            events._set_running_loop(outer)
        if self.failure is not None:
            raise self.failure

    def kill(self) -> None:
        """The process is gone: whatever waited here waits for nothing."""
        self._timers.clear()
        for task in list(self._tasks):
            task.cancel()
        self.run()
        self._timers.clear()

    def abandon(self) -> None:
        """The run is over: nobody wonders about tasks that have not begun."""
        for task in self._tasks:
            coro = task.get_coro()
            if inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == "CORO_CREATED":
                coro.close()

    # ------------------------------------------------------------------ for asyncio

    def time(self) -> float:
        return self._clock.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback failed: the run has."""
        error = context.get("exception")
        if isinstance(error, BaseException) and "handle" in context:
            self.failure = self.failure or error

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True
