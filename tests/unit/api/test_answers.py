"""Large answers wait for a place, and give it back when their call has ended."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kvserver.api import answers as module
from kvserver.api.answers import LARGE_BYTES, LARGE_MAX, RESPONSE_BYTES_MAX, WAITING_MAX, Answers
from kvserver.errors import ResponseTooLargeError, TooManyRequestsError


class Call:
    """One that a client has made."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def end(self) -> None:
        for callback in self.callbacks:
            callback(self)


async def large(answers: Answers, call: Any) -> None:
    room = answers.room(call)
    room.hold(LARGE_BYTES)
    await room.go_on()
    room.hold(LARGE_BYTES)
    await room.go_on()


def test_an_answer_is_bounded() -> None:
    call: Any = Call()
    room = Answers().room(call)
    room.hold(RESPONSE_BYTES_MAX)
    with pytest.raises(ResponseTooLargeError):
        room.hold(1)


async def test_small_ones_need_no_place() -> None:
    answers = Answers()
    for _ in range(100):
        call: Any = Call()
        room = answers.room(call)
        room.hold(LARGE_BYTES - 1)
        await room.go_on()
        assert not call.callbacks


async def test_few_are_there_at_a_time_in_the_order_in_which_they_came() -> None:
    answers, done = Answers(), list[int]()
    calls = [Call() for _ in range(2 * LARGE_MAX + 1)]

    async def one(number: int) -> None:
        await large(answers, calls[number])
        done.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(len(calls))]
    for ended in range(len(calls)):
        await asyncio.sleep(0.001)
        assert done == list(range(min(ended + LARGE_MAX, len(calls))))
        assert len(calls[ended].callbacks) == 1
        calls[ended].end()
    await asyncio.gather(*tasks)


async def test_whoever_waits_for_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    answers = Answers()
    for _ in range(LARGE_MAX):
        await large(answers, Call())
    late = Call()
    with pytest.raises(TooManyRequestsError):
        await large(answers, late)
    assert not late.callbacks


async def test_a_client_that_does_not_take_its_answer_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TAKEN_WITHIN_S", 0.02)
    answers, call, taken = Answers(), Call(), Call()

    async def serve(call: Call, sending_s: float) -> None:
        try:
            await large(answers, call)
            await asyncio.sleep(sending_s)
        finally:
            call.end()

    await serve(taken, 0.0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(serve(call, 3600.0))
    await serve(Call(), 0.0)


async def test_a_crowd_does_not_wait() -> None:
    answers = Answers()
    crowd = [asyncio.create_task(large(answers, Call())) for _ in range(LARGE_MAX + WAITING_MAX)]
    await asyncio.sleep(0.01)
    with pytest.raises(TooManyRequestsError):
        await large(answers, Call())
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    assert answers._waiting == 0


async def test_a_read_of_the_node_itself_needs_no_call() -> None:
    room = Answers().room(None)
    room.hold(10 * LARGE_BYTES)
    await room.go_on()
