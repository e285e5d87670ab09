"""The clock of the leases: nobody early, nobody for ever, whoever the active is."""

import asyncio
import random
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from support.memory_storage import MemoryStorage
from support.sim_disk import SimClock
from support.virtual_loop import VirtualLoop

from kvpb.raft_pb2 import Command
from kvpb.rpc_pb2 import LeaseGrantRequest, LeaseRevokeRequest
from kvserver.errors import (
    LeaseNotFoundError,
    LeaseTtlTooLargeError,
    NotActiveError,
    NotCapableError,
    OutcomeUnknownError,
    RequestError,
)
from kvserver.mvcc.leases import SLACK_TTLS, LeaseChange, leases_after
from kvserver.mvcc.store import Writer
from kvserver.pipeline import lessor as module
from kvserver.pipeline.lessor import EXPIRED_PER_ENTRY, Lessor, Remaining, ttl_s_min
from kvserver.pipeline.outcome import Response

T = TypeVar("T")

LOOK = module.LOOK_S + 0.01


class Log:
    """What survives an active: the rows, and the time they know."""

    def __init__(self, clock: SimClock) -> None:
        self.clock = clock
        self.storage = MemoryStorage()
        self.stamped_ms = 0
        self.commands: list[Command] = []
        self.ttl_s_min = 1


class Bench:
    """An active with its lessor; what it proposes is applied at once unless told otherwise."""

    def __init__(self, log: Log, term: int = 1) -> None:
        self.log = log
        self.term = term
        self.clock = log.clock
        self.loop = VirtualLoop(log.clock)  # type: ignore[abstract] # nobody asks for the rest
        self._base_ms, self._began = log.stamped_ms, log.clock.now
        self.confirmed = True
        """Whether read rounds succeed; None: they do not end."""
        self.outcomes: list[RequestError | None] = []
        """Of the next proposals; those not named here are applied."""
        self.held: asyncio.Future[None] | None = None
        """The end of leases waits for this."""
        self.read_rounds = 0
        self.lessor = Lessor(
            log.storage, log.clock, random.Random(1), ttl_s_min=lambda: log.ttl_s_min,
            propose=self.propose, linearizable=self.linearizable, log_time_ms=self.log_time_ms,
            stamped_ms=lambda: log.stamped_ms, on_failure=self._fail,
        )  # fmt: skip

    def _fail(self, error: BaseException) -> None:
        self.loop.failure = error

    def log_time_ms(self) -> int:
        return self._base_ms + int((self.clock.now - self._began) * 1000)

    async def linearizable(self) -> None:
        self.read_rounds += 1
        await asyncio.sleep(0.001)
        if not self.confirmed:
            raise NotActiveError

    async def propose(self, command: Command) -> Response:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        if self.held is not None and command.HasField("expire_leases"):
            await asyncio.shield(self.held)
        self.log.stamped_ms = self.log_time_ms()
        self.log.commands.append(command)
        writer = Writer(self.log.storage.writer(), 1, self.log.stamped_ms)
        response: Response = None
        match command.WhichOneof("request"):
            case "lease_grant":
                response = writer.grant(command.lease_grant)
            case "renew_leases":
                writer.leases.renew(command.renew_leases.ids)
            case "expire_leases" if command.expire_leases.term == self.term:
                for lease in command.expire_leases.ids:
                    try:
                        writer.revoke(LeaseRevokeRequest(ID=lease))
                    except LeaseNotFoundError:
                        continue
        writer.flush()
        self.log.storage.commit()
        self.lessor.publish(writer.leases.changes)
        return response

    def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        self.loop.run()
        while (due := self.loop.due()) <= end:
            self.clock.now = max(self.clock.now, due)
            self.loop.run()
        self.clock.now = end
        self.loop.run()

    def stand_still(self, seconds: float) -> None:
        """The process is paused; then what was due is done."""
        self.clock.now += seconds
        self.loop.run()

    def begin(self, work: Awaitable[T]) -> "asyncio.Task[T]":
        async def wait() -> T:
            return await work

        return self.loop.create_task(wait())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        task = self.begin(work)
        self.pass_time(0.05)
        return task.result()

    def activate(self) -> "Bench":
        def start() -> None:
            self.lessor.activate(self.term)

        self.loop.call_soon(start)
        self.pass_time(0.02)
        return self

    def crash(self) -> "Bench":
        """Another node takes over at once."""
        self.loop.kill()
        return Bench(self.log, self.term + 1).activate()

    def grant(self, lease: int, ttl_s: int) -> None:
        self.do(self.lessor.grant(LeaseGrantRequest(ID=lease, TTL=ttl_s)))

    def keep(self, *leases: int) -> list[int]:
        return self.do(self.lessor.keep_alive(leases))

    @property
    def living(self) -> list[int]:
        with self.log.storage.read() as txn:
            return sorted(lease for lease, _ in leases_after(txn, None))

    def kinds(self) -> list[str]:
        return [str(command.WhichOneof("request")) for command in self.log.commands]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(Log(SimClock())).activate()
    yield bench
    bench.loop.kill()


