"""The bookkeeping of single commands, of batches, and of transactions that fail half-way."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest
from support.memory_storage import MemoryStorage, MemoryTxn
from support.reading import read_range, read_txn

from kvpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.errors import (
    CompactedError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseNotFoundError,
    RequestError,
)
from kvserver.mvcc.keyvalue import Row, decode_row
from kvserver.mvcc.store import Writer, current_revision
from kvserver.storage.schema import KV, META, Database


class CountingTxn(MemoryTxn):
    """Notes each call into the engine."""

    def __init__(self, storage: MemoryStorage) -> None:
        super().__init__(storage._tables)
        self.calls: list[str] = []

    def get(self, db: Database, key: bytes) -> bytes | None:
        self.calls.append("get")
        return super().get(db, key)

    def get_many(self, db: Database, keys: Collection[bytes]) -> dict[bytes, bytes]:
        found = super().get_many(db, keys)
        self.calls = [call for call in self.calls if call != "get"] + ["get_many"]
        return found

    def put(self, db: Database, key: bytes, value: bytes) -> None:
        self.calls.append("put")
        super().put(db, key, value)

    def put_many(self, db: Database, pairs: Iterable[tuple[bytes, bytes]], **hints: Any) -> None:
        before = list(self.calls)
        super().put_many(db, pairs, **hints)
        self.calls = [*before, "put_many"]


class Bench:
    """A writer over an empty store."""

    def __init__(self, revision: int = 1) -> None:
        self.txn = CountingTxn(MemoryStorage())
        self.writer = Writer(self.txn, revision)

    def row(self, key: bytes) -> Row | None:
        stored = self.txn.get(KV, key)
        return None if stored is None else decode_row(stored)

    def put(self, key: bytes, value: bytes = b"v") -> int:
        return self.writer.put(PutRequest(key=key, value=value)).header.revision

    def rows(self) -> dict[bytes, Row]:
        self.writer.flush()
        return {key: decode_row(stored) for key, stored in self.txn.scan(KV)}


def ops(*requests: PutRequest | RangeRequest | DeleteRangeRequest | TxnRequest) -> list[RequestOp]:
    made = []
    for request in requests:
        match request:
            case PutRequest():
                made.append(RequestOp(request_put=request))
            case RangeRequest():
                made.append(RequestOp(request_range=request))
            case DeleteRangeRequest():
                made.append(RequestOp(request_delete_range=request))
            case TxnRequest():
                made.append(RequestOp(request_txn=request))
    return made


# ---------------------------------------------------------------------------- single commands


def test_the_life_of_a_key() -> None:
    bench = Bench()
    assert [bench.put(b"a", b"1"), bench.put(b"b"), bench.put(b"a", b"2")] == [2, 3, 4]
    assert bench.rows()[b"a"] == Row(2, 4, 2, 0, b"2")
    gone = bench.writer.delete_range(DeleteRangeRequest(key=b"a", prev_kv=True))
    assert (gone.header.revision, gone.deleted, gone.prev_kvs[0].value) == (5, 1, b"2")
    bench.put(b"a", b"3")
    assert bench.rows()[b"a"] == Row(6, 6, 1, 0, b"3"), "a new life begins at version 1"


def test_a_deletion_of_nothing_makes_no_revision() -> None:
    bench = Bench()
    bench.put(b"a")
    reply = bench.writer.delete_range(DeleteRangeRequest(key=b"b", range_end=b"\0"))
    assert (reply.header.revision, reply.deleted) == (2, 0)
    assert bench.put(b"a") == 3


@pytest.mark.parametrize(
    ("key", "range_end", "left"),
    [
        (b"b", b"", [b"a", b"b\0", b"c"]),
        (b"b", b"c", [b"a", b"c"]),
        (b"b", b"b", [b"a", b"b", b"b\0", b"c"]),
        (b"c", b"a", [b"a", b"b", b"b\0", b"c"]),
        (b"b", b"\0", [b"a"]),
        (b"\0", b"\0", []),
        (b"b" * 600, b"", [b"a", b"b", b"b\0", b"c"]),
    ],
)
def test_what_a_deletion_covers(key: bytes, range_end: bytes, left: list[bytes]) -> None:
    bench = Bench()
    for each in (b"a", b"b", b"b\0", b"c"):
        bench.put(each)
    reply = bench.writer.delete_range(DeleteRangeRequest(key=key, range_end=range_end))
    assert list(bench.rows()) == left
    assert reply.deleted == 4 - len(left)
    assert not reply.prev_kvs, "not asked for"


def test_prev_kv_is_the_pair_before_and_absent_for_a_new_key() -> None:
    bench = Bench()
    first = bench.writer.put(PutRequest(key=b"a", value=b"1", prev_kv=True))
    assert not first.HasField("prev_kv")
    second = bench.writer.put(PutRequest(key=b"a", value=b"2", prev_kv=True))
    assert (second.prev_kv.value, second.prev_kv.mod_revision) == (b"1", 2)
    assert not bench.writer.put(PutRequest(key=b"a", value=b"3")).HasField("prev_kv")


def test_ignore_value_keeps_the_value_and_ignore_lease_the_lease() -> None:
    bench = Bench()
    bench.put(b"a", b"1")
    bench.writer.put(PutRequest(key=b"a", ignore_value=True))
    assert bench.rows()[b"a"] == Row(2, 3, 2, 0, b"1")
    bench.writer.put(PutRequest(key=b"a", value=b"2", ignore_lease=True))
    assert bench.rows()[b"a"] == Row(2, 4, 3, 0, b"2")


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (PutRequest(key=b"new", ignore_value=True), KeyNotFoundError),
        (PutRequest(key=b"new", ignore_lease=True), KeyNotFoundError),
        (PutRequest(key=b"old", lease=5), LeaseNotFoundError),
        (PutRequest(key=b"old", lease=-5), LeaseNotFoundError),
        (PutRequest(key=b"new", lease=5, ignore_value=True), LeaseNotFoundError),
    ],
    ids=["value of nothing", "lease of nothing", "lease", "negative lease", "lease comes first"],
)
def test_a_refused_put_changes_nothing(refused: PutRequest, error: type[RequestError]) -> None:
    bench = Bench()
    bench.put(b"old", b"1")
    with pytest.raises(error):
        bench.writer.put(refused)
    assert bench.rows() == {b"old": Row(2, 2, 1, 0, b"1")}
    assert bench.put(b"next") == 3


# ---------------------------------------------------------------------------- batches


def test_a_batch_of_puts_reads_once_and_writes_once() -> None:
    bench = Bench()
    keys = [b"%03d" % number for number in range(200)]
    bench.writer.expect([*keys, *keys])
    for key in (*keys, *keys):
        bench.put(key)
    bench.writer.flush()
    told = "rows, history by revision and by key, then the revision"
    assert bench.txn.calls == ["get_many", "put_many", "put_many", "put_many", "put"], told
    assert bench.rows()[b"007"] == Row(9, 209, 2, 0, b"v")


def test_nothing_is_written_twice() -> None:
    bench = Bench()
    bench.put(b"a")
    bench.writer.flush()
    bench.txn.calls.clear()
    bench.writer.flush()
    assert bench.txn.calls == []


def test_the_revision_is_written_with_the_rows_it_belongs_to() -> None:
    bench = Bench()
    assert current_revision(bench.txn) == 1
    bench.put(b"a")
    bench.put(b"b")
    bench.writer.flush()
    assert current_revision(bench.txn) == 3
    assert bench.txn.get(META, b"revision") == (3).to_bytes(8, "big")


def test_what_was_read_ahead_is_forgotten_once_something_else_has_changed_it() -> None:
    bench = Bench()
    bench.put(b"a", b"1")
    bench.writer.flush()
    bench.writer.expect([b"a", b"b"])
    bench.put(b"b", b"1")
    bench.writer.delete_range(DeleteRangeRequest(key=b"a"))
    bench.writer.txn(TxnRequest(success=ops(PutRequest(key=b"b", value=b"2"))))
    assert bench.put(b"a", b"2") == 6
    bench.put(b"b", b"3")
    assert bench.rows() == {b"a": Row(6, 6, 1, 0, b"2"), b"b": Row(3, 7, 3, 0, b"3")}


def test_others_see_the_puts_that_wait() -> None:
    bench = Bench()
    bench.writer.expect([b"a", b"b"])
    bench.put(b"a", b"1")
    compare = Compare(key=b"a", target=Compare.VALUE, value=b"1")
    reply = bench.writer.txn(TxnRequest(compare=[compare], success=ops(RangeRequest(key=b"a"))))
    assert reply.succeeded
    assert reply.responses[0].response_range.kvs[0].value == b"1"
    bench.put(b"b")
    assert bench.writer.delete_range(DeleteRangeRequest(key=b"b")).deleted == 1


def test_a_put_that_was_not_expected_is_read_by_itself() -> None:
    bench = Bench()
    bench.put(b"a", b"1")
    bench.writer.flush()
    bench.writer.expect([b"b"])
    bench.put(b"a", b"2")
    assert bench.rows()[b"a"].version == 2


# ---------------------------------------------------------------------------- transactions


def filled() -> Bench:
    """a, b and c at revisions 2, 3 and 4."""
    bench = Bench()
    for key in (b"a", b"b", b"c"):
        bench.put(key, b"old")
    bench.writer.flush()
    return bench


def test_all_changes_share_a_revision() -> None:
    bench = filled()
    reply = bench.writer.txn(
        TxnRequest(
            success=ops(
                RangeRequest(key=b"a"),
                PutRequest(key=b"n"),
                DeleteRangeRequest(key=b"a"),
                TxnRequest(success=ops(DeleteRangeRequest(key=b"x"), PutRequest(key=b"m"))),
                RangeRequest(key=b"a", range_end=b"z"),
            )
        )
    )
    found, put, deleted, nested, all_found = reply.responses
    assert reply.header.revision == 5 == bench.writer.revision
    assert found.response_range.header.revision == 4, "nothing had changed yet"
    assert put.response_put.header.revision == 5
    assert deleted.response_delete_range.header.revision == 5
    assert nested.response_txn.HasField("header")
    assert nested.response_txn.header.ByteSize() == 0
    nothing, _ = nested.response_txn.responses
    assert nothing.response_delete_range.header.revision == 5
    assert [kv.key for kv in all_found.response_range.kvs] == [b"b", b"c", b"m", b"n"]
    assert bench.rows()[b"m"] == Row(5, 5, 1, 0, b"")


def test_a_transaction_without_change_makes_no_revision() -> None:
    bench = filled()
    request = TxnRequest(success=ops(DeleteRangeRequest(key=b"x"), RangeRequest(key=b"a")))
    assert bench.writer.txn(request).header.revision == 4
    assert bench.put(b"a") == 5


def test_compares_see_the_state_before_the_transaction_at_every_level() -> None:
    bench = filled()
    is_old = Compare(key=b"a", target=Compare.VALUE, value=b"old")
    inner = TxnRequest(compare=[is_old], success=ops(PutRequest(key=b"seen")))
    reply = bench.writer.txn(
        TxnRequest(compare=[is_old], success=ops(PutRequest(key=b"a", value=b"new"), inner))
    )
    assert reply.responses[1].response_txn.succeeded
    assert b"seen" in bench.rows()


def test_the_branch_that_is_not_taken_can_not_fail() -> None:
    bench = filled()
    request = TxnRequest(failure=ops(RangeRequest(key=b"a", revision=99)))
    assert bench.writer.txn(request).succeeded


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ([PutRequest(key=b"x", ignore_value=True)], KeyNotFoundError),
        ([PutRequest(key=b"x", lease=5)], LeaseNotFoundError),
        ([PutRequest(key=b"x", lease=5, ignore_value=True)], KeyNotFoundError),
        ([RangeRequest(key=b"a", revision=5)], FutureRevisionError),
        ([RangeRequest(key=b"a", revision=2)], CompactedError),
        ([RangeRequest(key=b"a", revision=5), PutRequest(key=b"x", lease=5)], LeaseNotFoundError),
        (
            [
                DeleteRangeRequest(key=b"b", range_end=b"\0"),
                PutRequest(key=b"c", ignore_value=True),
            ],
            KeyNotFoundError,
        ),
    ],
    ids=["value", "lease", "key comes first", "future", "past", "puts come first", "deleted"],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_transaction_that_fails_changes_nothing(
    failing: Sequence[PutRequest | RangeRequest | DeleteRangeRequest],
    error: type[RequestError],
    deep: bool,
) -> None:
    bench = filled()
    bench.writer.compact(CompactionRequest(revision=3))
    before = bench.rows()
    changes = (PutRequest(key=b"a", value=b"new"), DeleteRangeRequest(key=b"b"))
    inner = [TxnRequest(success=ops(*failing))] if deep else failing
    with pytest.raises(error):
        bench.writer.txn(TxnRequest(success=ops(*changes, *inner)))
    assert bench.rows() == before
    assert bench.writer.revision == 4


def test_a_range_that_names_the_revision_before_does_not_see_the_changes() -> None:
    bench = filled()
    named = RangeRequest(key=b"a", range_end=b"c", revision=4)
    now = RangeRequest(key=b"a", range_end=b"c")
    reply = bench.writer.txn(
        TxnRequest(
            success=ops(
                PutRequest(key=b"a", value=b"new"), named, now,
                DeleteRangeRequest(key=b"b"), TxnRequest(success=ops(named, now)),
            )
        )
    )  # fmt: skip
    replies = [
        reply.responses[1], reply.responses[2], *reply.responses[4].response_txn.responses
    ]  # fmt: skip
    found = [[kv.value for kv in each.response_range.kvs] for each in replies]
    assert found == [[b"old", b"old"], [b"new", b"old"], [b"old", b"old"], [b"new"]]
    assert {each.response_range.header.revision for each in replies} == {5}


def test_reading_transactions_and_ranges_give_the_revision_they_read() -> None:
    bench = filled()
    reply = read_txn(bench.txn, TxnRequest(success=ops(RangeRequest(key=b"a", revision=4))))
    assert reply.header.revision == 4 == reply.responses[0].response_range.header.revision
    with pytest.raises(FutureRevisionError):
        read_range(bench.txn, RangeRequest(key=b"a", revision=5), 4)
    assert not read_range(bench.txn, RangeRequest(key=b"a", revision=1), 4).kvs
    bench.writer.compact(CompactionRequest(revision=4))
    with pytest.raises(CompactedError):
        read_range(bench.txn, RangeRequest(key=b"a", revision=3), 4)
