"""What crosses from the raft thread to the main one, when, and in how few calls."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
from support.rooms import Rooms

from kvpb.raft_pb2 import Command, PublishMember
from kvpb.rpc_pb2 import PutRequest, PutResponse
from kvserver.errors import NotActiveError
from kvserver.mvcc.history import Change
from kvserver.mvcc.leases import LeaseChange
from kvserver.pipeline.crossing import Crossing
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.outcome import Response
from kvserver.pipeline.proposer import Proposer
from kvserver.raft.entry import MemberId
from kvserver.raft.status import RaftStatus

ME, OTHER = MemberId(1), MemberId(2)
LEADING = RaftStatus(
    term=3, leader=ME, leading=True, active=True, established=True,
    commit_index=9, applied_index=9, visible_index=9, last_index=9, peers={},
)  # fmt: skip
FOLLOWING = replace(LEADING, leader=OTHER, leading=False, active=False, term=4)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Loop:
    """Notes the calls from the other thread; `run_calls` is the main thread's turn."""

    def __init__(self) -> None:
        self.closed = False
        self.calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object) -> None:
        self.calls.append((callback, args))

    def run_calls(self) -> None:
        for callback, args in self.calls:
            callback(*args)
        self.calls.clear()


class Bench:
    def __init__(self) -> None:
        self.loop = Loop()
        self.statuses: list[RaftStatus] = []
        self.proposer = Proposer(
            Limits(),
            Clock(),
            knock=lambda: None,
            log_time_ms=lambda: 0,
            feature_level=lambda: 0,
            room=Rooms(),
        )
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.on_status: Callable[[], object] = lambda: None
        self.changes: list[tuple[int, list[Change]]] = []
        self.leases: list[list[LeaseChange]] = []
        self.failures: list[BaseException] = []
        self.crossing = Crossing(
            loop, self.proposer, self._on_status, lambda *told: self.changes.append(told),
            self.leases.append, self.failures.append,
        )  # fmt: skip

    def _on_status(self, status: RaftStatus) -> None:
        self.statuses.append(status)
        self.on_status()

    def end_turn(
        self, status: RaftStatus, ready: tuple[object, ...] = (), failed: tuple[object, ...] = ()
    ) -> None:
        self.crossing.end_turn(status, list(ready), list(failed))

    async def put(self, index: int, term: int) -> "asyncio.Task[Response]":
        """A put whose entry is in the log."""
        command = Command(put=PutRequest(key=b"k"))
        task = asyncio.create_task(self.proposer.propose(command))
        await asyncio.sleep(0)
        assert self.proposer.take() is not None
        self.proposer.appended(index, term)
        return task


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_who_leads_is_told_when_it_changes_and_not_otherwise(bench: Bench) -> None:
    bench.end_turn(LEADING)
    bench.end_turn(replace(LEADING, commit_index=10, applied_index=10, visible_index=10))
    assert len(bench.loop.calls) == 1
    bench.end_turn(FOLLOWING)
    assert bench.statuses == [], "nothing happens in the raft thread"
    bench.loop.run_calls()
    assert bench.statuses == [LEADING, FOLLOWING]