def test_a_lease_ends_when_its_time_is_up_and_not_before(bench: Bench) -> None:
    bench.grant(1, 5)
    bench.pass_time(4.9)
    assert bench.living == [1]
    bench.pass_time(0.1 + LOOK)
    assert bench.living == []


def test_a_lease_that_is_kept_alive_lives_on(bench: Bench) -> None:
    bench.grant(1, 5)
    for _ in range(10):
        bench.pass_time(4)
        assert bench.keep(1) == [5]
    bench.pass_time(4.9)
    assert bench.living == [1]
    bench.pass_time(0.1 + LOOK)
    assert bench.living == []
    assert bench.keep(1) == [0]


def test_keeping_alive_needs_a_read_round_and_hardly_ever_the_log(bench: Bench) -> None:
    bench.grant(1, 10)
    bench.read_rounds = 0
    for _ in range(20):
        bench.pass_time(3)
        bench.keep(1)
    assert bench.read_rounds == 20
    renewals = bench.kinds().count("renew_leases")
    assert 1 <= renewals <= 60 / (SLACK_TTLS * 10) + 1


def test_many_are_kept_alive_in_one_round(bench: Bench) -> None:
    for lease in range(1, 101):
        bench.grant(lease, 1_000)
    bench.read_rounds = 0
    assert bench.keep(*range(1, 102)) == [1_000] * 100 + [0]
    assert bench.read_rounds == 1


def test_what_a_client_is_told_ends_before_what_the_log_promises(bench: Bench) -> None:
    bench.grant(1, 4)
    for _ in range(30):
        bench.pass_time(1.3)
        (told,) = bench.keep(1)
        with bench.log.storage.read() as txn:
            ((_, row),) = leases_after(txn, None)
        assert row.deadline_ms >= bench.log_time_ms() - 50 + 1000 * told


def test_a_deposed_active_renews_nothing(bench: Bench) -> None:
    bench.grant(1, 5)
    bench.pass_time(3)
    bench.confirmed = False
    with pytest.raises(NotActiveError):
        bench.keep(1)
    bench.confirmed = True
    bench.pass_time(2 + LOOK)
    assert bench.living == []


def test_one_deposed_while_it_confirms_renews_nothing(bench: Bench) -> None:
    bench.grant(1, 5)
    task = bench.begin(bench.lessor.keep_alive([1]))
    bench.loop.run()
    bench.loop.call_soon(bench.lessor.close)
    bench.pass_time(0.1)
    assert isinstance(task.exception(), NotActiveError)


def test_a_standby_answers_nothing(bench: Bench) -> None:
    bench.grant(1, 5)
    assert bench.lessor.count == 1
    bench.loop.call_soon(bench.lessor.close)
    bench.loop.run()
    assert bench.lessor.count is None
    for ask in (bench.lessor.keep_alive([1]), bench.lessor.remaining(1), bench.lessor.all()):
        with pytest.raises(NotActiveError):
            bench.do(ask)
    bench.pass_time(10)
    assert bench.living == [1], "only an active ends leases"


def test_who_asked_in_time_is_waited_for(bench: Bench) -> None:
    """A slow disk or network on the way to the confirmation costs nobody a lease."""
    bench.grant(1, 2)
    bench.pass_time(1.9)

    async def slow() -> None:
        await asyncio.sleep(3)

    bench.lessor._linearizable = slow
    task = bench.begin(bench.lessor.keep_alive([1]))
    bench.pass_time(3.1)
    assert task.result() == [2]
    assert bench.living == [1]


def test_who_asks_while_the_end_is_decided_hears_how_it_was(bench: Bench) -> None:
    bench.grant(1, 2)
    bench.held = bench.loop.create_future()
    bench.pass_time(2 + LOOK)
    assert bench.living == [1], "its end waits for the log"
    task = bench.begin(bench.lessor.keep_alive([1]))
    bench.pass_time(0.1)
    assert not task.done()
    bench.held.set_result(None)
    bench.pass_time(0.1)
    assert task.result() == [0]
    assert bench.living == []


