"""What calls return: plain frozen data, made from the server's messages and independent of them.

Keys and values are bytes, exactly as stored; a revision counts the store's write transactions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from kvpb import kv_pb2, rpc_pb2


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key with its bookkeeping."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    """Changes since the key was created, from 1."""
    lease: int
    """Lease that the key vanishes with, 0 for none."""


@dataclass(frozen=True, slots=True)
class PutResult:
    """A put that is applied."""

    revision: int
    prev_kv: KeyValue | None
    """What was there before, if asked for and existing."""


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Keys of a range as of one moment."""

    revision: int
    """Revision of the store at that moment."""
    kvs: tuple[KeyValue, ...]
    count: int
    """Keys in the range, whatever the limit."""
    more: bool
    """True when the limit cut keys off."""


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """A delete that is applied."""

    revision: int
    deleted: int
    prev_kvs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class TxnResult:
    """A transaction that is decided and applied; one response per operation of the branch taken."""

    revision: int
    succeeded: bool
    responses: tuple["OpResult", ...]


OpResult = PutResult | RangeResult | DeleteResult | TxnResult


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the cluster as it is configured."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    learner: bool


@dataclass(frozen=True, slots=True)
class MemberAdded:
    """A member that the cluster expects from now on; it has no name before it has started."""

    member: Member
    members: tuple[Member, ...]
    """All members, this one included."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where one node stands, in its own words."""

    cluster_id: int
    member_id: int
    revision: int
    term: int
    leader: int
    """Member that leads as far as this node knows, 0 for none."""
    index: int
    applied_index: int
    db_size_bytes: int
    db_size_in_use_bytes: int
    version: str
    learner: bool
    errors: tuple[str, ...]
    db_size_quota_bytes: int = 0
    """What the size in use may grow to, 0 if the node does not tell."""

    @property
    def active(self) -> bool:
        """True when the node believes that it is the one that serves."""
        return self.leader == self.member_id != 0

    @property
    def unverified(self) -> bool:
        """True while the node reads its data before it serves from it."""
        mark = "kvserver: unverified"
        return any(error.startswith(mark) and "serves nothing" in error for error in self.errors)

    @property
    def disqualified(self) -> bool:
        """True when the node's data was found to differ from that of others: it does not serve."""
        alarm = f"memberID:{self.member_id} alarm:CORRUPT"
        return any(error.strip() == alarm for error in self.errors)


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something is wrong with a member."""

    member_id: int
    kind: str
    """NOSPACE: it has no room for more data. CORRUPT: its copy differs from the others'."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key."""

    deleted: bool
    """False for a put."""
    kv: KeyValue
    """As it is now; of a deleted key there are the key and the revision of its deletion."""
    prev_kv: KeyValue | None
    """What was there before, if asked for, existing, and still kept."""


@dataclass(frozen=True, slots=True)
class HashResult:
    """Hash of all keys and values up to a revision: equal states have equal hashes."""

    member_id: int
    hash: int
    revision: int
    compact_revision: int


def key_value(message: kv_pb2.KeyValue) -> KeyValue:
    """A key as sent."""
    return KeyValue(
        key=message.key,
        value=message.value,
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        version=message.version,
        lease=message.lease,
    )


def event(message: kv_pb2.Event) -> Event:
    """A change as sent."""
    prev_kv = key_value(message.prev_kv) if message.HasField("prev_kv") else None
    return Event(message.type == kv_pb2.Event.DELETE, key_value(message.kv), prev_kv)


def put_result(message: rpc_pb2.PutResponse) -> PutResult:
    """A put's answer as sent."""
    prev_kv = key_value(message.prev_kv) if message.HasField("prev_kv") else None
    return PutResult(message.header.revision, prev_kv)


def range_result(message: rpc_pb2.RangeResponse) -> RangeResult:
    """A range's answer as sent."""
    kvs = tuple(key_value(kv) for kv in message.kvs)
    return RangeResult(message.header.revision, kvs, message.count, message.more)


def delete_result(message: rpc_pb2.DeleteRangeResponse) -> DeleteResult:
    """A delete's answer as sent."""
    prev_kvs = tuple(key_value(kv) for kv in message.prev_kvs)
    return DeleteResult(message.header.revision, message.deleted, prev_kvs)


def txn_result(message: rpc_pb2.TxnResponse) -> TxnResult:
    """A transaction's answer as sent."""
    responses = tuple(_op_result(response) for response in message.responses)
    return TxnResult(message.header.revision, message.succeeded, responses)


def _op_result(message: rpc_pb2.ResponseOp) -> OpResult:
    match message.WhichOneof("response"):
        case "response_put":
            return put_result(message.response_put)
        case "response_range":
            return range_result(message.response_range)
        case "response_delete_range":
            return delete_result(message.response_delete_range)
        case "response_txn":
            return txn_result(message.response_txn)
        case None:
            raise ValueError("the server answered an operation of a transaction with nothing")


def member(message: rpc_pb2.Member) -> Member:
    """A member as sent."""
    return Member(
        id=message.ID,
        name=message.name,
        peer_urls=tuple(message.peerURLs),
        client_urls=tuple(message.clientURLs),
        learner=message.isLearner,
    )


def members(messages: Iterable[rpc_pb2.Member]) -> tuple[Member, ...]:
    """Members as sent."""
    return tuple(member(message) for message in messages)


def member_added(message: rpc_pb2.MemberAddResponse) -> MemberAdded:
    """A new member as sent."""
    return MemberAdded(member(message.member), members(message.members))


def status(message: rpc_pb2.StatusResponse) -> Status:
    """A node's status as sent."""
    return Status(
        cluster_id=message.header.cluster_id,
        member_id=message.header.member_id,
        revision=message.header.revision,
        term=message.raftTerm,
        leader=message.leader,
        index=message.raftIndex,
        applied_index=message.raftAppliedIndex,
        db_size_bytes=message.dbSize,
        db_size_in_use_bytes=message.dbSizeInUse,
        version=message.version,
        learner=message.isLearner,
        errors=tuple(message.errors),
        db_size_quota_bytes=message.dbSizeQuota,
    )


def hash_result(message: rpc_pb2.HashKVResponse) -> HashResult:
    """A hash as sent; releases before 3.6 of etcd name its revision in the header only."""
    revision = message.hash_revision or message.header.revision
    return HashResult(message.header.member_id, message.hash, revision, message.compact_revision)


def term(message: object) -> int:
    """The term in which any answer was given, 0 if it does not say."""
    header: rpc_pb2.ResponseHeader | None = getattr(message, "header", None)
    return 0 if header is None else header.raft_term


def alarms(message: rpc_pb2.AlarmResponse) -> tuple[Alarm, ...]:
    """Alarms as sent."""
    names = rpc_pb2.AlarmType
    return tuple(Alarm(each.memberID, names.Name(each.alarm)) for each in message.alarms)
