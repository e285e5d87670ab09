"""Large answers wait for a place, and give it back when their call has ended."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kvserver.api import answers as module
from kvserver.api.answers import (
    LARGE_BYTES,
    RESPONSE_BYTES_MAX,
    SENDING_BYTES_MAX,
    WAITING_MAX,
    Answers,
    Room,
)
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


async def build(answers: Answers, call: Any, size: int = LARGE_BYTES) -> Room:
    """A large answer that has its place, and is not whole yet."""
    room = answers.room(call)
    room.hold(LARGE_BYTES)
    await room.go_on()
    room.hold(size - LARGE_BYTES)
    await room.go_on()
    return room


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


async def test_one_is_built_at_a_time_in_the_order_in_which_they_came() -> None:
    answers, done = Answers(), list[int]()
    rooms: dict[int, Room] = {}

    async def one(number: int) -> None:
        rooms[number] = await build(answers, Call())
        done.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    for number in range(5):
        await asyncio.sleep(0.001)
        assert done == list(range(number + 1))
        rooms[number].built()
        assert done == list(range(number + 1)), "it is turned into bytes first"
    await asyncio.gather(*tasks)


async def test_a_client_that_takes_its_time_keeps_nobody_from_building() -> None:
    answers = Answers()
    (await build(answers, Call(), RESPONSE_BYTES_MAX)).built()
    async with asyncio.timeout(5):
        (await build(answers, Call())).built()


@pytest.mark.parametrize("end", ["sent", "failed", "ended at once"])
async def test_what_is_sent_at_a_time_is_bounded_and_given_back(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    answers, calls = Answers(), list[Call]()
    for _ in range(3 * SENDING_BYTES_MAX // RESPONSE_BYTES_MAX):
        call = Call()
        room = await build(answers, call, RESPONSE_BYTES_MAX)
        if end != "failed":
            room.built()
        if end == "sent":
            await asyncio.sleep(0)
            calls.append(call)
            if len(calls) < SENDING_BYTES_MAX // RESPONSE_BYTES_MAX:
                continue
            with pytest.raises(TooManyRequestsError):
                await build(answers, Call())
            call = calls.pop(0)
        call.end()
        await asyncio.sleep(0)
    for call in calls:
        call.end()
    assert answers._bytes == 0
    assert not answers._building


async def test_whoever_waits_for_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    answers, first, late = Answers(), Call(), Call()
    room = await build(answers, first)
    with pytest.raises(TooManyRequestsError):
        await build(answers, late)
    assert not late.callbacks
    room.built()
    await build(answers, Call())


async def test_whoever_goes_while_it_is_let_in_keeps_no_place() -> None:
    answers = Answers()
    room = await build(answers, Call())
    waiting = asyncio.create_task(build(answers, Call()))
    await asyncio.sleep(0.001)
    room.built()
    asyncio.get_running_loop().call_soon(waiting.cancel)
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5):
        await build(answers, Call())


async def test_a_client_that_does_not_take_its_answer_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TAKEN_WITHIN_S", 0.02)
    answers = Answers()

    async def serve(sending_s: float) -> None:
        call = Call()
        try:
            (await build(answers, call)).built()
            await asyncio.sleep(sending_s)
        finally:
            call.end()

    await serve(0.0)
    await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(serve(3600.0))
    await serve(0.0)


async def test_a_crowd_does_not_wait() -> None:
    answers = Answers()
    crowd = [asyncio.create_task(build(answers, Call())) for _ in range(1 + WAITING_MAX)]
    await asyncio.sleep(0.01)
    with pytest.raises(TooManyRequestsError):
        await build(answers, Call())
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)


async def test_a_read_of_the_node_itself_needs_no_call() -> None:
    room = Answers().room(None)
    room.hold(10 * LARGE_BYTES)
    await room.go_on()
