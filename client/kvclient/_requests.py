"""What callers ask, turned into the messages of the wire: pure, and the same for both clients."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kvclient._models import Alarm
from kvpb import rpc_pb2

Text = str | bytes
"""A key or a value: bytes, or text that is sent as UTF-8."""

Order = Literal["ascend", "descend"]
SortBy = Literal["key", "version", "create", "mod", "value"]
Relation = Literal["==", "!=", "<", ">"]

# As a range's end it means "to the last key"; as its start, the first key there can be.
_OPEN = b"\0"

_ORDERS: dict[Order, rpc_pb2.RangeRequest.SortOrder.ValueType] = {
    "ascend": rpc_pb2.RangeRequest.ASCEND,
    "descend": rpc_pb2.RangeRequest.DESCEND,
}
_SORT_BY: dict[SortBy, rpc_pb2.RangeRequest.SortTarget.ValueType] = {
    "key": rpc_pb2.RangeRequest.KEY,
    "version": rpc_pb2.RangeRequest.VERSION,
    "create": rpc_pb2.RangeRequest.CREATE,
    "mod": rpc_pb2.RangeRequest.MOD,
    "value": rpc_pb2.RangeRequest.VALUE,
}
_RELATIONS: dict[Relation, rpc_pb2.Compare.CompareResult.ValueType] = {
    "==": rpc_pb2.Compare.EQUAL,
    "!=": rpc_pb2.Compare.NOT_EQUAL,
    "<": rpc_pb2.Compare.LESS,
    ">": rpc_pb2.Compare.GREATER,
}


def as_bytes(text: Text) -> bytes:
    """Bytes as they are, text as UTF-8."""
    return text.encode() if isinstance(text, str) else text


def prefix_end(prefix: bytes) -> bytes:
    """End of the range of all keys that begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else _OPEN


def span(key: Text, range_end: Text | None, *, prefix: bool) -> tuple[bytes, bytes]:
    """First key and end of a range as the wire wants them; an empty end means the key alone."""
    first, end = as_bytes(key), b"" if range_end is None else as_bytes(range_end)
    if prefix:
        if range_end is not None:
            raise ValueError("give either range_end or prefix")
        end = prefix_end(first)
    # No key is empty, so the first possible one stands for the beginning of an open range.
    return (first or _OPEN) if end else first, end


def put_request(key: Text, value: Text, *, lease: int, prev_kv: bool) -> rpc_pb2.PutRequest:
    """A put."""
    return rpc_pb2.PutRequest(
        key=as_bytes(key), value=as_bytes(value), lease=lease, prev_kv=prev_kv
    )


def range_request(  # noqa: PLR0913 - as many as the request has fields
    key: Text,
    range_end: Text | None = None,
    *,
    prefix: bool = False,
    limit: int = 0,
    order: Order | None = None,
    sort_by: SortBy = "key",
    keys_only: bool = False,
    count_only: bool = False,
    revision: int = 0,
    serializable: bool = False,
) -> rpc_pb2.RangeRequest:
    """A read of one key or of a range."""
    first, end = span(key, range_end, prefix=prefix)
    return rpc_pb2.RangeRequest(
        key=first,
        range_end=end,
        limit=limit,
        revision=revision,
        sort_order=_ORDERS[order] if order else rpc_pb2.RangeRequest.NONE,
        sort_target=_SORT_BY[sort_by],
        serializable=serializable,
        keys_only=keys_only,
        count_only=count_only,
    )


def delete_request(
    key: Text, range_end: Text | None = None, *, prefix: bool = False, prev_kv: bool = False
) -> rpc_pb2.DeleteRangeRequest:
    """A delete of one key or of a range."""
    first, end = span(key, range_end, prefix=prefix)
    return rpc_pb2.DeleteRangeRequest(key=first, range_end=end, prev_kv=prev_kv)


