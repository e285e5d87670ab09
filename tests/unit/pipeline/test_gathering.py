"""Many who ask at a time are waited for, a moment; few are not, and nothing is forgotten."""

import asyncio
from collections import deque

import pytest

from kvserver.pipeline import gathering
from kvserver.pipeline.gathering import (
    GATHER_FROM,
    GATHER_MAX,
    GATHER_S,
    PROBE_AFTER,
    PROBE_PAUSE_S,
    Gathering,
)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Bench:
    """A queue, with both threads played by the test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue: deque[int] = deque()
        self.knocks = 0
        self.gathering = Gathering(self.queue, self.clock, self._knock)

    def _knock(self) -> None:
        self.knocks += 1

    def come(self, count: int) -> int:
        """So many more wait; how often somebody knocked for it."""
        before = self.knocks
        for number in range(count):
            self.queue.append(number)
            self.gathering.came()
        return self.knocks - before

    def take(self) -> int | None:
        """A turn; how many went, None if they are held back."""
        if self.gathering.holds():
            return None
        count = len(self.queue)
        self.queue.clear()
        if count:
            self.gathering.taken()
        return count

    def batch(self, count: int) -> None:
        """One of so many comes and ends."""
        self.come(count)
        assert self.take() == count
        self.gathering.answered(count)


@pytest.fixture(autouse=True)
def _never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "IDLE_S", 3600.0)


@pytest.fixture
def _no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PROBE_FROM", GATHER_MAX)


no_probes = pytest.mark.usefixtures("_no_probes")


@no_probes
async def test_the_first_one_knocks() -> None:
    bench = Bench()
    assert bench.come(3) == 1
    assert bench.take() == 3
    assert bench.come(1) == 1


@no_probes
async def test_few_are_never_held_back() -> None:
    bench = Bench()
    for _ in range(3):
        bench.batch(GATHER_FROM - 1)
        bench.batch(1)


@no_probes
async def test_the_last_one_wanted_knocks() -> None:
    bench = Bench()
    bench.batch(16)
    assert bench.come(13) == 1
    assert bench.take() is None
    assert bench.come(1) == 1
    assert bench.take() == 14


@no_probes
async def test_enough_are_not_held_back() -> None:
    bench = Bench()
    bench.batch(16)
    bench.come(14)
    assert bench.take() == 14


@no_probes
async def test_what_is_enough_at_any_time() -> None:
    bench = Bench()
    bench.batch(4 * GATHER_MAX)
    bench.come(GATHER_MAX)
    assert bench.take() == GATHER_MAX


@no_probes
async def test_nobody_waits_longer_than_a_moment() -> None:
    bench = Bench()
    bench.batch(16)
    bench.come(8)
    assert bench.take() is None
    bench.clock.now += GATHER_S
    assert bench.take() == 8


@no_probes
async def test_somebody_knocks_after_that_moment_though_more_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "IDLE_S", 0.001)
    bench = Bench()
    bench.batch(64)
    bench.come(1)
    assert bench.take() is None
    bench.clock.now += GATHER_S
    knocks = bench.knocks
    while bench.knocks == knocks:
        bench.gathering.came()  # more is read, but never as many as are wanted
        await asyncio.sleep(0.0002)
    assert bench.take()


@no_probes
async def test_nobody_waits_once_nothing_more_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "IDLE_S", 0.001)
    bench = Bench()
    bench.batch(16)
    bench.come(8)
    assert bench.take() is None
    knocks = bench.knocks
    while bench.knocks == knocks:
        await asyncio.sleep(0.001)
    assert bench.take() == 8


@no_probes
async def test_once_nothing_more_is_read_nobody_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "IDLE_S", 0.001)
    bench = Bench()
    bench.batch(16)
    bench.come(8)
    await asyncio.sleep(0.05)
    assert bench.take() == 8


@no_probes
async def test_what_is_forgotten_holds_nothing_back() -> None:
    bench = Bench()
    bench.batch(16)
    bench.come(1)
    assert bench.take() is None
    bench.gathering.forget()
    assert bench.come(1) == 1
    assert bench.take() == 2


async def test_where_more_are_than_are_seen_they_are_found() -> None:
    bench = Bench()
    for _ in range(PROBE_AFTER):
        bench.batch(2)
    for wanted in (4, 8, 16, 32):
        bench.come(wanted - 1)
        assert bench.take() is None
        bench.come(1)
        assert bench.take() == wanted
        bench.gathering.answered(wanted)


async def test_whoever_is_looked_for_in_vain_is_looked_for_more_rarely() -> None:
    bench = Bench()
    pause, most = PROBE_PAUSE_S
    for _ in range(PROBE_AFTER - 1):
        bench.batch(2)
    for _ in range(8):
        bench.batch(2)
        bench.come(2)
        assert bench.take() is None
        bench.clock.now += GATHER_S
        assert bench.take() == 2
        bench.gathering.answered(2)
        bench.clock.now += 0.99 * pause
        bench.batch(2)  # not held back
        bench.clock.now += 0.02 * pause
        pause = min(2 * pause, most)


async def test_one_alone_is_never_held_back() -> None:
    bench = Bench()
    for _ in range(10):
        bench.batch(1)
        bench.clock.now += PROBE_PAUSE_S[0]


async def test_one_and_an_entry_of_the_node_are_not_taken_for_many() -> None:
    bench = Bench()
    for _ in range(10):
        bench.batch(1)
        for _ in range(PROBE_AFTER - 1):
            bench.batch(2)
        bench.clock.now += PROBE_PAUSE_S[1]
