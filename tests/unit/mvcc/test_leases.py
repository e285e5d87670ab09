"""What is replicated of leases: who may have which key, what ends with them, what is promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kv_requests import deletes, flags, keys, rarely, values
from support.memory_storage import MemoryStorage

from kvpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.errors import (
    KeyNotFoundError,
    LeaseExistsError,
    LeaseNotFoundError,
    RequestError,
)
from kvserver.mvcc.history import DELETE
from kvserver.mvcc.keyvalue import decode_row
from kvserver.mvcc.leases import (
    SLACK_S_MAX,
    SLACK_TTLS,
    LeaseChange,
    LeaseRow,
    Leases,
    find_lease,
    keys_of,
    leases_after,
    promised_ms,
)
from kvserver.mvcc.store import Writer
from kvserver.storage.schema import KV, LEASE_KEY

LEASES = (1, -1, (1 << 63) - 1, -(1 << 63))
NOW_MS = 50_000


class Bench:
    """A store; `next_batch` goes on with a new writer, as the next entry does."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.txn = self.storage.writer()
        self.writer = Writer(self.txn, 1, NOW_MS)

    def next_batch(self, log_time_ms: int = NOW_MS) -> None:
        self.writer.flush()
        self.writer = Writer(self.txn, self.writer.revision, log_time_ms)

    def grant(self, lease: int, ttl_s: int = 10) -> None:
        self.writer.grant(LeaseGrantRequest(ID=lease, TTL=ttl_s))

    def put(
        self, key: bytes, lease: int = 0, *, ignore_lease: bool = False, ignore_value: bool = False
    ) -> None:
        self.writer.put(
            PutRequest(key=key, lease=lease, ignore_lease=ignore_lease, ignore_value=ignore_value)
        )

    def revoke(self, lease: int) -> int:
        return self.writer.revoke(LeaseRevokeRequest(ID=lease)).header.revision

    def attached(self) -> dict[int, list[bytes]]:
        return {lease: list(keys_of(self.txn, lease)) for lease, _ in leases_after(self.txn, None)}

    def named(self) -> set[tuple[int, bytes]]:
        """What the rows of the keys say."""
        self.writer.flush()
        rows = ((key, decode_row(stored)) for key, stored in self.txn.scan(KV))
        return {(row.lease, key) for key, row in rows if row.lease}


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    for lease in LEASES:
        bench.grant(lease)
    return bench


def test_a_granted_lease_is_there_with_its_promise(bench: Bench) -> None:
    assert find_lease(bench.txn, 1) == LeaseRow(10, promised_ms(10, NOW_MS))
    assert sorted(lease for lease, _ in leases_after(bench.txn, None)) == sorted(LEASES)
    with pytest.raises(LeaseExistsError):
        bench.grant(1, 99)
    assert find_lease(bench.txn, 1) == LeaseRow(10, promised_ms(10, NOW_MS))


@pytest.mark.parametrize("ttl_s", [1, 10, 1_000, 9_000_000_000])
def test_a_promise_goes_beyond_the_granted_time_within_bounds(ttl_s: int) -> None:
    slack_ms = promised_ms(ttl_s, NOW_MS) - NOW_MS - 1000 * ttl_s
    assert 3_000 <= slack_ms <= 1000 * min(SLACK_TTLS * ttl_s, SLACK_S_MAX)


def test_leases_are_read_some_at_a_time(bench: Bench) -> None:
    found: list[int] = []
    last: int | None = None
    while (part := next(leases_after(bench.txn, last), None)) is not None:
        last = part[0]
        found.append(last)
    assert sorted(found) == sorted(LEASES)


def test_a_renewed_lease_is_promised_its_time_from_then_on(bench: Bench) -> None:
    bench.next_batch(NOW_MS + 7_000)
    bench.writer.leases.renew([1, 999])
    row = LeaseRow(10, promised_ms(10, NOW_MS + 7_000))
    assert find_lease(bench.txn, 1) == row
    assert find_lease(bench.txn, 999) is None
    assert bench.writer.leases.changes == [LeaseChange(1, row)]


@pytest.mark.parametrize("lease", LEASES)
def test_a_key_is_attached_to_the_lease_of_its_last_put(bench: Bench, lease: int) -> None:
    bench.put(b"a", lease)
    bench.put(b"b", lease)
    assert bench.attached()[lease] == [b"a", b"b"]
    bench.put(b"a", LEASES[lease == LEASES[0]])
    assert bench.attached()[lease] == [b"b"]
    bench.put(b"b", ignore_lease=True)
    assert bench.attached()[lease] == [b"b"]
    bench.put(b"b")
    assert bench.attached()[lease] == []


