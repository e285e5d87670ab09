"""The store: puts, deletes and transactions, each one revision. Deterministic.

Invariant: the same commands in the same order give the same rows and the same responses on every
node.
"""

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

from kvpb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)
from kvserver.errors import CompactedError, FutureRevisionError
from kvserver.mvcc.budget import (
    ANSWER_BYTES_MAX,
    READ_BYTES_MAX,
    STEP_ROWS,
    UNBOUNDED,
    VISITED_ROWS_MAX,
    Budget,
)
from kvserver.mvcc.history import (
    DELETE,
    PUT,
    Change,
    compacted_revision,
    set_compacted_revision,
    write_changes,
)
from kvserver.mvcc.interval import bounds
from kvserver.mvcc.keyvalue import Row, decode_row, encode_row, lease_of, to_message
from kvserver.mvcc.leases import Leases
from kvserver.mvcc.pace import Pace
from kvserver.mvcc.path import Path, check_exists, check_path, check_ranges, choose_path
from kvserver.mvcc.ranges import read_range
from kvserver.mvcc.sessions import Sessions
from kvserver.storage.contract import ReadTxn, WriteTxn
from kvserver.storage.rows import damaged
from kvserver.storage.schema import KV, META

FIRST_REVISION: Final = 1
"""Of an empty store; the first write makes revision 2."""

_REVISION: Final = b"revision"


def current_revision(txn: ReadTxn) -> int:
    """Revision of the newest change."""
    stored = txn.get(META, _REVISION)
    return int.from_bytes(stored, "big") if stored else FIRST_REVISION