def test_an_end_of_unknown_outcome_is_settled_before_anything_is_renewed(bench: Bench) -> None:
    bench.grant(1, 2)
    bench.outcomes = [OutcomeUnknownError(), OutcomeUnknownError()]
    bench.pass_time(2 + LOOK)
    task = bench.begin(bench.lessor.keep_alive([1]))
    bench.pass_time(1)
    assert task.result() == [0]
    assert bench.living == []


def test_the_end_of_a_lease_is_not_that_of_another_with_its_id(bench: Bench) -> None:
    """Its client ends and grants it anew while the log can't be reached."""
    bench.grant(1, 2)
    bench.grant(2, 2)
    bench.pass_time(1.8)
    bench.outcomes = [OutcomeUnknownError()] * 20
    bench.pass_time(0.2 + LOOK)
    assert 0 < len(bench.outcomes) < 20
    writer = Writer(bench.log.storage.writer(), 1, bench.log_time_ms())
    writer.revoke(LeaseRevokeRequest(ID=1))
    writer.grant(LeaseGrantRequest(ID=1, TTL=5))
    bench.log.storage.commit()
    bench.lessor.publish(writer.leases.changes)
    bench.pass_time(2)
    assert bench.living == [1]
    assert bench.keep(1) == [5]
    bench.pass_time(5 + LOOK)
    assert bench.living == []


def test_when_all_that_should_end_are_gone_nothing_more_is_proposed(bench: Bench) -> None:
    bench.grant(1, 2)
    bench.pass_time(1.8)
    bench.outcomes = [OutcomeUnknownError()] * 20
    bench.pass_time(0.2 + LOOK)
    assert 0 < len(bench.outcomes) < 20
    writer = Writer(bench.log.storage.writer(), 1)
    writer.revoke(LeaseRevokeRequest(ID=1))
    bench.log.storage.commit()
    bench.lessor.publish(writer.leases.changes)
    bench.pass_time(2)
    assert "expire_leases" not in bench.kinds()


def test_after_a_pause_those_who_asked_meanwhile_come_first(bench: Bench) -> None:
    """Their requests wait in the sockets of the paused process."""
    bench.grant(1, 3)
    bench.grant(2, 3)
    bench.pass_time(2)
    bench.stand_still(5)
    assert bench.living == [1, 2]
    assert bench.keep(1) == [3]
    bench.pass_time(module.STALL_GRACE_S + LOOK)
    assert bench.living == [1]


def test_ends_are_proposed_in_batches(bench: Bench) -> None:
    count = 2 * EXPIRED_PER_ENTRY + 1
    for lease in range(1, count + 1):
        bench.begin(bench.lessor.grant(LeaseGrantRequest(ID=lease, TTL=5)))
    bench.pass_time(5 + 2 * LOOK)
    assert bench.living == []
    ends = [len(each.expire_leases.ids) for each in bench.log.commands if each.expire_leases.ids]
    assert sum(ends) == count
    assert max(ends) <= EXPIRED_PER_ENTRY
    assert all(each.expire_leases.term in {0, bench.term} for each in bench.log.commands)


def test_a_new_active_gives_everybody_the_full_time(bench: Bench) -> None:
    bench.grant(1, 5)
    bench.pass_time(4)
    bench.keep(1)
    bench.pass_time(4)
    heir = bench.crash()
    heir.pass_time(4.8)
    assert heir.living == [1]
    heir.pass_time(0.2 + LOOK)
    assert heir.living == []


@pytest.mark.parametrize("reign_s", [0.7, 2.0, 4.0, 9.0])
def test_failovers_keep_no_lease_alive(bench: Bench, reign_s: float) -> None:
    """The log knows of at least half of every reign, though nothing else is written."""
    ttl_s, began = 5, bench.clock.now
    bench.grant(1, ttl_s)
    while bench.living:
        assert bench.clock.now - began < 2 * ttl_s * (1 + SLACK_TTLS) + reign_s, "for ever"
        bench.pass_time(reign_s)
        bench = bench.crash()


@pytest.mark.parametrize("reign_s", [0.5, 2.0, 7.0])
def test_failovers_cost_no_lease_that_is_kept_alive(bench: Bench, reign_s: float) -> None:
    bench.grant(1, 3)
    for _ in range(20):
        end = bench.clock.now + reign_s
        while bench.clock.now < end:
            bench.pass_time(min(1.0, reign_s))
            assert bench.keep(1) == [3]
        bench = bench.crash()
    assert bench.living == [1]


