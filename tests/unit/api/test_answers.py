"""Large answers share a budget, and give their part back when their call has ended."""

from collections.abc import Callable
from typing import Any

import pytest

from kvserver.api.answers import ANSWERS_BYTES_MAX, RESPONSE_BYTES_MAX, STEP_BYTES, Answers
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


def test_an_answer_is_bounded() -> None:
    call: Any = Call()
    room = Answers().room(call)
    room.hold(RESPONSE_BYTES_MAX)
    with pytest.raises(ResponseTooLargeError):
        room.hold(1)


def test_small_ones_cost_nothing() -> None:
    answers = Answers()
    calls = [Call() for _ in range(1000)]
    for call in calls:
        answers.room(call).hold(STEP_BYTES)  # type: ignore[arg-type]
        assert not call.callbacks
    assert answers.held_bytes == 0


def test_all_together_are_bounded_and_given_back() -> None:
    answers = Answers()
    calls: list[Any] = [Call() for _ in range(1 + ANSWERS_BYTES_MAX // RESPONSE_BYTES_MAX)]
    for call in calls[:-1]:
        answers.room(call).hold(RESPONSE_BYTES_MAX)
    last = answers.room(calls[-1])
    with pytest.raises(TooManyRequestsError):
        for _ in range(100):
            last.hold(STEP_BYTES)
    assert answers.held_bytes <= ANSWERS_BYTES_MAX
    calls[0].end()
    answers.room(Call()).hold(RESPONSE_BYTES_MAX // 2)  # type: ignore[arg-type]
    for call in calls[1:]:
        call.end()
        assert len(call.callbacks) == 1
    assert answers.held_bytes == RESPONSE_BYTES_MAX // 2 - STEP_BYTES


def test_a_read_of_the_node_itself_needs_no_call() -> None:
    answers = Answers()
    answers.room(None).hold(10 * STEP_BYTES)
    assert answers.held_bytes == 0
