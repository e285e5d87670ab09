"""The quota refuses what puts data, lets pass what makes room, and needs some before it is over."""

import pytest
from support.memory_storage import MemoryStorage

from kvpb.raft_pb2 import Command, PublishMember
from kvpb.rpc_pb2 import (
    NOSPACE,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.errors import NoSpaceError
from kvserver.mvcc.store import Writer
from kvserver.pipeline.alarms import Alarm, Alarms, disarming, raising
from kvserver.pipeline.space import (
    FRESH_S,
    LEASE_BYTES,
    PUT_BYTES,
    ROOM_PART,
    Space,
    cost_of,
)
from kvserver.raft.entry import MemberId
from kvserver.storage.schema import IDENTITY, KV

QUOTA = 100_000
ME, OTHER = MemberId(1), MemberId(2)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Bench:
    def __init__(self) -> None:
        self.storage, self.clock, self.alarms = MemoryStorage(), Clock(), Alarms()
        self.space = Space(self.storage, self.clock, QUOTA, self.alarms, self._moment)

    async def _moment(self) -> None:
        """All that was applied becomes visible."""
        self.storage.commit()

    def fill(self, part: float) -> None:
        """Let the state take this part of the quota."""
        key = b"k"
        self.storage.writer().put(KV, key, bytes(int(QUOTA * part) - len(key)))
        self.storage.commit()
        with self.storage.read() as now:
            assert now.size_of(KV) == int(QUOTA * part)

    def admits(self, command: Command) -> bool:
        try:
            self.space.admit(command)
        except NoSpaceError:
            return False
        return True


def put(size: int = 0) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=b"k", value=bytes(size)))


def txn(success: list[RequestOp], failure: list[RequestOp]) -> TxnRequest:
    return TxnRequest(success=success, failure=failure)


PUT = Command(put=PutRequest(key=b"k"))
DELETE = RequestOp(request_delete_range=DeleteRangeRequest(key=b"k"))
ONE = 1 + PUT_BYTES
COSTS = [
    (Command(put=PutRequest(key=b"abc", value=b"12345")), 8 + PUT_BYTES),
    (Command(txn=txn([put(), put(10)], [put(5)])), 2 * ONE + 10),
    (Command(txn=txn([DELETE], [put(5)])), ONE + 5),
    (Command(txn=txn([RequestOp(request_txn=txn([], [put()])), put()], [])), 2 * ONE),
    (Command(txn=txn([DELETE, RequestOp(request_range=RangeRequest(key=b"k"))], [])), 0),
    (Command(delete_range=DeleteRangeRequest(key=b"k")), 0),
    (Command(lease_grant=LeaseGrantRequest(TTL=5)), LEASE_BYTES),
    (Command(lease_revoke=LeaseRevokeRequest(ID=5)), 0),
    (Command(compact=CompactionRequest(revision=1)), 0),
    (Command(publish_member=PublishMember()), 0),
    (Command(change_alarm=raising(Alarm(ME, NOSPACE))), 0),
]


@pytest.mark.parametrize(("command", "cost"), COSTS, ids=range(len(COSTS)))
def test_what_a_command_costs(command: Command, cost: int) -> None:
    assert cost_of(command) == cost


@pytest.mark.parametrize(("command", "cost"), COSTS, ids=range(len(COSTS)))
def test_an_alarm_of_any_member_refuses_what_costs_something(command: Command, cost: int) -> None:
    bench = Bench()
    bench.alarms.change(bench.storage.writer(), raising(Alarm(OTHER, NOSPACE)))
    assert bench.admits(command) is (cost == 0)
    bench.alarms.change(bench.storage.writer(), disarming(Alarm(OTHER, NOSPACE)))
    assert bench.admits(command)
    assert not bench.space.full


