"""The raft thread: it turns when it is told to, counts its turns, and says when it can't go on."""

import asyncio
import threading
from typing import Any

from kvserver.clock import SystemClock
from kvserver.raft.driver import RaftThread

WITHIN_S = 10.0


class Engine:
    """One that turns without work."""

    def __init__(self) -> None:
        self.turned = threading.Semaphore(0)
        self.failure: Exception | None = None

    def turn(self) -> bool:
        self.turned.release()
        if self.failure is not None:
            raise self.failure
        return False

    def next_deadline(self) -> float:
        return SystemClock().monotonic() + 3600.0


class Transport:
    async def start(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        await asyncio.sleep(0)


def thread(engine: Any, failures: list[BaseException]) -> RaftThread:
    transport: Any = Transport()
    return RaftThread(
        engine, transport, SystemClock(), before_turn=lambda: None, on_failure=failures.append
    )


def test_turns_are_counted() -> None:
    """Others see by it whether the thread makes progress: else a healthy node steps aside."""
    engine, failures = Engine(), list[BaseException]()
    driver = thread(engine, failures)
    driver.start()
    for _ in range(3):
        driver.call(lambda: None)
        assert engine.turned.acquire(timeout=WITHIN_S)
    assert driver.stop(WITHIN_S)
    assert driver.turns >= 3
    assert not failures


def test_a_turn_that_fails_is_the_last_one() -> None:
    engine, failures = Engine(), list[BaseException]()
    driver = thread(engine, failures)
    driver.start()
    driver.call(lambda: None)
    assert engine.turned.acquire(timeout=WITHIN_S)
    engine.failure = RuntimeError("the disk")
    for _ in range(3):
        driver.call(lambda: None)
    driver._thread.join(WITHIN_S)
    assert failures == [engine.failure]
