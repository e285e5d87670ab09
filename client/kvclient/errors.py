"""What a call can fail with; a server's text and its class are one table, read in both directions.

Whoever catches `KvError` catches all of it. All classes but `OutcomeUnknown` and `AnswerLost` mean:
nothing changed.
"""

# ruff: noqa: N818 - named after what happened; all of them are errors

from collections.abc import Mapping, Sequence
from typing import ClassVar


class KvError(Exception):
    """Base of everything that the client raises for the cluster's sake."""


class OutcomeUnknown(KvError):
    """The write may be applied, now or later, or not at all: read before repeating it."""

    def __init__(self, what: str, endpoint: str, said: str, check: str = "read the keys") -> None:
        self.endpoint = endpoint
        self.said = said
        super().__init__(
            f"{what} may or may not be applied, since {endpoint} did not answer ({said}); "
            f"{check} before you repeat it"
        )


class AnswerLost(KvError):
    """The write was applied, once. Its answer got lost, and was too large to be kept."""

    text: ClassVar[str] = "kvserver: the write was applied, but its answer was too large to be kept"

    def __init__(self) -> None:
        super().__init__("the write was applied, once, but its answer got lost: read the keys")


class _OutOfTime(KvError):
    """A call that got nowhere; `said` holds the last word of each endpoint that was asked."""

    def __init__(self, sentence: str, said: Sequence[tuple[str, str]]) -> None:
        self.said = tuple(said)
        words = "; ".join(f"{endpoint}: {text}" for endpoint, text in said)
        super().__init__(f"{sentence} ({words})" if words else sentence)


class DeadlineExceeded(_OutOfTime):
    """Time ran out and nothing was changed: raise the timeout, or look why no node is active."""


class Unavailable(_OutOfTime):
    """No endpoint could be reached: check the addresses and whether the nodes run."""


class SnapshotDamaged(KvError):
    """A snapshot did not arrive as it was sent, or not as a whole; nothing of it is kept."""

    def __init__(self) -> None:
        super().__init__("the snapshot arrived damaged or cut off: save it again")


class ServerError(KvError):
    """The server said no and changed nothing. A text of the table has a class of its own."""

    text: ClassVar[str] = ""
    """What the server sends, to the letter."""
    advice: ClassVar[str] = ""

    def __init__(self, code: str, details: str) -> None:
        self.code = code
        self.details = details
        super().__init__(self.advice or f"the server answered {code}: {details}")


class EmptyKey(ServerError):
    """A request without a key."""

    text = "etcdserver: key is not provided"
    advice = "the key is empty: name one"


class KeyTooLong(ServerError):
    """A key above the server's limit."""

    text = "kvserver: key is longer than 480 bytes"
    advice = "the key is longer than 480 bytes: shorten it"


class KeyNotFound(ServerError):
    """An operation that needs an existing key, or an operation of a transaction that is empty."""

    text = "etcdserver: key not found"
    advice = "the key does not exist: put it first"


class ValueProvided(ServerError):
    """A value together with ignore_value."""

    text = "etcdserver: value is provided"
    advice = "a value was given together with ignore_value: leave one of them out"


class LeaseProvided(ServerError):
    """A lease together with ignore_lease."""

    text = "etcdserver: lease is provided"
    advice = "a lease was given together with ignore_lease: leave one of them out"


class TooManyOps(ServerError):
    """A transaction above the server's limit, 128 by default."""

    text = "etcdserver: too many operations in txn request"
    advice = "the transaction has too many operations: split it"


class DuplicateKey(ServerError):
    """One branch of a transaction changes a key twice."""

    text = "etcdserver: duplicate key given in txn request"
    advice = "a branch of the transaction changes a key twice: keep one of the changes"


class InvalidSortOption(ServerError):
    """A sort order or target that the server does not know."""

    text = "etcdserver: invalid sort option"
    advice = "the server does not know this sort option: choose another"


