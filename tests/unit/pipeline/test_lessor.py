"""The clock of the leases: nobody early, nobody for ever."""

import asyncio

import pytest
from support.lessor_bench import LOOK, Bench

from kvpb.rpc_pb2 import LeaseGrantRequest, LeaseRevokeRequest
from kvserver.errors import LeaseTtlTooLargeError, NotActiveError, OutcomeUnknownError
from kvserver.mvcc.leases import SLACK_TTLS, leases_after
from kvserver.mvcc.store import Writer
from kvserver.pipeline import lessor as module
from kvserver.pipeline.lessor import EXPIRED_PER_ENTRY, Remaining, ttl_s_min


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


def test_a_write_in_a_session_is_waited_for_too(bench: Bench) -> None:
    """Its end would lie behind the write in the log, and its client knows nothing of it."""
    bench.grant(1, 2)
    bench.pass_time(1.9)
    with bench.lessor.awaited.within(1), bench.lessor.awaited.within(1):
        bench.pass_time(1)
        assert bench.living == [1]
        bench.lessor.used(1)
    bench.pass_time(1.9)
    assert bench.living == [1]
    bench.pass_time(0.1 + LOOK)
    assert bench.living == []
    assert not bench.lessor.awaited, "nothing is left behind"


def test_who_asks_while_the_end_is_decided_hears_how_it_was(bench: Bench) -> None:
    bench.let_an_end_be_in_flight()
    task = bench.begin(bench.lessor.keep_alive([1]))
    bench.pass_time(0.1)
    assert not task.done()
    bench.commit()
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


def test_time_goes_on_in_the_log_only_while_there_are_leases(bench: Bench) -> None:
    bench.pass_time(60)
    assert bench.kinds() == ["pass_time"], "that of the promotion"
    bench.log.commands.clear()
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
