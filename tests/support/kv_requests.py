"""Key-value requests as hypothesis draws them: valid and not, nested, with every option.

Revisions are drawn small, counted from the start of a sequence; `absolute` shifts them.
"""

from collections.abc import Iterator
from typing import cast

from google.protobuf.message import Message
from hypothesis import assume
from hypothesis import strategies as st

from kvpb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
)

Request = PutRequest | RangeRequest | DeleteRangeRequest | TxnRequest | CompactionRequest
Reply = PutResponse | RangeResponse | DeleteRangeResponse | TxnResponse | CompactionResponse

# Six keys: from the seventh on, etcd's order of equal sort keys is arbitrary.
KEYS = (b"a", b"ab", b"b", b"b\0", b"\0", b"\xff")


def _stretched(drawn: bytes) -> bytes:
    """Long ones are drawn short: hypothesis prints what it draws from."""
    return {b"K": b"k" * 600, b"X": b"x" * 3000}.get(drawn, drawn)


keys = st.sampled_from(KEYS)
put_keys = st.sampled_from([*KEYS, *KEYS, *KEYS, b""])
any_key = st.sampled_from([*KEYS, *KEYS, b"", b"aa", b"z", b"\0\0", b"\xff\xff", b"K"]).map(
    _stretched
)
ends = st.sampled_from([b"", b"\0", b"", b"\0", *KEYS, b"aa", b"ac", b"d", b"\xff\xff\xff"])
values = st.sampled_from([b"", b"1", b"2", b"10", b"\0", b"\xff", b"X"]).map(_stretched)
flags = st.booleans()
rarely = st.integers(0, 9).map(lambda drawn: drawn == 9)
numbers = st.integers(-1, 4)
FROM_START = 100
"""A `revision` above this counts from the start of the sequence, below from the current one."""

revisions = st.integers(-1, 16)
"""0 and below mean none or nonsense, 1 the revision at the start of the sequence."""
past = st.integers(FROM_START + 1, FROM_START + 16)
leases = st.one_of(*[st.just(0)] * 9, st.sampled_from([1, -1, 1 << 62]))


def optional(fraction_of: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    """Mostly 0, which is the same as not given."""
    return st.one_of(st.just(0), st.just(0), st.just(0), fraction_of)


puts = st.builds(
    PutRequest, key=put_keys, value=values, lease=leases, prev_kv=flags, ignore_value=rarely,
    ignore_lease=rarely,
)  # fmt: skip
careful_puts = st.one_of(
    st.builds(PutRequest, key=keys, ignore_value=st.just(True), prev_kv=flags, lease=leases),
    st.builds(PutRequest, key=keys, value=values, ignore_lease=st.just(True), prev_kv=flags),
)
deletes = st.builds(DeleteRangeRequest, key=any_key, range_end=ends, prev_kv=flags)
ranges = st.builds(
    RangeRequest,
    key=any_key,
    range_end=ends,
    limit=optional(st.integers(-1, 7)),
    revision=st.one_of(st.just(0), st.just(0), st.integers(-1, 3), past),
    sort_order=st.sampled_from(RangeRequest.SortOrder.values()),
    sort_target=st.sampled_from(RangeRequest.SortTarget.values()),
    serializable=flags,
    keys_only=rarely,
    count_only=rarely,
    min_mod_revision=optional(revisions),
    max_mod_revision=optional(revisions),
    min_create_revision=optional(revisions),
    max_create_revision=optional(revisions),
)
wide_ranges = st.builds(
    RangeRequest,
    key=st.just(b"\0"),
    range_end=st.just(b"\0"),
    limit=st.integers(0, 6),
    sort_order=st.sampled_from(RangeRequest.SortOrder.values()),
    sort_target=st.sampled_from(RangeRequest.SortTarget.values()),
    keys_only=rarely,
    min_mod_revision=optional(revisions),
    max_create_revision=optional(revisions),
)

_compared = st.one_of(
    st.builds(Compare, version=numbers),
    st.builds(Compare, create_revision=revisions),
    st.builds(Compare, mod_revision=revisions),
    st.builds(Compare, value=values),
    st.builds(Compare, lease=numbers),
    st.builds(Compare),
)
_TARGETS = {
    "version": Compare.VERSION,
    "create_revision": Compare.CREATE,
    "mod_revision": Compare.MOD,
    "value": Compare.VALUE,
    "lease": Compare.LEASE,
    None: Compare.VALUE,
}
targets = cast("st.SearchStrategy[Compare.CompareTarget.ValueType]", st.integers(0, 6))
results = cast("st.SearchStrategy[Compare.CompareResult.ValueType]", st.integers(0, 5))


@st.composite
def compares(draw: st.DrawFn) -> Compare:
    """Mostly well formed; now and then target and value do not fit, or are unknown."""
    compare: Compare = draw(_compared)
    odd = draw(rarely)
    compare.target = draw(targets) if odd else _TARGETS[compare.WhichOneof("target_union")]
    compare.result = draw(results if odd else st.sampled_from(Compare.CompareResult.values()))
    compare.key = draw(any_key)
    compare.range_end = draw(ends)
    return compare


_leaves = st.one_of(
    st.builds(RequestOp, request_put=puts),
    st.builds(RequestOp, request_put=careful_puts),
    st.builds(RequestOp, request_range=st.one_of(ranges, wide_ranges)),
    st.builds(RequestOp, request_delete_range=deletes),
)


@st.composite
def _ops(draw: st.DrawFn, depth: int) -> RequestOp:
    kind = draw(st.integers(0, 20))
    if depth > 0 and kind >= 12:
        return RequestOp(request_txn=draw(txns(depth - 1)))
    return RequestOp() if kind == 0 else draw(_leaves)


@st.composite
def txns(draw: st.DrawFn, depth: int) -> TxnRequest:
    branch = st.lists(_ops(depth), max_size=3)
    return TxnRequest(
        compare=draw(st.lists(compares(), max_size=2)), success=draw(branch), failure=draw(branch)
    )


def _ops_in(request: TxnRequest) -> Iterator[RequestOp]:
    for op in (*request.success, *request.failure):
        yield op
        yield from _ops_in(op.request_txn)


def ends_etcd(request: TxnRequest) -> bool:
    """True if a put may need a key that the same transaction has deleted: etcd panics on it."""
    return any(op.request_delete_range.range_end == b"\0" for op in _ops_in(request)) and any(
        op.request_put.ignore_value or op.request_put.ignore_lease for op in _ops_in(request)
    )


@st.composite
def safe_txns(draw: st.DrawFn) -> TxnRequest:
    """A transaction that does not end the etcd process."""
    request = draw(txns(draw(st.integers(0, 2))))
    assume(not ends_etcd(request))
    return request


compactions = st.builds(
    CompactionRequest, revision=st.one_of(past, past, st.integers(-1, 2)), physical=flags
)
requests = st.one_of(
    puts, puts, careful_puts, deletes, ranges, wide_ranges, safe_txns(), safe_txns(), compactions
)
fillings = st.lists(st.builds(PutRequest, key=keys, value=values), max_size=9)


def absolute(message: Message, start: int, current: int) -> None:
    """Shift the positive revisions in a request: 1 is `start`, or `current` in a `revision`.

    A `revision` above FROM_START is counted from the start too.
    """
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else (value,):
                absolute(child, start, current)
        elif field.name.endswith("revision") and value > 0:
            if field.name != "revision":
                shifted = value - 1 + start
            elif value > FROM_START:
                shifted = value - FROM_START - 1 + start
            else:
                shifted = value - 1 + current
            setattr(message, field.name, shifted)
