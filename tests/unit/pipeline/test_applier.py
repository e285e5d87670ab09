"""Entries become state: the same on every node, and what was applied is remembered with it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.applying import FOUNDED_AT, ME, Replica, delete, founded, put, txn

from kvpb.raft_pb2 import (
    Command,
    CommandBatch,
    ExpireLeases,
    PassTime,
    PublishMember,
    RenewLeases,
)
from kvpb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    PutRequest,
    PutResponse,
    TxnResponse,
)
from kvserver.errors import KeyNotFoundError, LogNotUnderstoodError
from kvserver.mvcc.leases import LeaseChange, LeaseRow, promised_ms
from kvserver.mvcc.pace import STEP_KEYS
from kvserver.mvcc.store import FIRST_REVISION
from kvserver.pipeline.features import BATCH_FORMATS
from kvserver.pipeline.outcome import Result
from kvserver.storage.schema import KV, META


def comparable(results: Sequence[Result]) -> list[object]:
    return [type(each) if isinstance(each, Exception) else each for each in results]


# ---------------------------------------------------------------------- results


def test_a_large_entry_shows_that_it_goes_on_in_a_copy_too() -> None:
    replica = Replica()
    replica.apply(*[Command(put=PutRequest(key=b"%d" % i)) for i in range(STEP_KEYS)])
    before = replica.applier.pace.steps
    replica.apply(Command(delete_range=DeleteRangeRequest(key=b"\0", range_end=b"\0")))
    assert replica.applier.pace.steps > before
    assert replica.applier.shadow(founded()).pace is replica.applier.pace


def test_a_new_node_has_applied_its_members_and_nothing_else() -> None:
    replica = Replica()
    assert replica.applier.applied_index == FOUNDED_AT
    assert replica.applier.log_time_ms == 0
    assert not replica.turn()


def test_every_command_has_its_result_in_order() -> None:
    replica = Replica()
    a, missing, b, gone, both = replica.apply(
        put("a"), put("nope", "", ignore_value=True), put("b"), delete("a"), txn("c", "d"), term=4
    )
    assert isinstance(a, PutResponse)
    assert a.header.revision == 2
    assert isinstance(missing, KeyNotFoundError)
    assert isinstance(b, PutResponse)
    assert b.header.revision == 3, "what fails makes no revision"
    assert isinstance(gone, DeleteRangeResponse)
    assert (gone.deleted, gone.header.revision) == (1, 4)
    assert isinstance(both, TxnResponse)
    assert both.header.revision == 5
    ((index, term, _),) = replica.told
    assert (index, term) == (FOUNDED_AT + 1, 4)


def test_an_entry_without_commands_for_the_state_counts_and_tells_nothing() -> None:
    replica = Replica()
    replica.applier.apply(FOUNDED_AT + 1, 1, None)
    assert replica.applier.applied_index == FOUNDED_AT + 1
    assert replica.told == []
    assert replica.turn(), "the index is remembered all the same"
    assert replica.revision == FIRST_REVISION


def test_a_member_that_publishes_itself_is_in_the_roster() -> None:
    replica = Replica()
    about = PublishMember(id=ME, client_urls=["http://127.0.0.1:2379"])
    assert replica.apply(Command(publish_member=about)) == [None]
    replica.turn()
    assert replica.roster.client_address(ME) == "127.0.0.1:2379"
    assert replica.restarted().roster.client_address(ME) == "127.0.0.1:2379"
    assert replica.revision == FIRST_REVISION, "it is no change of the store"


# ---------------------------------------------------------------------- invariants


@pytest.mark.parametrize("step", [0, 2, -1])
def test_entries_come_without_gaps_and_once(step: int) -> None:
    replica = Replica()
    replica.apply(put("a"))
    with pytest.raises(AssertionError):
        replica.applier.apply(replica.applier.applied_index + step, 1, None)


def test_log_time_never_goes_back() -> None:
    replica = Replica()
    replica.apply(put("a"), at_ms=500)
    replica.apply(put("a"), at_ms=500)
    assert replica.applier.log_time_ms == 500
    with pytest.raises(AssertionError):
        replica.apply(put("a"), at_ms=499)


def test_how_far_is_written_once_for_a_turn() -> None:
    replica = Replica()
    replica.apply(put("a"))
    replica.apply(put("b"))
    assert replica.turn()
    assert not replica.turn()


def test_a_restart_goes_on_where_the_last_durable_turn_ended() -> None:
    replica = Replica()
    replica.apply(put("a", "1"), at_ms=10)
    replica.apply(put("a", "2"), at_ms=20)
    replica.turn()
    again = replica.restarted()
    assert again.applier.applied_index == replica.applier.applied_index
    assert again.applier.log_time_ms == 20
    (result,) = again.apply(put("a", "3"), at_ms=20)
    assert isinstance(result, PutResponse)
    assert result.header.revision == 4


def test_a_state_that_another_wrote_is_taken_over_whole() -> None:
    """As when a copy of the active's state arrives: nothing remembered may survive it."""
    copied, replica = Replica(), Replica()
    copied.apply(put("a"), at_ms=40)
    copied.apply(put("a", "2"), at_ms=50)
    copied.turn()
    replica.storage = replica.applier._storage = copied.storage
    replica.applier.reload()
    assert replica.applier.applied_index == copied.applier.applied_index
    assert replica.applier.log_time_ms == 50
    assert not replica.turn(), "how far it is stands there already"
    (result,) = replica.apply(put("b"), at_ms=50)
    assert isinstance(result, PutResponse)
    assert result.header.revision == 4