def test_what_would_not_fit_is_refused_and_needs_the_alarm() -> None:
    bench = Bench()
    bench.fill(0.5)
    bench.space.look()
    assert bench.admits(Command(put=PutRequest(key=b"k", value=bytes(QUOTA // 4))))
    assert not bench.space.full
    bench.clock.now += 2 * FRESH_S
    assert not bench.admits(Command(put=PutRequest(key=b"k", value=bytes(QUOTA // 2))))
    assert bench.space.full
    assert not bench.admits(PUT)


def test_what_was_let_through_counts_before_it_is_on_the_disk() -> None:
    bench = Bench()
    bench.fill(0.9)
    bench.space.look()
    assert sum(bench.admits(PUT) for _ in range(100)) == QUOTA // 10 // ONE
    assert bench.space.full


def test_estimates_are_replaced_by_a_measure_before_anything_is_refused() -> None:
    bench = Bench()
    bench.space.look()
    for _ in range(10):  # puts of the same key: what is taken does not grow
        assert bench.admits(Command(put=PutRequest(key=b"k", value=bytes(QUOTA // 2))))
        bench.clock.now += 2 * FRESH_S
    assert not bench.space.full


def test_there_is_room_again_well_below_the_quota() -> None:
    bench = Bench()
    for part, full in [(0.99, False), (1.01, True), (0.99, True), (ROOM_PART, False), (1, False)]:
        bench.fill(part)
        bench.space.look()
        assert bench.space.full is full, part
        assert bench.admits(Command(delete_range=DeleteRangeRequest(key=b"k")))


def test_the_alarm_stays_until_what_was_refused_would_fit() -> None:
    bench = Bench()
    large = Command(put=PutRequest(key=b"k", value=bytes(QUOTA // 5)))
    bench.fill(0.9)
    bench.space.look()
    assert not bench.admits(large)
    for part, full in [(0.9, True), (0.8, True), (0.7, False)]:
        bench.fill(part)
        bench.space.look()
        assert bench.space.full is full, part
    assert bench.admits(large)


def test_what_can_never_fit_does_not_keep_the_alarm_up() -> None:
    bench = Bench()
    assert not bench.admits(Command(put=PutRequest(key=b"k", value=bytes(2 * QUOTA))))
    bench.fill(0.5)
    bench.space.look()
    assert not bench.space.full


@pytest.mark.parametrize("member", [ME, OTHER])
def test_neither_a_restart_nor_a_failover_ends_the_alarm(member: MemberId) -> None:
    bench = Bench()
    bench.fill(0.97)
    bench.space.look()
    assert not bench.space.full
    bench.alarms.change(bench.storage.writer(), raising(Alarm(member, NOSPACE)))
    for part, full in [(0.97, True), (0.5, False)]:
        bench.fill(part)
        bench.space.look()
        assert bench.space.full is full


def test_what_is_no_state_does_not_count() -> None:
    bench = Bench()
    bench.storage.writer().put(IDENTITY, b"k", bytes(2 * QUOTA))
    bench.storage.commit()
    bench.space.look()
    assert not bench.space.full


async def test_a_write_that_was_applied_may_ask_for_its_answer() -> None:
    """From the moment on at which it was applied, not only once that is visible."""
    bench = Bench()
    writer = Writer(bench.storage.writer(), 1)
    writer.open_session(LeaseGrantRequest(ID=7, TTL=60))
    writes = [
        Command(session=7, sequence=number, put=PutRequest(key=b"k", value=b"v"))
        for number in (1, 2, 3)
    ]
    for write in writes[:2]:
        write.done_to = write.sequence - 1
        assert writer.sessions.answered(write) is None
        writer.sessions.keep(write, writer.put(write.put), numbered_errors=True)
    writer.flush()
    assert [await bench.space.is_settled(write) for write in writes] == [True, True, False]
    assert not await bench.space.is_settled(Command(session=8, sequence=1))
    bench.fill(1.1)
    bench.space.look()
    assert not any(bench.admits(write) for write in writes)