def test_time_goes_on_in_the_log_only_while_there_are_leases(bench: Bench) -> None:
    bench.pass_time(60)
    assert bench.kinds() == []
    bench.grant(1, 30)
    bench.pass_time(29)
    held_s = module.TIME_HELD_MS / 1000
    assert 29 / (held_s + 3 * LOOK) <= bench.kinds().count("pass_time") <= 29 / held_s + 1


def test_a_short_lease_is_made_longer_a_long_one_refused(bench: Bench) -> None:
    bench.grant(1, -7)
    assert bench.do(bench.lessor.remaining(1)) == Remaining(1, 0)
    with pytest.raises(LeaseTtlTooLargeError):
        bench.grant(2, 9_000_000_001)
    bench.grant(2, 9_000_000_000)


def test_the_shortest_time_is_that_of_the_cluster_as_it_is_now(bench: Bench) -> None:
    bench.grant(1, 1)
    bench.log.ttl_s_min = 3
    bench.grant(2, 1)
    bench.grant(3, 4)
    granted = [bench.do(bench.lessor.remaining(lease)) for lease in (1, 2, 3)]
    assert [each and each.granted_s for each in granted] == [1, 3, 4]


def test_the_shortest_time_suffices_for_finding_the_active() -> None:
    """Of as many standbys, of which each costs a client half a second, and in an election."""
    assert [ttl_s_min(members, 0.6) for members in range(1, 8)] == [2, 2, 3, 3, 4, 4, 5]
    assert [ttl_s_min(members, 2.5) for members in (1, 3, 5, 7)] == [4, 4, 4, 5]


def test_the_server_chooses_ids_that_differ(bench: Bench) -> None:
    answers = [bench.do(bench.lessor.grant(LeaseGrantRequest(TTL=9))) for _ in range(10)]
    assert len({answer.ID for answer in answers}) == 10
    assert all(0 < answer.ID < 1 << 63 for answer in answers)
    assert {answer.TTL for answer in answers} == {9}


def test_what_is_left_is_told_in_whole_seconds(bench: Bench) -> None:
    bench.grant(1, 10)
    bench.grant(2, 5)
    bench.pass_time(2)
    assert bench.do(bench.lessor.remaining(1)) == Remaining(10, 7)
    assert bench.do(bench.lessor.remaining(3)) is None
    assert bench.do(bench.lessor.all()) == [2, 1]


def test_what_changes_while_the_rows_are_read_wins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOADED_PER_SLICE", 2)
    for lease in range(1, 10):
        bench.grant(lease, 100)
    heir = bench.crash()
    other = Bench(heir.log, 3)
    read = leases_after
    turns = iter([LeaseChange(7, None), LeaseChange(1, None)])

    def reading(*args: Any) -> Any:
        other.lessor.publish([each for each in [next(turns, None)] if each is not None])
        return read(*args)

    monkeypatch.setattr(module, "leases_after", reading)
    other.activate()
    assert other.do(other.lessor.all()) == [2, 3, 4, 5, 6, 8, 9]


def test_nothing_is_answered_before_all_rows_are_read(bench: Bench) -> None:
    bench.grant(1, 100)
    bench.loop.kill()
    heir = Bench(bench.log, 2)
    heir.confirmed = False
    heir.activate()
    task = heir.begin(heir.lessor.keep_alive([1]))
    heir.pass_time(1)
    assert not task.done()
    heir.confirmed = True
    heir.pass_time(0.2)
    assert task.result() == [100]


def test_ended_leases_leave_nothing_behind(bench: Bench) -> None:
    """Ids may be granted and revoked again and again, each for years."""
    for _ in range(2_500):
        bench.begin(bench.lessor.grant(LeaseGrantRequest(ID=1, TTL=1_000_000)))
        bench.loop.run()
        writer = Writer(bench.log.storage.writer(), 1)
        writer.revoke(LeaseRevokeRequest(ID=1))
        bench.log.storage.commit()
        bench.lessor.publish(writer.leases.changes)
    tenure = bench.lessor._tenure
    assert tenure is not None
    assert len(tenure.heap) < 1_200
    assert not tenure.leases


def test_a_cluster_that_has_just_begun_is_given_a_moment(bench: Bench) -> None:
    bench.outcomes = [NotCapableError()] * 3
    task = bench.begin(bench.lessor.grant(LeaseGrantRequest(ID=1, TTL=5)))
    bench.pass_time(0.3)
    assert task.result().ID == 1
    bench.pass_time(module.CAPABLE_WITHIN_S)
    bench.outcomes = [NotCapableError()]
    with pytest.raises(NotCapableError):
        bench.grant(2, 5)
