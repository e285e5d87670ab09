"""What passes the door and what does not; what passes must be readable in the log."""

from collections.abc import Callable

import pytest

from kvpb.raft_pb2 import Command, CommandBatch
from kvpb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.api.validate import (
    TXN_LEVELS_MAX,
    TXN_OPS_MAX,
    check_delete_range,
    check_put,
    check_range,
    check_txn,
    is_read_only,
)
from kvserver.errors import (
    DuplicateKeyError,
    EmptyKeyError,
    InvalidSortOptionError,
    KeyNotFoundError,
    KeyTooLongError,
    LeaseProvidedError,
    RequestError,
    TooManyOpsError,
    ValueProvidedError,
)
from kvserver.mvcc.interval import KEY_BYTES_MAX


def put(key: bytes) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key))


def delete(key: bytes, range_end: bytes = b"") -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=range_end))


def find(key: bytes) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key))


def txn(*then: RequestOp, otherwise: tuple[RequestOp, ...] = ()) -> RequestOp:
    return RequestOp(request_txn=TxnRequest(success=then, failure=otherwise))


def levels(count: int, innermost: RequestOp) -> TxnRequest:
    """Transactions within one another, the last of which does `innermost`."""
    outer = TxnRequest()
    inner = outer
    for _ in range(count - 1):
        inner = inner.success.add().request_txn
    inner.success.add().CopyFrom(innermost)
    return outer


# ---------------------------------------------------------------------------- single requests


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, EmptyKeyError),
        ({"key": b"k" * (KEY_BYTES_MAX + 1)}, KeyTooLongError),
        ({"key": b"a", "value": b"v", "ignore_value": True}, ValueProvidedError),
        ({"key": b"a", "lease": 1, "ignore_lease": True}, LeaseProvidedError),
        ({"value": b"v", "ignore_value": True}, EmptyKeyError),
    ],
    ids=["empty", "long", "value", "lease", "the key comes first"],
)
def test_puts_that_are_refused(fields: dict[str, bytes], error: type[RequestError]) -> None:
    request = PutRequest(**fields)  # type: ignore[arg-type]
    with pytest.raises(error):
        check_put(request)
    for path in (TxnRequest(success=[RequestOp(request_put=request)]),
                 TxnRequest(failure=[RequestOp(request_put=request)])):  # fmt: skip
        with pytest.raises(error):
            check_txn(path)


def test_puts_that_pass() -> None:
    for key in (b"a", b"\0", b"\xff", b"k" * KEY_BYTES_MAX):
        check_put(PutRequest(key=key, value=b"v", lease=-1, prev_kv=True))
    check_put(PutRequest(key=b"a", value=b"v", ignore_lease=True))
    check_put(PutRequest(key=b"a", lease=1, ignore_value=True))


def test_ranges() -> None:
    with pytest.raises(EmptyKeyError):
        check_range(RangeRequest(range_end=b"z"))
    with pytest.raises(InvalidSortOptionError):
        check_range(RangeRequest(key=b"a", sort_order=3))  # type: ignore[arg-type]
    with pytest.raises(InvalidSortOptionError):
        check_range(RangeRequest(key=b"a", sort_target=5))  # type: ignore[arg-type]
    for target in RangeRequest.SortTarget.values():
        for order in RangeRequest.SortOrder.values():
            check_range(RangeRequest(key=b"k" * 999, sort_target=target, sort_order=order))


def test_deletes() -> None:
    with pytest.raises(EmptyKeyError):
        check_delete_range(DeleteRangeRequest(range_end=b"\0"))
    check_delete_range(DeleteRangeRequest(key=b"k" * 999, range_end=b"a"))


# ---------------------------------------------------------------------------- transactions