@pytest.mark.parametrize(
    "change",
    [
        {"term": 4},
        {"leader": None},
        {"active": False},
        {"established": False},
        {"peers": {OTHER: PublishMember(id=OTHER)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_of_these_is_news(bench: Bench, change: dict[str, object]) -> None:
    bench.end_turn(LEADING)
    bench.loop.run_calls()
    changed = replace(LEADING, **change)  # type: ignore[arg-type]
    bench.end_turn(changed)
    bench.loop.run_calls()
    assert bench.statuses == [LEADING, changed]


def test_the_newest_status_can_be_looked_at_without_a_call(bench: Bench) -> None:
    assert bench.crossing.status is None
    bench.end_turn(LEADING)
    later = replace(LEADING, commit_index=12)
    bench.end_turn(later)
    assert bench.crossing.status is later


def test_a_turn_without_news_costs_no_call(bench: Bench) -> None:
    bench.end_turn(LEADING)
    bench.loop.run_calls()
    bench.end_turn(LEADING)
    bench.crossing.results()
    assert bench.loop.calls == []


async def test_results_go_before_the_turn_is_durable_on_this_node(bench: Bench) -> None:
    """They are committed: a quorum has them on disk."""
    bench.end_turn(LEADING)
    bench.loop.run_calls()
    task = await bench.put(10, 3)
    bench.proposer.applied(10, 3, [PutResponse()])
    bench.crossing.results()
    assert not task.done()
    assert len(bench.loop.calls) == 1
    bench.loop.run_calls()
    assert await task == PutResponse()


async def test_a_read_here_may_not_run_behind_what_was_answered(bench: Bench) -> None:
    bench.end_turn(LEADING)
    assert bench.crossing.up_to_date
    task = await bench.put(10, 3)
    bench.proposer.applied(10, 3, [PutResponse()])
    bench.crossing.results()
    assert not bench.crossing.up_to_date, "told, but no read transaction sees it yet"
    bench.end_turn(LEADING)
    assert not bench.crossing.up_to_date
    bench.end_turn(replace(LEADING, visible_index=10))
    assert bench.crossing.up_to_date
    bench.loop.run_calls()
    await task


async def test_the_status_of_a_turn_arrives_before_its_results(bench: Bench) -> None:
    """Whoever hears of the end of a leadership from a result finds the role already changed."""
    bench.end_turn(LEADING)
    bench.loop.run_calls()
    command = Command(put=PutRequest(key=b"k"))
    task = asyncio.create_task(bench.proposer.propose(command))
    await asyncio.sleep(0)
    (proposal,) = bench.proposer._open
    bench.on_status = lambda: seen.append(proposal.future.done())
    seen: list[bool] = []
    bench.end_turn(FOLLOWING)
    assert len(bench.loop.calls) == 1, "one call carries both"
    bench.loop.run_calls()
    with pytest.raises(NotActiveError):
        await task
    assert seen == [False]


async def test_a_turn_that_does_not_lead_leaves_nobody_waiting(bench: Bench) -> None:
    queued = asyncio.create_task(bench.proposer.propose(Command(put=PutRequest(key=b"k"))))
    await asyncio.sleep(0)
    bench.end_turn(LEADING)
    bench.loop.run_calls()
    await asyncio.sleep(0)
    assert not queued.done()
    bench.end_turn(FOLLOWING)
    bench.loop.run_calls()
    with pytest.raises(NotActiveError):
        await queued


async def test_reads_are_told_how_their_round_ended(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    good: asyncio.Future[Response] = loop.create_future()
    bad: asyncio.Future[Response] = loop.create_future()
    bench.end_turn(LEADING, ready=(good,), failed=(bad,))
    assert len(bench.loop.calls) == 1
    assert not good.done()
    bench.loop.run_calls()
    assert await good is None
    with pytest.raises(NotActiveError):
        await bad


async def test_an_outcome_is_told_once(bench: Bench) -> None:
    bench.end_turn(LEADING)
    bench.loop.run_calls()
    task = await bench.put(10, 3)
    bench.proposer.applied(10, 3, [PutResponse()])
    bench.crossing.results()
    bench.end_turn(LEADING)
    assert len(bench.loop.calls) == 1
    bench.loop.run_calls()
    await task


def test_after_the_main_loop_has_ended_nothing_is_called(bench: Bench) -> None:
    bench.loop.closed = True
    bench.end_turn(LEADING)
    assert bench.loop.calls == []


def test_changes_are_told_on_a_leader_only_and_once() -> None:
    bench = Bench()
    change, lease = Change(2, 0, 0, b"a", b"row"), LeaseChange(7, None)
    bench.end_turn(FOLLOWING)
    bench.crossing.applied([change], [lease])
    bench.crossing.results()
    bench.loop.run_calls()
    assert bench.changes == [], "nobody watches on a standby"
    assert bench.leases == [], "nor keeps leases"
    bench.end_turn(LEADING)
    bench.crossing.applied([change], [lease])
    bench.crossing.results()
    bench.crossing.results()
    bench.loop.run_calls()
    assert [each for _, each in bench.changes] == [[change]]
    assert bench.leases == [[lease]]


def test_leases_alone_are_told_too() -> None:
    bench = Bench()
    bench.end_turn(LEADING)
    bench.crossing.applied([], [LeaseChange(7, None)])
    bench.crossing.results()
    bench.loop.run_calls()
    assert bench.leases == [[LeaseChange(7, None)]]
    assert bench.changes == []


def test_a_successor_counts_what_it_applied_as_a_standby() -> None:
    """Else who resumes a watch at it would read a state that does not show it yet."""
    bench = Bench()
    bench.crossing.end_turn(replace(FOLLOWING, applied_index=1, visible_index=1), [], [])
    bench.proposer.applied(2, 3, [PutResponse()])
    bench.crossing.applied([Change(3, 0, 0, b"a", b"row")], [])
    bench.crossing.results()
    bench.crossing.end_turn(replace(FOLLOWING, applied_index=2, visible_index=1), [], [])
    bench.crossing.results()
    bench.crossing.end_turn(replace(LEADING, applied_index=3, visible_index=1), [], [])
    assert not bench.crossing.up_to_date
    bench.crossing.end_turn(replace(LEADING, applied_index=3, visible_index=3), [], [])
    assert bench.crossing.up_to_date


def test_what_goes_wrong_on_the_main_thread_is_told() -> None:
    """The loop would log it and go on without what has arrived."""
    bench = Bench()
    bench.on_status = lambda: bench.changes[0]
    bench.end_turn(LEADING)
    bench.loop.run_calls()
    assert [type(failure) for failure in bench.failures] == [IndexError]
