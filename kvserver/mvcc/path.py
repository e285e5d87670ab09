"""The way of a transaction through its branches, fixed and checked before anything is changed."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from kvpb.rpc_pb2 import PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse
from kvserver.errors import CompactedError, FutureRevisionError, KeyNotFoundError
from kvserver.mvcc.budget import Budget
from kvserver.mvcc.compare import holds
from kvserver.mvcc.history import compacted_revision
from kvserver.mvcc.interval import Interval, bounds, covers
from kvserver.mvcc.keyvalue import Row, decode_row
from kvserver.mvcc.leases import Leases
from kvserver.storage.contract import ReadTxn
from kvserver.storage.schema import KV


@dataclass(frozen=True)
class Path:
    """The branch a transaction takes, and those of its nested ones."""

    succeeded: bool
    ops: Sequence[tuple[RequestOp, "Path | None"]]

    def flat(self) -> Iterator[RequestOp]:
        """The operations in the order they are done, nested ones in their place."""
        for op, nested in self.ops:
            if nested is None:
                yield op
            else:
                yield from nested.flat()

    def pinned_ranges(self) -> Iterator[RangeRequest]:
        """Ranges that name a revision: the one before the transaction, or they are refused."""
        for op in self.flat():
            if op.request_range.revision > 0:
                yield op.request_range

    def empty_response(self) -> TxnResponse:
        """To be filled. A nested one keeps a header with nothing in it, as in etcd."""
        response = TxnResponse(succeeded=self.succeeded)
        response.header.SetInParent()
        return response


def choose_path(txn: ReadTxn, request: TxnRequest, budget: Budget) -> Generator[None, None, Path]:
    """All compares, nested ones too, are evaluated against the state before the transaction.

    Yields:
        Now and then, as it goes on.

    Returns:
        The path.
    """
    succeeded = True
    for compare in request.compare:
        succeeded = yield from holds(txn, compare, budget)
        yield
        if not succeeded:
            break
    ops: list[tuple[RequestOp, Path | None]] = []
    for op in request.success if succeeded else request.failure:
        nested = None
        if op.HasField("request_txn"):
            nested = yield from choose_path(txn, op.request_txn, budget)
        ops.append((op, nested))
    return Path(succeeded, ops)


def check_path(txn: ReadTxn, path: Path, leases: Leases) -> None:
    """Raise what any put of the path would raise.

    Ranges come after this, wherever they stand (etcd's order). Deletes can always be done.
    """
    deleted: list[Interval] = []
    for op in path.flat():
        if op.HasField("request_put"):
            put = op.request_put
            if put.ignore_value or put.ignore_lease:
                gone = any(covers(interval, put.key) for interval in deleted)
                check_exists(put, None if gone else stored_row(txn, put.key))
            leases.check(put.lease)
        elif op.HasField("request_delete_range"):
            deletion = op.request_delete_range
            deleted.append(bounds(deletion.key, deletion.range_end))


def check_ranges(txn: ReadTxn, path: Path, revision: int) -> None:
    """Raise what any range of the path would raise; `revision` is the one before the transaction.

    Elsewhere a negative revision means none. Here it is one that is compacted, as in etcd.
    """
    compacted = compacted_revision(txn)
    for op in path.flat():
        wanted = op.request_range.revision
        if wanted > revision:
            raise FutureRevisionError
        if wanted and wanted < compacted:
            raise CompactedError


def check_exists(request: PutRequest, before: Row | None) -> None:
    """Raise if a put is to keep something of a row that is not there."""
    if before is None and (request.ignore_value or request.ignore_lease):
        raise KeyNotFoundError


def stored_row(txn: ReadTxn, key: bytes) -> Row | None:
    """The row of a key, None if there is none."""
    stored = txn.get(KV, key)
    return None if stored is None else decode_row(stored)