MALFORMED = {
    "a compare without key": (TxnRequest(compare=[Compare()]), EmptyKeyError),
    "an operation of no kind": (TxnRequest(success=[RequestOp()]), KeyNotFoundError),
    "one on the other branch": (TxnRequest(failure=[RequestOp()]), KeyNotFoundError),
    "a nested one": (TxnRequest(success=[txn(txn(RequestOp()))]), KeyNotFoundError),
    "a range without key": (TxnRequest(success=[find(b"")]), EmptyKeyError),
    "a delete without key": (TxnRequest(success=[delete(b"", b"z")]), EmptyKeyError),
    "a nested compare": (
        TxnRequest(success=[RequestOp(request_txn=TxnRequest(compare=[Compare()]))]),
        EmptyKeyError,
    ),
    "form before duplicates": (TxnRequest(success=[put(b"a"), put(b"a"), put(b"")]), EmptyKeyError),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_at_any_place(name: str) -> None:
    request, error = MALFORMED[name]
    with pytest.raises(error):
        check_txn(request)


@pytest.mark.parametrize(
    "fill",
    [
        lambda request, count: request.compare.extend([Compare(key=b"a")] * count),
        lambda request, count: request.success.extend([find(b"a")] * count),
        lambda request, count: request.failure.extend([find(b"a")] * count),
    ],
    ids=["compare", "success", "failure"],
)
def test_operations_are_bounded(fill: Callable[[TxnRequest, int], None]) -> None:
    request = TxnRequest()
    fill(request, TXN_OPS_MAX)
    check_txn(request)
    fill(request, 1)
    with pytest.raises(TooManyOpsError):
        check_txn(request)


def test_nested_transactions_share_what_the_outer_leaves() -> None:
    half = [find(b"a")] * (TXN_OPS_MAX // 2)
    check_txn(TxnRequest(success=[txn(*half)] * (TXN_OPS_MAX // 2)))
    with pytest.raises(TooManyOpsError):
        check_txn(TxnRequest(success=[txn(*half, find(b"a"))] * (TXN_OPS_MAX // 2)))


@pytest.mark.parametrize(
    "innermost", [put(b"a"), find(b"a"), delete(b"a"), txn()], ids=["put", "range", "delete", "txn"]
)
def test_what_passes_is_readable_in_the_log_however_deep(innermost: RequestOp) -> None:
    deepest = TXN_LEVELS_MAX - innermost.HasField("request_txn")
    request = levels(deepest, innermost)
    check_txn(request)
    batch = CommandBatch(format=1, commands=[Command(txn=request)])
    assert CommandBatch.FromString(batch.SerializeToString()) == batch
    with pytest.raises(TooManyOpsError):
        check_txn(levels(deepest + 1, innermost))


DUPLICATES = {
    "put twice": [put(b"a"), put(b"a")],
    "put and deleted": [put(b"a"), delete(b"a")],
    "deleted and put": [delete(b"a"), put(b"a")],
    "in a deleted range": [put(b"b"), delete(b"a", b"c")],
    "at the start of it": [put(b"a"), delete(b"a", b"c")],
    "in it, below": [txn(put(b"b")), delete(b"a", b"c")],
    "in it, below on the other branch": [txn(otherwise=(put(b"b"),)), delete(b"a", b"c")],
    "at two levels": [put(b"a"), txn(txn(put(b"a")))],
    "at two levels, on the other branch": [txn(otherwise=(put(b"a"),)), put(b"a")],
    "in two nested ones": [txn(put(b"a")), txn(put(b"a"))],
    "in either branch of two": [txn(put(b"a")), txn(otherwise=(put(b"a"),))],
    "after a nested delete": [txn(delete(b"a")), put(b"a")],
    "nested after a nested delete": [txn(delete(b"a")), txn(put(b"a"))],
}

DISTINCT = {
    "other keys": [put(b"a"), put(b"b"), delete(b"c")],
    "at the end of a deleted range": [put(b"c"), delete(b"a", b"c")],
    "an empty range": [put(b"b"), delete(b"c", b"a")],
    "deleted twice": [delete(b"a"), delete(b"a", b"c"), txn(delete(b"b"))],
    "read and put": [find(b"a"), put(b"a"), find(b"a")],
    "either branch of one": [txn(put(b"a"), otherwise=(put(b"a"),))],
    "deleted on one, put on the other": [txn(delete(b"a"), otherwise=(put(b"b"),))],
    "before a nested delete (etcd)": [txn(put(b"a")), txn(delete(b"a"))],
    "all keys deleted (etcd)": [delete(b"\0", b"\0"), put(b"a")],
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_no_branch_changes_a_key_twice(name: str) -> None:
    ops = DUPLICATES[name]
    for request in (TxnRequest(success=ops), TxnRequest(failure=ops), levels(3, txn(*ops))):
        with pytest.raises(DuplicateKeyError):
            check_txn(request)


@pytest.mark.parametrize("name", DISTINCT)
def test_what_is_no_duplicate(name: str) -> None:
    check_txn(TxnRequest(success=DISTINCT[name], failure=DISTINCT[name]))


@pytest.mark.parametrize(
    ("request_of", "expected"),
    [
        (TxnRequest(), True),
        (TxnRequest(success=[find(b"a"), txn(find(b"b"))]), True),
        (TxnRequest(failure=[put(b"a")]), False),
        (TxnRequest(success=[delete(b"a")]), False),
        (TxnRequest(success=[find(b"a"), txn(otherwise=(txn(put(b"a")),))]), False),
    ],
    ids=["empty", "ranges", "put on the other branch", "delete", "nested put"],
)
def test_what_only_reads(request_of: TxnRequest, expected: bool) -> None:
    assert is_read_only(request_of) is expected