def test_a_crash_in_a_turn_loses_effects_index_and_time_together() -> None:
    replica = Replica()
    replica.apply(put("a"), at_ms=10)
    replica.turn()
    before = replica.rows()
    replica.apply(put("a"), put("b"), at_ms=30)
    replica.applier.stage()
    again = replica.restarted()
    assert again.rows() == before
    assert again.applier.applied_index == FOUNDED_AT + 1
    assert again.applier.log_time_ms == 10


def test_applied_again_after_the_crash_it_ends_the_same() -> None:
    entries = [[put("a"), put("b")], [delete("a"), txn("c")], [put("a", "new")]]
    straight, crashed = Replica(), Replica()
    for number, commands in enumerate(entries):
        straight.apply(*commands, at_ms=number)
        straight.turn()
        crashed.apply(*commands, at_ms=number)
        crashed = crashed.restarted()
        crashed.apply(*commands, at_ms=number)
        crashed.turn()
    assert crashed.rows() == straight.rows()


COMMANDS = st.one_of(
    st.builds(put, st.sampled_from("abc"), st.sampled_from(["1", "2"])),
    st.builds(lambda key: put(key, "", ignore_value=True), st.sampled_from("abcd")),
    st.builds(delete, st.sampled_from("abc")),
    st.builds(delete, st.just("a"), st.sampled_from("bcd")),
    st.builds(lambda keys: txn(*keys), st.sets(st.sampled_from("abc")).map(sorted)),
)


@given(
    st.lists(st.lists(COMMANDS, min_size=1, max_size=5), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_how_entries_fall_into_turns_makes_no_difference(
    entries: Sequence[Sequence[Command]], turns: Sequence[bool]
) -> None:
    """A standby that catches up takes many entries in a turn, the active took one."""
    one_by_one, at_once = Replica(), Replica()
    for number, commands in enumerate(entries):
        expected = one_by_one.apply(*commands, at_ms=number)
        one_by_one.turn()
        found = at_once.apply(*commands, at_ms=number)
        assert comparable(found) == comparable(expected)
        if turns[number]:
            at_once.turn()
    at_once.turn()
    assert at_once.rows() == one_by_one.rows()


# ---------------------------------------------------------------------- a newer log


def refused(batch: bytes) -> str:
    replica = Replica()
    with pytest.raises(LogNotUnderstoodError) as caught:
        replica.applier.apply(FOUNDED_AT + 1, 1, batch)
    assert replica.told == [], "nobody is told a result that was guessed"
    replica.storage.crash()
    assert replica.rows() == Replica().rows()
    return str(caught.value)


def test_a_batch_of_another_format_is_not_guessed_at() -> None:
    batch = CommandBatch(format=BATCH_FORMATS[-1] + 1, commands=[put("a")])
    assert f"entry 2 has format {BATCH_FORMATS[-1] + 1}" in refused(batch.SerializeToString())


def test_a_command_of_a_newer_version_is_not_skipped() -> None:
    unknown = Command.FromString(b"\xfa\x07\x00")  # field 127, of length 0
    batch = CommandBatch(format=BATCH_FORMATS[-1], commands=[put("a"), unknown])
    assert "newer kvserver" in refused(batch.SerializeToString())


def test_bytes_that_are_no_batch() -> None:
    assert "can't be read" in refused(b"\xff\xff")


def test_rows_hold_index_time_and_revision() -> None:
    replica = Replica()
    replica.apply(put("a"), at_ms=7)
    replica.turn()
    with replica.storage.read() as view:
        meta = {key: int.from_bytes(row, "big") for key, row in view.scan(META)}
        assert [key for key, _ in view.scan(KV)] == [b"a"]
    assert meta == {b"applied_index": 2, b"applied_term": 1, b"log_time_ms": 7, b"revision": 2}


def grant(lease: int, ttl_s: int = 10) -> Command:
    return Command(lease_grant=LeaseGrantRequest(ID=lease, TTL=ttl_s))


def expire(term: int, *leases: int) -> Command:
    return Command(expire_leases=ExpireLeases(term=term, ids=leases))


def test_leases_end_in_the_term_that_decided_it_and_in_no_other() -> None:
    replica = Replica()
    replica.apply(grant(1), Command(put=PutRequest(key=b"a", lease=1)), term=1)
    for term in (2, 3):
        replica.apply(expire(1, 1), term=term)
        replica.apply(expire(9, 1), term=term)
    assert replica.leases == [LeaseChange(1, LeaseRow(10, promised_ms(10, 0)))]
    replica.apply(expire(4, 1), term=4)
    assert replica.leases[1:] == [LeaseChange(1, None)]
    replica.turn()
    with replica.storage.read() as txn:
        assert txn.get(KV, b"a") is None


def test_each_lease_ends_as_a_revision_of_its_own_and_a_missing_one_is_passed_over() -> None:
    replica = Replica()
    puts = [Command(put=PutRequest(key=b"%d" % lease, lease=lease)) for lease in (1, 2)]
    replica.apply(grant(1), grant(2), *puts)
    before = replica.applier.revision
    replica.apply(expire(1, 1, 77, 2))
    assert replica.applier.revision == before + 2


def test_promises_are_made_in_log_time() -> None:
    replica = Replica()
    replica.apply(grant(1), at_ms=1_000)
    replica.apply(Command(renew_leases=RenewLeases(ids=[1, 2])), at_ms=5_000)
    replica.apply(Command(pass_time=PassTime()), at_ms=9_000)
    assert [each.row for each in replica.leases] == [
        LeaseRow(10, promised_ms(10, 1_000)), LeaseRow(10, promised_ms(10, 5_000)),
    ]  # fmt: skip
    replica.turn()
    assert replica.restarted().applier.log_time_ms == 9_000