@dataclass(frozen=True)
class Compare:
    """One condition of a transaction; a key that does not exist has 0 for every number."""

    message: rpc_pb2.Compare

    @classmethod
    def create_revision(cls, key: Text, relation: Relation, revision: int) -> "Compare":
        """Compare the revision at which the key was created; `== 0`: it does not exist."""
        target = rpc_pb2.Compare.CREATE
        return cls(_compare(key, relation, target, rpc_pb2.Compare(create_revision=revision)))

    @classmethod
    def mod_revision(cls, key: Text, relation: Relation, revision: int) -> "Compare":
        """Compare the revision of the latest change."""
        target = rpc_pb2.Compare.MOD
        return cls(_compare(key, relation, target, rpc_pb2.Compare(mod_revision=revision)))

    @classmethod
    def version(cls, key: Text, relation: Relation, version: int) -> "Compare":
        """Compare the number of changes since the key was created."""
        target = rpc_pb2.Compare.VERSION
        return cls(_compare(key, relation, target, rpc_pb2.Compare(version=version)))

    @classmethod
    def value(cls, key: Text, relation: Relation, value: Text) -> "Compare":
        """Compare the value; false for a key that does not exist, whatever the relation."""
        target = rpc_pb2.Compare.VALUE
        return cls(_compare(key, relation, target, rpc_pb2.Compare(value=as_bytes(value))))

    @classmethod
    def lease(cls, key: Text, relation: Relation, lease: int) -> "Compare":
        """Compare the lease that the key vanishes with."""
        target = rpc_pb2.Compare.LEASE
        return cls(_compare(key, relation, target, rpc_pb2.Compare(lease=lease)))


def _compare(
    key: Text,
    relation: Relation,
    target: rpc_pb2.Compare.CompareTarget.ValueType,
    operand: rpc_pb2.Compare,
) -> rpc_pb2.Compare:
    operand.MergeFrom(
        rpc_pb2.Compare(key=as_bytes(key), result=_RELATIONS[relation], target=target)
    )
    return operand


@dataclass(frozen=True)
class Op:
    """One operation of a transaction."""

    message: rpc_pb2.RequestOp

    @classmethod
    def put(cls, key: Text, value: Text, *, lease: int = 0, prev_kv: bool = False) -> "Op":
        """Put a key; answered by a `PutResult`."""
        request = put_request(key, value, lease=lease, prev_kv=prev_kv)
        return cls(rpc_pb2.RequestOp(request_put=request))

    @classmethod
    def range(
        cls,
        key: Text,
        range_end: Text | None = None,
        *,
        prefix: bool = False,
        limit: int = 0,
        keys_only: bool = False,
    ) -> "Op":
        """Read a key or a range; answered by a `RangeResult`."""
        request = range_request(key, range_end, prefix=prefix, limit=limit, keys_only=keys_only)
        return cls(rpc_pb2.RequestOp(request_range=request))

    @classmethod
    def delete(
        cls,
        key: Text,
        range_end: Text | None = None,
        *,
        prefix: bool = False,
        prev_kv: bool = False,
    ) -> "Op":
        """Delete a key or a range; answered by a `DeleteResult`."""
        request = delete_request(key, range_end, prefix=prefix, prev_kv=prev_kv)
        return cls(rpc_pb2.RequestOp(request_delete_range=request))

    @classmethod
    def txn(
        cls, compares: Iterable[Compare], success: Iterable["Op"], failure: Iterable["Op"] = ()
    ) -> "Op":
        """A transaction within; answered by a `TxnResult`."""
        return cls(rpc_pb2.RequestOp(request_txn=txn_request(compares, success, failure)))


def txn_request(
    compares: Iterable[Compare], success: Iterable[Op], failure: Iterable[Op]
) -> rpc_pb2.TxnRequest:
    """A transaction."""
    return rpc_pb2.TxnRequest(
        compare=[compare.message for compare in compares],
        success=[op.message for op in success],
        failure=[op.message for op in failure],
    )


def is_write(txn: rpc_pb2.TxnRequest) -> bool:
    """Whether a transaction can change anything, whichever branches are taken."""
    return any(
        is_write(op.request_txn) if op.HasField("request_txn") else not op.HasField("request_range")
        for op in (*txn.success, *txn.failure)
    )


def member_add_request(peer_url: str, *, learner: bool) -> rpc_pb2.MemberAddRequest:
    """A new member."""
    return rpc_pb2.MemberAddRequest(peerURLs=[_peer_url(peer_url)], isLearner=learner)


def member_update_request(member_id: int, peer_url: str) -> rpc_pb2.MemberUpdateRequest:
    """Another address of a member."""
    return rpc_pb2.MemberUpdateRequest(ID=member_id, peerURLs=[_peer_url(peer_url)])


def _peer_url(text: str) -> str:
    """A URL as it is, host:port as a URL; whether it can be reached only the cluster knows."""
    return text if "://" in text else f"http://{text}"


def disarm_request(alarm: Alarm) -> rpc_pb2.AlarmRequest:
    """What disarms an alarm."""
    return rpc_pb2.AlarmRequest(
        action=rpc_pb2.AlarmRequest.DEACTIVATE,
        memberID=alarm.member_id,
        alarm=rpc_pb2.AlarmType.Value(alarm.kind),
    )
