"""Reading a range: order, limit, filters, counts, exactly as etcd documents them.

A range is read in steps, so that a large one does not keep its caller's loop from other requests.
"""

from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Final

from kvpb.rpc_pb2 import RangeRequest, RangeResponse
from kvserver.mvcc.budget import STEP_BYTES, STEP_ROWS, Budget
from kvserver.mvcc.history import check_revision, keys_at, row_of_moment
from kvserver.mvcc.interval import bounds
from kvserver.mvcc.keyvalue import Row, decode_row
from kvserver.storage.contract import ReadTxn
from kvserver.storage.schema import KV

Pair = tuple[bytes, Row]

SHRINK_FROM: Final = 64
"""Pairs that wait, from which on those that a limit leaves out are let go."""

_SORT_KEYS: Final[dict[RangeRequest.SortTarget.ValueType, Callable[[Pair], int | bytes]]] = {
    RangeRequest.KEY: lambda pair: pair[0],
    RangeRequest.VERSION: lambda pair: pair[1].version,
    RangeRequest.CREATE: lambda pair: pair[1].create_revision,
    RangeRequest.MOD: lambda pair: pair[1].mod_revision,
    RangeRequest.VALUE: lambda pair: pair[1].value,
}


class RangeBuilder:
    """Builds one reply, some keys at a time.

    A pair becomes a message once, in its place in the reply; those that are sorted or filtered
    wait as rows.
    """

    def __init__(
        self, txn: ReadTxn, request: RangeRequest, revision: int, budget: Budget | None = None
    ) -> None:
        """Read `request` from `txn`, whose current revision is `revision`.

        Raises:
            FutureRevisionError, CompactedError: the revision it names can't be read.
        """
        check_revision(txn, request.revision, revision)
        self.response = RangeResponse()
        self.response.header.revision = revision
        self._request = request
        self._txn = txn
        self._budget = budget or Budget()
        interval = bounds(request.key, request.range_end)
        self._fetch_max = 0 if request.count_only else _fetch_max(request)
        """Key-value pairs to fetch, in key order; None for all."""
        self._at_once = _in_key_order(request) and not _filtered(request)
        self._waiting: list[Pair] = []
        """Pairs that are answered only when all are known."""
        self._fetched = 0
        self._step_bytes = 0
        self._passed = 0
        """Of these, that the filters let through."""
        self._count = 0
        past = 0 < request.revision < revision
        self._work = self._read_past(*interval) if past else self._read(*interval)

    def step(self, keys_max: int) -> bool:
        """Read up to `keys_max` more keys, fewer large ones; True once `response` is complete.

        Raises:
            RequestError: that of the budget, if it is used up.
        """
        self._step_bytes = 0
        for seen, _ in enumerate(self._work, 1):
            if seen == keys_max or self._step_bytes >= STEP_BYTES:
                return False
        self._finish()
        return True

    def _read(self, lo: bytes, hi: bytes | None) -> Iterator[None]:
        """Take one key after the other; values of those that are only counted are not touched."""
        if self._fetch_max != 0:
            key = lo
            for key, stored in islice(self._txn.scan(KV, lo, hi), self._fetch_max):
                self._budget.visit(len(stored))
                self._count += 1
                self._take(key, decode_row(stored))
                yield
            if self._fetched != self._fetch_max:
                return
            lo = key + b"\0"
        for _ in self._txn.keys(KV, lo, hi):
            self._budget.visit()
            self._count += 1
            yield

    def _read_past(self, lo: bytes, hi: bytes | None) -> Iterator[None]:
        """As they were then; a key that was not there costs as much as one that was.

        But only those that were there count in the budget. How many others there are differs from
        node to node, as each removes what is compacted at its own pace; and a write is refused by
        all members, or by none.
        """
        for key, moment in keys_at(self._txn, lo, hi, self._request.revision):
            if moment is not None:
                self._count += 1
                if self._fetch_max is None or self._fetched < self._fetch_max:
                    row = row_of_moment(self._txn, key, moment)
                    self._budget.visit(len(row.value))
                    self._take(key, row)
                else:
                    self._budget.visit()
            yield

    def _take(self, key: bytes, row: Row) -> None:
        self._fetched += 1
        self._step_bytes += len(row.value)
        if not _passes(self._request, row):
            return
        self._passed += 1
        left_out = self._request.keys_only and self._at_once
        self._budget.hold(len(key) + (0 if left_out else len(row.value)))
        if self._at_once:
            self._answer(key, row)
        else:
            self._waiting.append((key, row))
            if 0 < 2 * self._request.limit <= len(self._waiting) >= SHRINK_FROM:
                self._shrink()

    def _shrink(self) -> None:
        """Let go of pairs that the limit leaves out whatever comes: pairs come in key order."""
        limit = self._request.limit
        self._sort()
        for key, row in self._waiting[limit:]:
            self._budget.hold(-len(key) - len(row.value))
        del self._waiting[limit:]

    def _sort(self) -> None:
        request = self._request
        if not _in_key_order(request):
            descend = request.sort_order == RangeRequest.DESCEND  # a target alone ascends
            self._waiting.sort(key=_SORT_KEYS[request.sort_target], reverse=descend)

    def _answer(self, key: bytes, row: Row) -> None:
        create, mod, version, lease, value = row
        self.response.kvs.add(
            key=key, create_revision=create, mod_revision=mod, version=version, lease=lease,
            value=b"" if self._request.keys_only else value,
        )  # fmt: skip

    def _finish(self) -> None:
        request, response = self._request, self.response
        response.count = available = self._count
        if request.count_only:
            return
        if _filtered(request):
            available = self._passed
        self._sort()
        for key, row in self._waiting[: request.limit if request.limit > 0 else None]:
            self._answer(key, row)
        response.more = 0 < request.limit < available


def read_range(
    txn: ReadTxn, request: RangeRequest, revision: int, budget: Budget | None = None
) -> Generator[None, None, RangeResponse]:
    """Read a range, some keys at a time.

    Yields:
        Now and then, as it goes on.

    Returns:
        The reply.
    """
    builder = RangeBuilder(txn, request, revision, budget)
    while not builder.step(STEP_ROWS):
        yield
    return builder.response


def _fetch_max(request: RangeRequest) -> int | None:
    """How many pairs a limited reply is made of; None if it takes all to know.

    A sort target without an order sorts what the limit lets through and one pair more: etcd does.
    """
    if request.limit <= 0 or _filtered(request):
        return None
    if request.sort_target == RangeRequest.KEY:
        return None if request.sort_order == RangeRequest.DESCEND else request.limit
    return request.limit + 1 if request.sort_order == RangeRequest.NONE else None


def _in_key_order(request: RangeRequest) -> bool:
    return request.sort_target == RangeRequest.KEY and request.sort_order != RangeRequest.DESCEND


def _filtered(request: RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def _passes(request: RangeRequest, kv: Row) -> bool:
    """True if the revisions of a row are within the request's inclusive bounds, 0 meaning none."""
    return (
        (not request.min_mod_revision or kv.mod_revision >= request.min_mod_revision)
        and (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and (not request.min_create_revision or kv.create_revision >= request.min_create_revision)
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
    )
