"""Is a request well formed? Pure; what depends on the state is checked when it is applied."""

from collections.abc import Sequence
from typing import Final

from kvpb.rpc_pb2 import (
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvserver.errors import (
    DuplicateKeyError,
    EmptyKeyError,
    InvalidSortOptionError,
    KeyNotFoundError,
    KeyTooLongError,
    LeaseProvidedError,
    TooManyOpsError,
    ValueProvidedError,
)
from kvserver.mvcc.interval import KEY_BYTES_MAX, TO_THE_END, Interval, bounds, covers

TXN_OPS_MAX: Final = 128
"""Operations, or compares, of a transaction; nested ones share what the outer leaves (etcd)."""

TXN_LEVELS_MAX: Final = 40
"""Transactions within one another. The protobuf library reads 100 levels of messages, two of which
are a transaction's; what passes the door must be readable in the log, where it is wrapped."""


def check_put(request: PutRequest) -> None:
    """Raise what is wrong with a put."""
    if not request.key:
        raise EmptyKeyError
    if len(request.key) > KEY_BYTES_MAX:
        raise KeyTooLongError
    if request.ignore_value and request.value:
        raise ValueProvidedError
    if request.ignore_lease and request.lease:
        raise LeaseProvidedError


def check_range(request: RangeRequest) -> None:
    """Raise what is wrong with a range. Long keys are fine: there just are none."""
    if not request.key:
        raise EmptyKeyError
    known_order = request.sort_order in RangeRequest.SortOrder.values()
    if not known_order or request.sort_target not in RangeRequest.SortTarget.values():
        raise InvalidSortOptionError


def check_delete_range(request: DeleteRangeRequest) -> None:
    """Raise what is wrong with a delete."""
    if not request.key:
        raise EmptyKeyError


def check_txn(request: TxnRequest) -> None:
    """Raise what is wrong with a transaction, on either branch, at any depth."""
    _check_txn(request, TXN_OPS_MAX, TXN_LEVELS_MAX)
    _changes(request.success)
    _changes(request.failure)


def _check_txn(request: TxnRequest, budget: int, levels: int) -> None:
    used = max(len(request.compare), len(request.success), len(request.failure))
    if used > budget or levels == 0:
        raise TooManyOpsError
    for compare in request.compare:
        if not compare.key:
            raise EmptyKeyError
    for op in (*request.success, *request.failure):
        _check_op(op, budget - used, levels - 1)


def _check_op(op: RequestOp, budget: int, levels: int) -> None:
    match op.WhichOneof("request"):
        case "request_range":
            check_range(op.request_range)
        case "request_put":
            check_put(op.request_put)
        case "request_delete_range":
            check_delete_range(op.request_delete_range)
        case "request_txn":
            _check_txn(op.request_txn, budget, levels)
        case None:
            raise KeyNotFoundError


def _changes(ops: Sequence[RequestOp]) -> tuple[set[bytes], list[Interval]]:
    """Keys put and ranges deleted by a branch; no key may be changed twice in one (etcd's rule).

    Both branches of a nested transaction may change the same key, since only one is taken. As in
    etcd, nested deletes are held against puts of later operations, not of earlier ones.
    """
    puts: set[bytes] = set()
    deletes = [
        _deleted(op.request_delete_range) for op in ops if op.HasField("request_delete_range")
    ]
    for op in ops:
        if not op.HasField("request_txn"):
            continue
        then_puts, then_deletes = _changes(op.request_txn.success)
        else_puts, else_deletes = _changes(op.request_txn.failure)
        _refuse_twice(then_puts | else_puts, puts, deletes)
        puts |= then_puts | else_puts
        deletes += then_deletes + else_deletes
    for op in ops:
        if op.HasField("request_put"):
            _refuse_twice({op.request_put.key}, puts, deletes)
            puts.add(op.request_put.key)
    return puts, deletes


def _deleted(request: DeleteRangeRequest) -> Interval:
    """What a delete covers, as far as this rule is concerned.

    etcd takes the end that means "all keys from here on" literally here: nothing comes before it,
    so such a delete goes with any put.
    """
    lo, hi = bounds(request.key, request.range_end)
    return lo, TO_THE_END if hi is None else hi


def _refuse_twice(keys: set[bytes], puts: set[bytes], deletes: Sequence[Interval]) -> None:
    if keys & puts or any(covers(interval, key) for key in keys for interval in deletes):
        raise DuplicateKeyError


def is_read_only(request: TxnRequest) -> bool:
    """True if neither branch, at any depth, can change anything."""
    return all(
        op.HasField("request_range")
        or (op.HasField("request_txn") and is_read_only(op.request_txn))
        for op in (*request.success, *request.failure)
    )
