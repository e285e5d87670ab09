"""Every proposal ends as exactly one of applied, not applied, unknown."""

import asyncio
from dataclasses import replace

import pytest
from support.rooms import Rooms

from kvpb import rpc_pb2
from kvpb.raft_pb2 import Command, CommandBatch, PassTime
from kvserver.errors import (
    KeyNotFoundError,
    NoSpaceError,
    NotActiveError,
    NotCapableError,
    OutcomeUnknownError,
    RequestTooLargeError,
    TooManyRequestsError,
)
from kvserver.pipeline import gathering
from kvserver.pipeline.gathering import GATHER_FROM
from kvserver.pipeline.limits import Limits
from kvserver.pipeline.outcome import Response, settle
from kvserver.pipeline.proposer import CAPABLE_WITHIN_S, ORPHAN_S, Proposer


@pytest.fixture(autouse=True)
def _never_idle_nor_looking_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "IDLE_S", 3600.0)
    monkeypatch.setattr(gathering, "PROBE_FROM", gathering.GATHER_MAX)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Bench:
    """A proposer with both threads played by the test."""

    def __init__(self, limits: Limits | None = None, log_time_ms: int = 0) -> None:
        self.clock = Clock()
        self.knocks = 0
        self.room = Rooms()
        self.level = 2
        self.proposer = Proposer(
            limits or Limits(),
            self.clock,
            knock=self._knock,
            log_time_ms=lambda: log_time_ms,
            feature_level=lambda: self.level,
            room=self.room,
        )

    def _knock(self) -> None:
        self.knocks += 1

    async def propose(self, *keys: bytes) -> list["asyncio.Task[Response]"]:
        tasks = [
            asyncio.create_task(
                self.proposer.propose(Command(put=rpc_pb2.PutRequest(key=key, value=b"v")))
            )
            for key in keys
        ]
        await asyncio.sleep(0)
        return tasks

    def take(self, index: int, term: int) -> CommandBatch:
        batch = self.proposer.take()
        assert batch is not None
        self.proposer.appended(index, term)
        return CommandBatch.FromString(batch)

    def settle(self) -> None:
        settle(self.proposer.take_outcomes())


async def test_what_waits_shares_a_batch_and_each_gets_its_own_result() -> None:
    bench = Bench()
    a, b = await bench.propose(b"a", b"b")
    assert bench.knocks == 1, "one knock for all that come before the turn"
    batch = bench.take(5, 2)
    assert [command.put.key for command in batch.commands] == [b"a", b"b"]
    bench.proposer.applied(5, 2, [rpc_pb2.PutResponse(), KeyNotFoundError()])
    bench.settle()
    assert await a == rpc_pb2.PutResponse()
    with pytest.raises(KeyNotFoundError):
        await b
    assert bench.proposer.pending == 0


async def test_the_applied_level_says_how_an_entry_is_written() -> None:
    bench = Bench()
    for index, (level, written) in enumerate([(0, 1), (2, 1), (3, 2), (4, 2)], 5):
        bench.level = level
        (waiting,) = await bench.propose(b"k")
        assert bench.take(index, 2).format == written
        bench.proposer.applied(index, 2, [rpc_pb2.PutResponse()])
        bench.settle()
        await waiting


async def test_one_batch_is_uncommitted_at_most() -> None:
    bench = Bench()
    await bench.propose(b"a")
    bench.take(5, 2)
    await bench.propose(b"b")
    assert bench.proposer.take() is None
    bench.proposer.applied(5, 2, [None])
    assert bench.proposer.take() is not None