class Writer:
    """Applies commands to one write transaction."""

    def __init__(
        self, txn: WriteTxn, revision: int, log_time_ms: int = 0, pace: Pace | None = None
    ) -> None:
        """Go on from `revision`; `log_time_ms` is that of the commands, `pace` how they go on."""
        self._txn = txn
        self._pace = pace or Pace()
        self.revision = revision
        """Of the newest change. Invariant: rises by one per command that changes something."""
        self._flushed = revision
        self._known: dict[bytes, bytes | None] = {}
        """Rows as single puts see them; None for a key that does not exist."""
        self._unwritten: dict[bytes, bytes] = {}
        """Rows of single puts. Invariant: written before anything else looks at the keys."""
        self._replaced: dict[bytes, bytes | None] = {}
        """For each of these what is written now; None for a key that is not there."""
        self._unrecorded: list[Change] = []
        """Changes that are not in the history yet. Invariant: as for `_unwritten`."""
        self.changes: list[Change] = []
        """All that was changed, in order."""
        self.limited = False
        """Commands are held to the limits of budget.py: all members must do the same."""
        self.answer_bytes_max = UNBOUNDED
        """What is worth having of the answer to the next command; it is cut beyond, 0 if nobody
        waits for it. Nothing else depends on it: members may have different ones. Invariant: what
        is cut is larger than this, so too large to be kept wherever the whole of it is."""
        self.leases = Leases(txn, log_time_ms, self._pace)
        self.sessions = Sessions(txn, self.leases)

    def expect(self, keys: Collection[bytes]) -> None:
        """Read what puts of these keys will look at, in one call instead of one for each.

        Each call into the engine gives the GIL up, beside a busy thread to wait for it again.
        """
        self._known = dict.fromkeys(keys)
        self._known |= self._txn.get_many(KV, self._known)

    def flush(self) -> None:
        """Write what waits, and the revision: once for all commands of a batch."""
        self._write()
        self.sessions.flush()
        if self.revision != self._flushed:
            self._flushed = self.revision
            self._txn.put(META, _REVISION, self.revision.to_bytes(8, "big"))

    def _write(self) -> None:
        if self._unwritten:
            self._txn.put_many(KV, self._unwritten.items(), before=self._replaced)
            self._unwritten, self._replaced = {}, {}
        self._known = {}
        if self._unrecorded:
            for some in self._pace.chunks(self._unrecorded):
                write_changes(self._txn, some)
            self.changes += self._unrecorded
            self._unrecorded = []

    def put(self, request: PutRequest) -> PutResponse:
        """Set one key.

        Raises:
            KeyNotFoundError, LeaseNotFoundError: nothing changed.
        """
        key = request.key
        stored = self._known[key] if key in self._known else self._txn.get(KV, key)
        before = None if stored is None else decode_row(stored)
        if request.lease:
            self.leases.check(request.lease)
        check_exists(request, before)
        self.revision += 1
        row, response = _replace(request, before, self.revision)
        self._move(key, before, row)
        if key not in self._unwritten:
            self._replaced[key] = stored
        new = self._known[key] = self._unwritten[key] = encode_row(row)
        self._unrecorded.append(Change(self.revision, 0, PUT, key, new, stored or b""))
        return response

    def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        """Delete the keys of a range; a revision only if there were any.

        Raises:
            WriteTooExpensiveError: nothing changed.
        """
        self._write()
        if request.prev_kv:
            self._pace.drive(self._measure_deletion(request, self._budget()))
        run = self._begin_run()
        response = self._delete_range(request, run)
        if response.deleted:
            self.revision += 1
        return response

    def _budget(self) -> Budget:
        if not self.limited:
            return Budget()
        return Budget(VISITED_ROWS_MAX, READ_BYTES_MAX, ANSWER_BYTES_MAX)

    def _begin_run(self) -> "_Run":
        return _Run(self.revision + 1, self.answer_bytes_max)

    def grant(self, request: LeaseGrantRequest) -> LeaseGrantResponse:
        """Begin a lease.

        Raises:
            LeaseExistsError: nothing changed.
        """
        self.leases.grant(request)
        response = LeaseGrantResponse(ID=request.ID, TTL=request.TTL)
        response.header.revision = self.revision
        return response

    def open_session(self, request: LeaseGrantRequest) -> LeaseGrantResponse:
        """Begin a lease that is a session.

        Raises:
            LeaseExistsError: nothing changed.
        """
        response = self.grant(request)
        self.sessions.begin(request.ID)
        return response

    def revoke(self, request: LeaseRevokeRequest) -> LeaseRevokeResponse:
        """End a lease, and its session: its keys are deleted in order, as one revision.

        Raises:
            LeaseNotFoundError: nothing changed.
        """
        self._write()
        keys = self.leases.end(request.ID)
        self.sessions.end(request.ID)
        for some in self._pace.chunks(keys):
            rows = self._txn.get_many(KV, some)
            if len(rows) < len(some):
                raise damaged(f"a key of the lease {request.ID:x} is missing")
            for key in some:
                self._txn.delete(KV, key)
                self._record(self.revision + 1, DELETE, key, b"", rows[key])
        if keys:
            self.revision += 1
        response = LeaseRevokeResponse()
        response.header.revision = self.revision
        return response

    def compact(self, request: CompactionRequest) -> CompactionResponse:
        """Forget what was before a revision.

        Raises:
            CompactedError, FutureRevisionError: nothing changed.
        """
        if request.revision <= compacted_revision(self._txn):
            raise CompactedError
        if request.revision > self.revision:
            raise FutureRevisionError
        set_compacted_revision(self._txn, request.revision)
        response = CompactionResponse()
        response.header.revision = self.revision
        return response

    def _record(self, revision: int, kind: int, key: bytes, stored: bytes, previous: bytes) -> None:
        last = self._unrecorded[-1] if self._unrecorded else None
        sub = last.sub + 1 if last is not None and last.revision == revision else 0
        self._unrecorded.append(Change(revision, sub, kind, key, stored, previous))

    def txn(self, request: TxnRequest) -> TxnResponse:
        """Compare, then do one branch or the other, as one revision.

        Raises:
            RequestError: an operation of the taken path can't be done; nothing changed.
        """
        self._write()
        budget = self._budget()
        path = self._pace.drive(choose_path(self._txn, request, budget))
        check_path(self._txn, path, self.leases)
        check_ranges(self._txn, path, self.revision)
        if self.limited:
            self._pace.drive(self._measure(path, budget))
        run = self._begin_run()
        # what names the revision before the change must not see the change
        run.pinned = iter([self._range(named, run) for named in path.pinned_ranges()])
        response = self._take(path, run)
        if run.changed:
            self.revision = run.revision
        response.header.revision = self.revision
        return response

    def _measure(self, path: Path, budget: Budget) -> Generator[None, None, None]:
        """See what the operations of a path would look at, and answer with, before any is done.

        On the state before it, and what its own puts add to that: each to every later range.
        """
        put: list[PutRequest] = []
        for op in path.flat():
            if op.HasField("request_range"):
                yield from read_range(self._txn, op.request_range, self.revision, budget)
                if not op.request_range.revision > 0:
                    lo, hi = bounds(op.request_range.key, op.request_range.range_end)
                    for each in put:
                        if lo <= each.key and (hi is None or each.key < hi):
                            budget.visit(len(each.value))
                            budget.hold(len(each.key) + len(each.value))
            elif op.HasField("request_delete_range"):
                if op.request_delete_range.prev_kv:
                    yield from self._measure_deletion(op.request_delete_range, budget)
                    for each in put:
                        budget.hold(len(each.key) + len(each.value))
            elif op.HasField("request_put"):
                self._measure_put(op.request_put, budget)
                put.append(op.request_put)

    def _measure_put(self, request: PutRequest, budget: Budget) -> None:
        """Of a put that needs the value before it: to answer with it, or to keep it."""
        if request.prev_kv or request.ignore_value:
            stored = self._txn.get(KV, request.key) or b""
            budget.visit(len(stored))
            budget.hold(len(stored) * (request.prev_kv + request.ignore_value))

    def _measure_deletion(
        self, request: DeleteRangeRequest, budget: Budget
    ) -> Generator[None, None, None]:
        """The same for a deletion that answers with what was there."""
        if not self.limited:
            return
        if not request.range_end:
            stored = self._txn.get(KV, request.key) or b"" if request.key else b""
            budget.visit(len(stored))
            budget.hold(len(stored))
        else:
            found = self._txn.scan(KV, *bounds(request.key, request.range_end))
            for number, (key, stored) in enumerate(found, 1):
                budget.visit(len(stored))
                budget.hold(len(key) + len(stored))
                if not number % STEP_ROWS:
                    yield

    def _range(self, request: RangeRequest, run: "_Run") -> RangeResponse:
        """A range of a transaction; empty if the answer is cut already."""
        if run.cut:
            return RangeResponse()
        found = self._pace.drive(read_range(self._txn, request, run.seen))
        run.answers(found.ByteSize())
        return found

    def _put(self, request: PutRequest, revision: int) -> PutResponse:
        key = request.key
        stored = self._txn.get(KV, key)
        before = None if stored is None else decode_row(stored)
        row, response = _replace(request, before, revision)
        self._move(key, before, row)
        new = encode_row(row)
        self._txn.put(KV, key, new)
        self._record(revision, PUT, key, new, stored or b"")
        return response

    def _move(self, key: bytes, before: Row | None, row: Row) -> None:
        """Let a key go with the lease that it is put with."""
        left = 0 if before is None else before.lease
        if left != row.lease:
            self.leases.move(key, left, row.lease)

    def _delete_range(self, request: DeleteRangeRequest, run: "_Run") -> DeleteRangeResponse:
        revision = run.revision
        if request.range_end:
            gone = self._pace.all(self._txn.scan(KV, *bounds(request.key, request.range_end)))
        else:
            stored = self._txn.get(KV, request.key) if request.key else None
            gone = [] if stored is None else [(request.key, stored)]
        response = DeleteRangeResponse(deleted=len(gone))
        for some in self._pace.chunks(gone):
            for key, stored in some:
                if request.prev_kv and not run.cut:
                    response.prev_kvs.append(to_message(key, decode_row(stored)))
                    run.answers(len(key) + len(response.prev_kvs[-1].value))
                self._delete(key, stored, revision)
        response.header.revision = revision if gone else revision - 1
        return response

    def _delete(self, key: bytes, stored: bytes, revision: int) -> None:
        self._txn.delete(KV, key)
        if lease := lease_of(stored):
            self.leases.move(key, lease, 0)
        self._record(revision, DELETE, key, b"", stored)

    def _take(self, path: Path, run: "_Run") -> TxnResponse:
        """Do the operations of a path."""
        response = path.empty_response()
        for op, nested in path.ops:
            reply = response.responses.add()
            match op.WhichOneof("request"):
                case "request_put":
                    run.changed = True
                    reply.response_put.CopyFrom(self._put(op.request_put, run.revision))
                case "request_delete_range":
                    deleted = self._delete_range(op.request_delete_range, run)
                    run.changed = run.changed or deleted.deleted > 0
                    deleted.header.revision = run.seen
                    reply.response_delete_range.CopyFrom(deleted)
                case "request_range":
                    named = op.request_range.revision > 0
                    found = next(run.pinned) if named else self._range(op.request_range, run)
                    found.header.revision = run.seen
                    reply.response_range.CopyFrom(found)
                case "request_txn":
                    assert nested is not None
                    reply.response_txn.CopyFrom(self._take(nested, run))
                case None:
                    raise AssertionError("an empty operation passed the door")
        return response