def test_a_deleted_key_belongs_to_no_lease(bench: Bench) -> None:
    bench.put(b"a", 1)
    bench.put(b"b", 1)
    bench.writer.delete_range(DeleteRangeRequest(key=b"a"))
    assert bench.attached()[1] == [b"b"]
    bench.writer.txn(
        TxnRequest(success=[RequestOp(request_delete_range=DeleteRangeRequest(key=b"b"))])
    )
    assert bench.attached()[1] == []


def test_a_put_with_an_unknown_lease_changes_nothing(bench: Bench) -> None:
    bench.put(b"a", 1)
    with pytest.raises(LeaseNotFoundError):
        bench.put(b"a", 999)
    with pytest.raises(LeaseNotFoundError):
        bench.put(b"missing", 999, ignore_value=True)
    put = PutRequest(key=b"missing", lease=999, ignore_value=True)
    with pytest.raises(KeyNotFoundError):  # etcd's order within a transaction
        bench.writer.txn(TxnRequest(success=[RequestOp(request_put=put)]))
    assert bench.attached()[1] == [b"a"]
    assert bench.writer.revision == 2


def test_the_end_of_a_lease_deletes_its_keys_in_order_as_one_revision(bench: Bench) -> None:
    for key in (b"b", b"\xff", b"a", b"", b"ab"):
        if key:
            bench.put(key, 1)
    bench.put(b"other", -1)
    revision = bench.writer.revision
    bench.next_batch()
    assert bench.revoke(1) == revision + 1
    bench.writer.flush()
    told = [(each.revision, each.sub, each.kind, each.key) for each in bench.writer.changes]
    gone = (b"a", b"ab", b"b", b"\xff")
    assert told == [(revision + 1, sub, DELETE, key) for sub, key in enumerate(gone)]
    assert all(each.previous for each in bench.writer.changes)
    assert bench.writer.leases.changes == [LeaseChange(1, None)]
    assert bench.named() == {(-1, b"other")}
    with pytest.raises(LeaseNotFoundError):
        bench.revoke(1)


def test_the_end_of_a_lease_without_keys_is_no_revision(bench: Bench) -> None:
    assert bench.revoke(1) == 1
    assert bench.writer.revision == 1


def test_within_a_batch_a_lease_that_ended_is_not_there_any_more(bench: Bench) -> None:
    bench.put(b"a", 1)
    bench.revoke(1)
    with pytest.raises(LeaseNotFoundError):
        bench.put(b"a", 1)
    bench.grant(1)
    bench.put(b"a", 1)
    assert bench.named() == {(1, b"a")}


def test_a_put_without_a_lease_looks_at_none(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.put(b"a")
    for name in ("check", "move"):
        monkeypatch.delattr(Leases, name)
    bench.put(b"a")
    with pytest.raises(AttributeError):
        bench.put(b"a", 1)


Change = PutRequest | DeleteRangeRequest | LeaseGrantRequest | LeaseRevokeRequest | TxnRequest

numbers = st.sampled_from([1, -1, 7])
puts = st.builds(
    PutRequest, key=keys, value=values, lease=st.sampled_from([0, 1, -1, 7]), ignore_lease=rarely
)
changes = st.one_of(
    puts, puts, deletes,
    st.builds(LeaseGrantRequest, ID=numbers, TTL=st.just(5)),
    st.builds(LeaseRevokeRequest, ID=numbers),
    st.builds(
        TxnRequest,
        success=st.lists(
            st.one_of(
                st.builds(RequestOp, request_put=puts),
                st.builds(RequestOp, request_delete_range=deletes),
            ),
            max_size=3,
        ),
    ),
)  # fmt: skip


@given(st.lists(st.tuples(changes, flags), max_size=30))
def test_what_is_attached_is_what_the_keys_say(sequence: list[tuple[Change, bool]]) -> None:
    bench = Bench()
    bench.grant(1)
    for request, cut in sequence:
        try:
            match request:
                case PutRequest():
                    bench.writer.put(request)
                case DeleteRangeRequest():
                    bench.writer.delete_range(request)
                case LeaseGrantRequest():
                    bench.writer.grant(request)
                case LeaseRevokeRequest():
                    bench.writer.revoke(request)
                case TxnRequest():
                    bench.writer.txn(request)
        except RequestError:
            pass
        if cut:
            bench.next_batch()
    attached = bench.attached()
    assert bench.named() == {(lease, key) for lease, found in attached.items() for key in found}
    assert len(list(bench.txn.keys(LEASE_KEY))) == len(bench.named())