@pytest.mark.parametrize(
    ("command", "most"),
    [
        (Command(put=rpc_pb2.PutRequest(key=b"k", value=b"v")), 200),
        (Command(put=rpc_pb2.PutRequest(key=b"k", ignore_value=True)), 64),
        (Command(put=rpc_pb2.PutRequest(key=b"k", prev_kv=True)), 64),
        (Command(delete_range=rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l")), 16),
        (
            Command(
                txn=rpc_pb2.TxnRequest(
                    compare=[rpc_pb2.Compare(key=b"k", range_end=b"l")],
                    failure=[
                        rpc_pb2.RequestOp(
                            request_range=rpc_pb2.RangeRequest(key=b"k", range_end=b"l")
                        )
                    ],
                )
            ),
            8,
        ),
    ],
    ids=["plain", "keeps a value", "answers with one", "deletes a range", "compares and reads"],
)
async def test_what_is_expensive_shares_its_entry_with_few(command: Command, most: int) -> None:
    bench = Bench()
    tasks = [asyncio.create_task(bench.proposer.propose(command)) for _ in range(200)]
    await asyncio.sleep(0)
    assert 0.8 * most <= len(bench.take(5, 2).commands) <= most
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_cluster_that_has_just_begun_is_given_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its members have not told yet what they understand."""
    monkeypatch.setattr("kvserver.pipeline.proposer.CAPABLE_LOOK_S", 0.001)
    bench = Bench()
    bench.level, bench.proposer.capable_soon = 0, lambda: True
    command = Command(pass_time=PassTime())
    waiting = asyncio.create_task(bench.proposer.propose(command))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    bench.level = 1
    await asyncio.sleep(0.01)
    assert len(bench.take(5, 2).commands) == 1
    bench.level = 0
    late = asyncio.create_task(bench.proposer.propose(command))
    await asyncio.sleep(0.01)
    bench.clock.now += CAPABLE_WITHIN_S + 1
    with pytest.raises(NotCapableError):
        await late
    bench.proposer.capable_soon = lambda: False
    with pytest.raises(NotCapableError):
        await bench.proposer.propose(command)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_another_entry_in_its_place_means_not_applied() -> None:
    bench = Bench()
    (a,) = await bench.propose(b"a")
    bench.take(5, 2)
    bench.proposer.stand_down()
    bench.proposer.applied(5, 3, [None])
    bench.settle()
    with pytest.raises(NotActiveError):
        await a


async def test_its_entry_committed_by_a_successor_means_applied() -> None:
    bench = Bench()
    (a,) = await bench.propose(b"a")
    bench.take(5, 2)
    bench.proposer.stand_down()
    bench.proposer.applied(5, 2, [rpc_pb2.PutResponse()])
    bench.settle()
    assert await a == rpc_pb2.PutResponse()


async def test_an_entry_nobody_decides_is_unknown() -> None:
    bench = Bench()
    (a,) = await bench.propose(b"a")
    bench.take(5, 2)
    bench.proposer.stand_down()
    bench.clock.now += ORPHAN_S
    bench.proposer.stand_down()
    bench.settle()
    with pytest.raises(OutcomeUnknownError):
        await a


async def test_what_never_entered_the_log_is_not_applied() -> None:
    bench = Bench()
    (a,) = await bench.propose(b"a")
    bench.proposer.stand_down()
    bench.settle()
    with pytest.raises(NotActiveError):
        await a


async def test_a_late_answer_is_unknown() -> None:
    bench = Bench()
    (a,) = await bench.propose(b"a")
    bench.take(5, 2)
    bench.clock.now += Limits().request_timeout_s
    bench.proposer.expire()
    with pytest.raises(OutcomeUnknownError):
        await a


async def test_what_nobody_waits_for_is_not_proposed() -> None:
    bench = Bench()
    gone, late, here = (await bench.propose(b"gone", b"late", b"here"))[:3]
    gone.cancel()
    await asyncio.sleep(0)
    for proposal in bench.proposer._queue:
        if proposal.command.put.key == b"late":
            proposal.deadline = bench.clock.now
    batch = bench.take(5, 2)
    assert [command.put.key for command in batch.commands] == [b"here"]
    bench.settle()
    with pytest.raises(NotActiveError):
        await late
    here.cancel()


async def test_batches_are_bounded() -> None:
    limits = replace(Limits(), batch_commands_max=2)
    bench = Bench(limits)
    tasks = await bench.propose(b"a", b"b", b"c")
    assert len(bench.take(5, 2).commands) == 2
    bench.proposer.applied(5, 2, [None, None])
    assert len(bench.take(6, 2).commands) == 1
    bench.proposer.applied(6, 2, [None])
    bench.settle()
    await asyncio.gather(*tasks)


async def test_the_door_has_limits() -> None:
    bench = Bench(replace(Limits(), pending_requests_max=1, request_bytes_max=100))
    (a,) = await bench.propose(b"a")
    (b,) = await bench.propose(b"b")
    with pytest.raises(TooManyRequestsError):
        await b
    a.cancel()
    await asyncio.sleep(0)
    (c,) = await bench.propose(b"c" * 200)
    with pytest.raises(RequestTooLargeError):
        await c


async def test_log_time_goes_on_from_the_newest_stamp() -> None:
    bench = Bench(log_time_ms=7_000)
    await bench.propose(b"a")
    assert bench.take(5, 2).log_time_ms == 7_000
    bench.proposer.applied(5, 2, [None])
    bench.clock.now += 1.5
    await bench.propose(b"b")
    assert bench.take(6, 2).log_time_ms == 8_500


# ---------------------------------------------------------------------- gathering


def keys(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def apply_all(bench: Bench, batch: CommandBatch, index: int) -> None:
    bench.proposer.applied(index, 1, [rpc_pb2.PutResponse() for _ in batch.commands])
    settle(bench.proposer.take_outcomes())
    await asyncio.sleep(0)


async def test_few_writers_never_wait_for_one_another() -> None:
    bench = Bench()
    for index in range(2, 8, 2):
        await bench.propose(*keys(GATHER_FROM - 1))
        await apply_all(bench, bench.take(index, 1), index)
        await bench.propose(b"a")
        await apply_all(bench, bench.take(index + 1, 1), index + 1)


async def test_a_batch_is_held_back_for_those_who_were_just_answered() -> None:
    bench = Bench()
    await bench.propose(*keys(8))
    first = bench.take(2, 1)
    await bench.propose(*keys(8))
    await apply_all(bench, first, 2)
    assert bench.proposer.take() is None
    await bench.propose(*keys(6))
    assert len(bench.take(3, 1).commands) == 14


async def test_a_new_leadership_holds_nothing_back() -> None:
    bench = Bench()
    await bench.propose(*keys(16))
    await apply_all(bench, bench.take(2, 1), 2)
    await bench.propose(b"a")
    assert bench.proposer.take() is None
    bench.proposer.stand_down()
    settle(bench.proposer.take_outcomes())
    await bench.propose(b"b")
    assert len(bench.take(3, 2).commands) == 1


# ---------------------------------------------------------------------- without room


NUMBERED = Command(session=7, sequence=3, put=rpc_pb2.PutRequest(key=b"k", value=b"v"))


async def test_without_room_what_was_sent_before_is_waited_for() -> None:
    """It may be in the log, though nobody waits for it: first its answer, then the refusal."""
    bench = Bench()
    first = asyncio.create_task(bench.proposer.propose(NUMBERED))
    await asyncio.sleep(0)
    bench.take(5, 2)
    first.cancel()  # its client has given up, and sends it again
    bench.room.full = True
    again = asyncio.create_task(bench.proposer.propose(NUMBERED))
    await asyncio.sleep(0)
    assert not again.done()
    assert bench.proposer.take() is None, "the first one is not decided"
    bench.proposer.applied(5, 2, [rpc_pb2.PutResponse()])
    (barrier,) = bench.take(6, 2).commands
    assert barrier == Command(pass_time=PassTime())
    bench.room.settled.add((7, 3))
    bench.proposer.applied(6, 2, [None])
    bench.settle()
    while not (batch := bench.proposer.take()):
        assert not again.done()
        await asyncio.sleep(0)
    bench.proposer.appended(7, 2)
    assert list(CommandBatch.FromString(batch).commands) == [NUMBERED]
    bench.proposer.applied(7, 2, [rpc_pb2.PutResponse()])
    bench.settle()
    assert await again == rpc_pb2.PutResponse()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_without_room_what_is_new_is_refused_and_never_proposed() -> None:
    bench = Bench()
    bench.room.full = True
    fresh = asyncio.create_task(bench.proposer.propose(NUMBERED))
    await asyncio.sleep(0)
    (barrier,) = bench.take(5, 2).commands
    assert barrier.HasField("pass_time")
    bench.proposer.applied(5, 2, [None])
    bench.settle()
    with pytest.raises(NoSpaceError):
        await fresh
    assert bench.proposer.take() is None
    (plain,) = await bench.propose(b"k")
    with pytest.raises(NoSpaceError):
        await plain
    assert bench.proposer.pending == 0


async def test_what_waits_for_its_answer_without_room_counts_among_the_bytes_that_wait() -> None:
    bench = Bench(Limits(pending_bytes_max=2_000))
    bench.room.full = True
    large = Command(session=7, sequence=3, put=rpc_pb2.PutRequest(key=b"k", value=bytes(1_500)))
    waiting = asyncio.create_task(bench.proposer.propose(large))
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequestsError):
        async with asyncio.timeout(5):
            await bench.proposer.propose(large)
    bench.take(5, 2)
    bench.proposer.applied(5, 2, [None])
    bench.settle()
    with pytest.raises(NoSpaceError):
        await waiting
    assert bench.proposer._open_bytes == 0