class RequestTooLarge(ServerError):
    """A request above the server's limit, 1.5 MiB by default."""

    text = "etcdserver: request is too large"
    advice = "the request is larger than the server takes: split the value or the transaction"


class WriteTooExpensive(ServerError):
    """A write whose compares, ranges or deletions look at too many keys, or answer too much."""

    text = (
        "kvserver: a write may look at 20000 keys in its compares, ranges and deletions with "
        "prev_kv, and answer with 16 MiB: read before it, or name fewer keys"
    )
    advice = "the write looks at too many keys, or answers too much: read before it, or split it"


class ResponseTooLarge(ServerError):
    """The answer to a read above the server's limit, 64 MiB."""

    text = "kvserver: the answer would be larger than 64 MiB: set a limit, go on from the last key"
    advice = "the answer is larger than 64 MiB: set a limit, and go on from the last key"


class Compacted(ServerError):
    """A revision older than what the server keeps."""

    text = "etcdserver: mvcc: required revision has been compacted"
    advice = "the server no longer keeps this revision: ask for a newer one"


class FutureRevision(ServerError):
    """A revision that does not exist yet."""

    text = "etcdserver: mvcc: required revision is a future revision"
    advice = "this revision does not exist yet: ask for an older one"


class LeaseNotFound(ServerError):
    """The lease does not exist, or no longer."""

    text = "etcdserver: requested lease not found"
    advice = "the lease does not exist or has expired: grant a new one"


class LeaseExists(ServerError):
    """A lease with this id is there already."""

    text = "etcdserver: lease already exists"
    advice = "another lease has this id: choose another one, or none and let the server choose"


class LeaseTtlTooLarge(ServerError):
    """More seconds than a lease may live."""

    text = "etcdserver: too large lease TTL"
    advice = "a lease lives for 9,000,000,000 s at most: ask for less"


class NoSpace(ServerError):
    """The store has reached its quota; deletes and compaction still work."""

    text = "etcdserver: mvcc: database space exceeded"
    advice = "the store has reached its quota: delete keys and compact, or raise it on the nodes"


class TooManyRequests(ServerError):
    """The server is at a limit of its own."""

    text = "etcdserver: too many requests"
    advice = "the server is overloaded: try again later or with fewer calls at once"


class CorruptCluster(ServerError):
    """The nodes found that their copies differ."""

    text = "etcdserver: corrupt cluster"
    advice = "the nodes' copies differ and the cluster refuses to serve: compare them (kv hash)"


class MemberNotFound(ServerError):
    """No member has this id."""

    text = "etcdserver: member not found"
    advice = "there is no member with this id: see kv member list"


class MemberExists(ServerError):
    """A member with this id is there already."""

    text = "etcdserver: member ID already exist"
    advice = "this member is there already: see kv member list"


class PeerUrlExists(ServerError):
    """Another member has this peer URL."""

    text = "etcdserver: Peer URLs already exists"
    advice = "another member has this peer URL: each needs its own"


class PeerUrlInvalid(ServerError):
    """Not one URL of the form http://host:port."""

    text = "etcdserver: given member URLs are invalid"
    advice = "the peer URL is not valid: give one, such as http://10.0.0.4:2380"


class TooManyLearners(ServerError):
    """One learner at a time."""

    text = "etcdserver: too many learner members in cluster"
    advice = "there is a learner already: promote or remove it first"


class NotLearner(ServerError):
    """Only a learner can be promoted."""

    text = "etcdserver: can only promote a learner member"
    advice = "this member votes already: there is nothing to do"


class LearnerNotReady(ServerError):
    """The learner lacks too much of the log."""

    text = "etcdserver: can only promote a learner member which is in sync with leader"
    advice = "the learner is not in step yet: try again in a moment"


class NotEnoughMembers(ServerError):
    """The change would leave too few running members for a quorum."""

    text = "etcdserver: re-configuration failed due to not enough started members"
    advice = "too few members would be running for a quorum: start them first"


