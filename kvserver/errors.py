"""What can go wrong, as types. `api/status.py` gives each its gRPC code and text.

Two families: a `RequestError` is the client's or the cluster's doing and is answered; a
`NodeError` is the operator's or the disk's and ends the process with its `exit_code`. Anything else
that is raised is a programmer's error and ends the process too.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar, Final


class ExitCode(IntEnum):
    """How the process ends; documented in README.md."""

    OK = 0
    CRASHED = 1
    """A programmer's error: the log holds the traceback."""
    USAGE = 2
    """An option, environment variable or config file is wrong."""
    DATA_DIR = 3
    """The data directory is unreadable, foreign, damaged, or in use by another process.

    Damage in the mapped file can also end the process by SIGABRT, SIGBUS or SIGSEGV.
    """
    ADDRESS = 4
    """A listen address can't be bound."""
    DISK = 5
    """Writing to the disk failed, or the system was short of files or memory; nothing acknowledged
    is lost. Only with --no-restart."""
    STUCK = 6
    """A thread made no progress for too long; stacks of all threads are in the log."""
    LOG_NOT_UNDERSTOOD = 7
    """The log holds a command of a newer version; start that version."""


class NodeError(Exception):
    """Ends the node with a sentence for the operator."""

    exit_code: ClassVar[ExitCode] = ExitCode.CRASHED


class UsageError(NodeError):
    """An option is wrong; the sentence names it."""

    exit_code = ExitCode.USAGE


class DataDirError(NodeError):
    """The data directory can't be used; the sentence says what to do."""

    exit_code = ExitCode.DATA_DIR


class AccessError(NodeError):
    """The data directory can't be used by this process, though it may be sound."""

    exit_code = ExitCode.DATA_DIR


class AddressError(NodeError):
    """A listen address can't be bound."""

    exit_code = ExitCode.ADDRESS


class DiskError(NodeError):
    """A write or sync failed. What was held back is dropped; the node starts over from disk."""

    exit_code = ExitCode.DISK


class DamagedError(DataDirError):
    """The disk does not hold what was written to it."""


class ShortageError(DiskError):
    """The system has no file or no memory left for this process, which may pass."""


class StuckError(NodeError):
    """A thread makes no progress."""

    exit_code = ExitCode.STUCK


class StoppedError(NodeError):
    """Told to stop while it waited to be taken in."""

    exit_code = ExitCode.OK


class LostDiskError(NodeError):
    """The cluster knows an older data directory of this member: it must join as a new one."""


class LogNotUnderstoodError(NodeError):
    """A committed entry has a format or a command that this version does not know."""

    exit_code = ExitCode.LOG_NOT_UNDERSTOOD


class RequestError(Exception):
    """Answered to the client; the node goes on."""


class NotActiveError(RequestError):
    """This node is not the active and did nothing: safe to retry elsewhere, writes too."""


class OutcomeUnknownError(RequestError):
    """The write may or may not be applied, now or later."""


class TooManyRequestsError(RequestError):
    """A limit at the door is reached; nothing was done, or a snapshot is broken off."""


class NoSpaceError(RequestError):
    """The state takes more than the quota; what makes room is always done."""


class CorruptClusterError(RequestError):
    """The state of this node is not to be trusted, and there is none that is."""


class EmptyKeyError(RequestError):
    """A request without a key."""


class KeyTooLongError(RequestError):
    """A key above 480 bytes: what the storage engine can order."""


class KeyNotFoundError(RequestError):
    """ignore_value or ignore_lease on a key that does not exist."""


class ValueProvidedError(RequestError):
    """ignore_value together with a value."""


class LeaseProvidedError(RequestError):
    """ignore_lease together with a lease."""


class LeaseNotFoundError(RequestError):
    """The lease does not exist."""


class LeaseExistsError(RequestError):
    """A lease has this id already."""


class LeaseTtlTooLargeError(RequestError):
    """More seconds than a lease may live."""


class TooManyOpsError(RequestError):
    """More than 128 operations in a transaction."""


class DuplicateKeyError(RequestError):
    """One branch of a transaction changes a key twice."""


class InvalidSortOptionError(RequestError):
    """Unknown sort order or target."""


class RequestTooLargeError(RequestError):
    """A request above the limit."""


class MemberNotFoundError(RequestError):
    """No member has this id."""


class MemberExistsError(RequestError):
    """A member with this id is there already."""


class PeerUrlExistsError(RequestError):
    """Another member has this peer URL."""


class PeerUrlInvalidError(RequestError):
    """Not exactly one URL of the form http://host:port."""


class TooManyLearnersError(RequestError):
    """One learner at a time."""


class NotLearnerError(RequestError):
    """Only a learner can be promoted."""


class LearnerNotReadyError(RequestError):
    """The learner lacks too much of the log to be promoted."""


class NotEnoughMembersError(RequestError):
    """The change would leave too few running members for a quorum."""


class BadTransfereeError(RequestError):
    """Leadership can't go to this member."""


class NotLeaderError(RequestError):
    """Only the active can do this."""


class SnapshotFailedError(RequestError):
    """A copy of the state could not be made; the log says why."""


class UnverifiedError(RequestError):
    """The state of this node was not read whole since it came back: no copy of it is given away."""


class DefragmentFailedError(RequestError):
    """A compact copy could not be made, or did not catch up; the log says why."""


class NotCapableError(RequestError):
    """Not all members are new enough for this yet."""


class CompactedError(RequestError):
    """A revision older than what is kept."""


class FutureRevisionError(RequestError):
    """A revision that does not exist yet."""


class AuthNotEnabledError(RequestError):
    """There are no users."""


class WriteIdError(RequestError):
    """The metadata that name a write are none of ours."""


class SessionNotFoundError(RequestError):
    """The session of a write has ended, or never was; this attempt changed nothing."""


class WriteForgottenError(RequestError):
    """The client has said that it will not send this write again."""


class WindowFullError(RequestError):
    """More writes of a session are under way than answers are kept."""


class WriteIdReusedError(RequestError):
    """Another write of the session has this number."""


class AnswerTooLargeError(RequestError):
    """The write was applied when it was sent before; its answer was too large to be kept."""


class WriteTooExpensiveError(RequestError):
    """The write would look at, or answer with, more than one may; nothing changed."""


class ResponseTooLargeError(RequestError):
    """The answer to a read would be larger than one may be."""


ERROR_NUMBERS: Final[Mapping[int, type[RequestError]]] = {
    1: KeyNotFoundError,
    2: LeaseNotFoundError,
    3: CompactedError,
    4: FutureRevisionError,
    5: LeaseExistsError,
    6: WriteTooExpensiveError,
}
"""Errors that applying a command can raise. The numbers are in the replicated state and on
disks: one is never changed, and never given to another error, even if its own is raised no more."""