@dataclass
class _Run:
    """How far a transaction has come, nested ones included."""

    revision: int
    """Of all changes it makes."""
    room: int
    """Bytes that are left of what is worth answering."""
    pinned: Iterator[RangeResponse] = field(default_factory=lambda: iter(()))
    """Replies to the ranges of the path that name a revision, in order."""
    changed: bool = False

    @property
    def cut(self) -> bool:
        """The answer is not whole: it is larger than what is worth having."""
        return self.room <= 0

    def answers(self, size: int) -> None:
        """The answer takes at least so many bytes more."""
        self.room -= size

    @property
    def seen(self) -> int:
        """Revision of what the next operation sees."""
        return self.revision if self.changed else self.revision - 1


def read_txn(
    txn: ReadTxn, request: TxnRequest, budget: Budget
) -> Generator[None, None, TxnResponse]:
    """A transaction that only reads, without the log, some keys at a time.

    Yields:
        Now and then, as it goes on.

    Returns:
        Its response.
    """
    revision = current_revision(txn)
    path = yield from choose_path(txn, request, budget)
    check_ranges(txn, path, revision)
    response = yield from _read_path(txn, path, revision, budget)
    response.header.revision = revision
    return response


def _read_path(
    txn: ReadTxn, path: Path, revision: int, budget: Budget
) -> Generator[None, None, TxnResponse]:
    response = path.empty_response()
    for op, nested in path.ops:
        reply = response.responses.add()
        if nested is not None:
            inner = yield from _read_path(txn, nested, revision, budget)
            reply.response_txn.CopyFrom(inner)
        else:
            found = yield from read_range(txn, op.request_range, revision, budget)
            reply.response_range.CopyFrom(found)
            yield
    return response


def _replace(request: PutRequest, before: Row | None, revision: int) -> tuple[Row, PutResponse]:
    """The new row of a key, and what the client is told."""
    if before is None:
        row = Row(revision, revision, 1, request.lease, request.value)
    else:
        row = Row(
            before.create_revision, revision, before.version + 1,
            before.lease if request.ignore_lease else request.lease,
            before.value if request.ignore_value else request.value,
        )  # fmt: skip
    response = PutResponse()
    response.header.revision = revision
    if request.prev_kv and before is not None:
        response.prev_kv.CopyFrom(to_message(request.key, before))
    return row, response