class UnhealthyCluster(ServerError):
    """etcd changes no members while one is not connected, or has not been for 5 s."""

    text = "etcdserver: unhealthy cluster"
    advice = "not all members have been connected for 5 s: start them, or try again soon"


class BadTransferee(ServerError):
    """Leadership can't go to this member."""

    text = "etcdserver: bad leader transferee"
    advice = "choose a voter that is running and in step: see kv status"


class NotLeader(ServerError):
    """Only the active can do this."""

    text = "etcdserver: not leader"
    advice = "ask the active: see kv status"


class NotCapable(ServerError):
    """Not all members are new enough for this yet."""

    text = "etcdserver: not capable"
    advice = "some member is of an older version: upgrade it first"


class SnapshotFailed(ServerError):
    """The node could not make the copy that a snapshot is sent from."""

    text = "kvserver: the snapshot could not be made: the log of the node says why"
    advice = "the node could not make a copy: see whether its disk has room, and its log"


class NodeUnverified(ServerError):
    """The node has come back, and gives no snapshot away before it has read its data."""

    text = "kvserver: this node has not verified its data yet; ask another one, or again in a while"
    advice = "the node still verifies its data: ask another one, or again in a while (kv status)"


class DefragmentFailed(ServerError):
    """The node could not make its database smaller; nothing has changed."""

    text = "kvserver: not defragmented, all is as before: the log of the node says why"
    advice = "the node could not make a copy: see whether its disk has room, and its log"


class AuthNotEnabled(ServerError):
    """The cluster has no users."""

    text = "etcdserver: authentication is not enabled"
    advice = "there are no users here: call without a name and a password"


class SessionNotFound(ServerError):
    """The session of a write is not there any more."""

    text = "kvserver: session not found"
    advice = "the session of this write has ended: open another one, as this client does by itself"


class WriteIdInvalid(ServerError):
    """The metadata of a write are not those of this server."""

    text = "kvserver: kv-write-id-bin is no valid write id"
    advice = "the servers read another kind of numbers: take a client of their version"


class WriteForgotten(ServerError):
    """The client has said that it will not send this write again."""

    text = "kvserver: the client is done with this write"
    advice = "a write was sent again after its end: report it as a defect of the client"


class WindowFull(ServerError):
    """More writes of a session are under way than it has room for."""

    text = "kvserver: too many writes of the session are under way"
    advice = "an old write of the session has not ended: wait for it, or open another session"


class WriteIdReused(ServerError):
    """Another write has this number."""

    text = "kvserver: another write of the session has this number"
    advice = "two writes were given one number: report it as a defect of the client"


BY_TEXT: Mapping[str, type[ServerError]] = {
    kind.text: kind
    for kind in (
        EmptyKey,
        KeyTooLong,
        KeyNotFound,
        ValueProvided,
        LeaseProvided,
        TooManyOps,
        WriteTooExpensive,
        ResponseTooLarge,
        DuplicateKey,
        InvalidSortOption,
        RequestTooLarge,
        Compacted,
        FutureRevision,
        LeaseNotFound,
        LeaseExists,
        LeaseTtlTooLarge,
        NoSpace,
        TooManyRequests,
        CorruptCluster,
        MemberNotFound,
        MemberExists,
        PeerUrlExists,
        PeerUrlInvalid,
        TooManyLearners,
        NotLearner,
        LearnerNotReady,
        NotEnoughMembers,
        UnhealthyCluster,
        BadTransferee,
        NotLeader,
        NotCapable,
        NodeUnverified,
        SnapshotFailed,
        DefragmentFailed,
        AuthNotEnabled,
        SessionNotFound,
        WriteIdInvalid,
        WriteForgotten,
        WindowFull,
        WriteIdReused,
    )
}


def server_error(code: str, details: str) -> ServerError:
    """The error of an answer: the class of its text, or plain `ServerError`."""
    if code == "RESOURCE_EXHAUSTED" and "message larger than max" in details:
        return RequestTooLarge(code, details)  # gRPC's own limit, on either side
    return BY_TEXT.get(details, ServerError)(code, details)
