"""The error catalogue: each error has one gRPC code and one fixed text, etcd's where it has one.

Clients match on the text (Go's rpctypes and its imitations), so a text is part of the wire
contract.
"""

from typing import Final, NamedTuple

from grpc import StatusCode

from kvserver import errors


class Status(NamedTuple):
    """How an error is answered."""

    code: StatusCode
    text: str


NOT_ACTIVE_TEXT: Final = "there is no connection available"
"""On this text official clients try another endpoint, with writes too: nothing was done."""

STOPPED: Final = Status(StatusCode.UNAVAILABLE, "etcdserver: server stopped")
"""To the read that found this node's disk damaged; other endpoints may do better."""

CATALOGUE: Final[dict[type[errors.RequestError], Status]] = {
    errors.NotActiveError: Status(StatusCode.UNAVAILABLE, NOT_ACTIVE_TEXT),
    errors.OutcomeUnknownError: Status(
        StatusCode.UNAVAILABLE,
        "etcdserver: request timed out, possibly due to previous leader failure",
    ),
    errors.TooManyRequestsError: Status(
        StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"
    ),
    errors.NoSpaceError: Status(
        StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"
    ),
    errors.CorruptClusterError: Status(StatusCode.DATA_LOSS, "etcdserver: corrupt cluster"),
    errors.UnverifiedError: Status(
        StatusCode.UNAVAILABLE,
        "kvserver: this node has not verified its data yet; ask another one, or again in a while",
    ),
    errors.EmptyKeyError: Status(StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    errors.KeyTooLongError: Status(
        StatusCode.INVALID_ARGUMENT, "kvserver: key is longer than 480 bytes"
    ),
    errors.KeyNotFoundError: Status(StatusCode.INVALID_ARGUMENT, "etcdserver: key not found"),
    errors.ValueProvidedError: Status(StatusCode.INVALID_ARGUMENT, "etcdserver: value is provided"),
    errors.LeaseProvidedError: Status(StatusCode.INVALID_ARGUMENT, "etcdserver: lease is provided"),
    errors.LeaseNotFoundError: Status(
        StatusCode.NOT_FOUND, "etcdserver: requested lease not found"
    ),
    errors.LeaseExistsError: Status(
        StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists"
    ),
    errors.LeaseTtlTooLargeError: Status(
        StatusCode.OUT_OF_RANGE, "etcdserver: too large lease TTL"
    ),
    errors.TooManyOpsError: Status(
        StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"
    ),
    errors.DuplicateKeyError: Status(
        StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"
    ),
    errors.InvalidSortOptionError: Status(
        StatusCode.INVALID_ARGUMENT, "etcdserver: invalid sort option"
    ),
    errors.RequestTooLargeError: Status(
        StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large"
    ),
    errors.MemberNotFoundError: Status(StatusCode.NOT_FOUND, "etcdserver: member not found"),
    errors.MemberExistsError: Status(
        StatusCode.FAILED_PRECONDITION, "etcdserver: member ID already exist"
    ),
    errors.PeerUrlExistsError: Status(
        StatusCode.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"
    ),
    errors.PeerUrlInvalidError: Status(
        StatusCode.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid"
    ),
    errors.TooManyLearnersError: Status(
        StatusCode.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster"
    ),
    errors.NotLearnerError: Status(
        StatusCode.FAILED_PRECONDITION, "etcdserver: can only promote a learner member"
    ),
    errors.LearnerNotReadyError: Status(
        StatusCode.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
    ),
    errors.NotEnoughMembersError: Status(
        StatusCode.FAILED_PRECONDITION,
        "etcdserver: re-configuration failed due to not enough started members",
    ),
    errors.BadTransfereeError: Status(
        StatusCode.FAILED_PRECONDITION, "etcdserver: bad leader transferee"
    ),
    errors.NotLeaderError: Status(StatusCode.FAILED_PRECONDITION, "etcdserver: not leader"),
    errors.SnapshotFailedError: Status(
        StatusCode.INTERNAL,
        "kvserver: the snapshot could not be made: the log of the node says why",
    ),
    errors.DefragmentFailedError: Status(
        StatusCode.INTERNAL,
        "kvserver: not defragmented, all is as before: the log of the node says why",
    ),
    errors.NotCapableError: Status(StatusCode.FAILED_PRECONDITION, "etcdserver: not capable"),
    errors.CompactedError: Status(
        StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
    ),
    errors.FutureRevisionError: Status(
        StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"
    ),
    errors.AuthNotEnabledError: Status(
        StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled"
    ),
    errors.WriteIdError: Status(
        StatusCode.INVALID_ARGUMENT, "kvserver: kv-write-id-bin is no valid write id"
    ),
    errors.SessionNotFoundError: Status(StatusCode.NOT_FOUND, "kvserver: session not found"),
    errors.WriteForgottenError: Status(
        StatusCode.FAILED_PRECONDITION, "kvserver: the client is done with this write"
    ),
    errors.WindowFullError: Status(
        StatusCode.RESOURCE_EXHAUSTED, "kvserver: too many writes of the session are under way"
    ),
    errors.WriteIdReusedError: Status(
        StatusCode.INVALID_ARGUMENT, "kvserver: another write of the session has this number"
    ),
    errors.WriteTooExpensiveError: Status(
        StatusCode.INVALID_ARGUMENT,
        "kvserver: a write may look at 20000 keys in its compares, ranges and deletions with "
        "prev_kv, and answer with 16 MiB: read before it, or name fewer keys",
    ),
    errors.ResponseTooLargeError: Status(
        StatusCode.RESOURCE_EXHAUSTED,
        "kvserver: the answer would be larger than 64 MiB: set a limit, go on from the last key",
    ),
    errors.AnswerTooLargeError: Status(
        StatusCode.FAILED_PRECONDITION,
        "kvserver: the write was applied, but its answer was too large to be kept",
    ),
}


def status_of(error: errors.RequestError) -> Status:
    """Code and text of an error."""
    return CATALOGUE[type(error)]
