"""Reads wait for a moment that is confirmed after they came, and never for ever."""

import asyncio
from dataclasses import replace

import pytest

from kvserver.errors import NotActiveError, TooManyRequestsError
from kvserver.pipeline import gathering
from kvserver.pipeline.gathering import GATHER_FROM
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.outcome import settle
from kvserver.pipeline.reader import Reader, read_outcomes


@pytest.fixture(autouse=True)
def _never_idle_nor_looking_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "IDLE_S", 3600.0)
    monkeypatch.setattr(gathering, "PROBE_FROM", gathering.GATHER_MAX)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Bench:
    """A reader with both threads played by the test."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.clock = Clock()
        self.knocks = 0
        self.reader = Reader(limits or Limits(), self.clock, knock=self._knock)

    def _knock(self) -> None:
        self.knocks += 1

    async def ask(self, count: int = 1) -> list["asyncio.Task[None]"]:
        tasks = [asyncio.create_task(self.reader.linearizable()) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks


async def finished(task: "asyncio.Task[None]") -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return task.done()


async def test_all_that_wait_share_a_round_and_one_knock() -> None:
    bench = Bench()
    tasks = await bench.ask(3)
    assert bench.knocks == 1
    assert bench.reader.pending == 3
    round_ = bench.reader.take()
    assert len(round_) == 3
    settle(read_outcomes(round_, []))
    await asyncio.gather(*tasks)
    assert bench.reader.pending == 0


async def test_one_that_comes_after_a_round_began_waits_for_the_next() -> None:
    bench = Bench()
    (early,) = await bench.ask()
    first = bench.reader.take()
    (late,) = await bench.ask()
    assert bench.knocks == 2, "the raft thread must hear of it"
    settle(read_outcomes(first, []))
    await early
    assert not await finished(late), "its round is not confirmed: writes may lie between"
    second = bench.reader.take()
    assert not set(second) & set(first)
    settle(read_outcomes(second, []))
    await late


async def test_while_many_are_under_way_others_wait_for_their_end() -> None:
    bench = Bench()
    early = await bench.ask(GATHER_FROM)
    first = bench.reader.take()
    late = await bench.ask(7 * GATHER_FROM)
    assert bench.reader.take() == []
    knocks = bench.knocks
    settle(read_outcomes(first, []))
    await asyncio.gather(*early)
    assert bench.knocks == knocks + 1
    second = bench.reader.take()
    assert len(second) == len(late), "more than most of those who were just answered"
    settle(read_outcomes(second, []))
    await asyncio.gather(*late)


async def test_a_round_waits_for_those_who_were_just_answered() -> None:
    bench = Bench()
    tasks = await bench.ask(16)
    settle(read_outcomes(bench.reader.take(), []))
    await asyncio.gather(*tasks)
    again = await bench.ask(13)
    assert bench.reader.take() == []
    again += await bench.ask()
    assert len(bench.reader.take()) == len(again)


async def test_after_a_round_that_failed_nobody_waits() -> None:
    bench = Bench()
    tasks = await bench.ask(16)
    first = bench.reader.take()
    (late,) = await bench.ask()
    settle(read_outcomes([], first))
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(bench.reader.take()) == 1
    late.cancel()


async def test_nothing_is_taken_twice() -> None:
    bench = Bench()
    (task,) = await bench.ask()
    assert len(bench.reader.take()) == 1
    assert bench.reader.take() == []
    task.cancel()


async def test_a_round_that_fails_means_not_active() -> None:
    bench = Bench()
    good, bad = await bench.ask(2)
    first, second = bench.reader.take()
    settle(read_outcomes([first], [second]))
    await good
    with pytest.raises(NotActiveError):
        await bad


async def test_a_read_that_is_never_confirmed_is_refused_in_time() -> None:
    bench = Bench()
    (first,) = await bench.ask()
    bench.clock.now += Limits().request_timeout_s - 0.001
    (second,) = await bench.ask()
    bench.reader.expire()
    assert not await finished(first)
    bench.clock.now += 0.001
    bench.reader.expire()
    with pytest.raises(NotActiveError):
        await first
    assert not await finished(second)
    assert bench.reader.pending == 1
    second.cancel()


async def test_a_confirmation_after_the_refusal_changes_nothing() -> None:
    bench = Bench()
    (task,) = await bench.ask()
    taken = bench.reader.take()
    bench.clock.now += Limits().request_timeout_s
    bench.reader.expire()
    settle(read_outcomes(taken, []))
    with pytest.raises(NotActiveError):
        await task


async def test_a_client_that_goes_away_leaves_nothing_behind() -> None:
    bench = Bench()
    gone, here = await bench.ask(2)
    taken = bench.reader.take()
    gone.cancel()
    assert await finished(gone)
    assert bench.reader.pending == 1
    settle(read_outcomes(taken, []))
    await here
    assert bench.reader.pending == 0


async def test_the_door_has_a_limit() -> None:
    bench = Bench(replace(Limits(), pending_requests_max=2))
    tasks = await bench.ask(3)
    with pytest.raises(TooManyRequestsError):
        await tasks[2]
    assert len(bench.reader.take()) == 2
    tasks[0].cancel()
    assert await finished(tasks[0])
    (again,) = await bench.ask()
    assert not await finished(again), "there is room again"
    for task in (tasks[1], again):
        task.cancel()
