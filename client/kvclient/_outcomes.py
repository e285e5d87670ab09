"""What a failed attempt means: decided from the status alone, so that no write is ever done twice.

Doubt has one direction: a status not known to mean "nothing was done" makes the outcome of a
write unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import grpc

from kvclient.errors import BY_TEXT, DeadlineExceeded, KvError, Unavailable, server_error

NOT_ACTIVE_TEXT = "there is no connection available"

# grpc's own words when a call got no connection, so that nothing can have left this process. Other
# texts ("Socket closed", "Stream removed", "GOAWAY") also come after the request was on the wire.
_NEVER_SENT = ("failed to connect to all addresses", "errors resolving ")

# Our own words, for a call that was ended here.
_GIVEN_UP = "given up: "

# A connection's end, told with whatever code fits the HTTP/2 error.
_BROKEN_OFF = "Stream removed"

# Codes that a server gives on purpose, before it does anything.
_DECLINED = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

# Of these, and of what the table of texts knows, those that depend on when they are given.
_FOR_NOW = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DATA_LOSS})

# Codes on which a read moves on: the endpoint or the way to it failed, not the question.
_ELSEWHERE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


class Outcome(Enum):
    """What is known after an attempt that brought no answer."""

    NOT_ACTIVE = auto()
    """The node is not the active and did nothing: repeat elsewhere, writes too."""
    NEVER_SENT = auto()
    """No connection: repeat elsewhere, writes too."""
    NO_ANSWER = auto()
    """A read without an answer: repeat elsewhere."""
    UNKNOWN = auto()
    """A write that may be applied or not: repeated only with a number."""
    DECLINED = auto()
    """The server said no: the caller's to hear."""


@dataclass(frozen=True)
class Change:
    """A call that may change something, as its errors name it."""

    what: str
    check: str = "read the keys"
    """How to find out what became of it."""


_CHECK_MEMBERS = "list the members"
ADD_MEMBER = Change("the new member", _CHECK_MEMBERS)
REMOVE_MEMBER = Change("the removal of the member", _CHECK_MEMBERS)
UPDATE_MEMBER = Change("the member's new address", _CHECK_MEMBERS)
PROMOTE_MEMBER = Change("the promotion of the member", _CHECK_MEMBERS)


@dataclass(frozen=True)
class LeaderHint:
    """Where a standby says the active is."""

    address: str
    term: int


@dataclass(frozen=True)
class Failure:
    """The status of a failed call."""

    code: grpc.StatusCode
    details: str
    trailers: Mapping[str, str | bytes]

    def outcome(self, *, write: bool) -> Outcome:
        """What this failure means for a call that changes something, or for one that does not."""
        if self.code is grpc.StatusCode.UNAVAILABLE and self.details == NOT_ACTIVE_TEXT:
            return Outcome.NOT_ACTIVE
        if self.code is grpc.StatusCode.UNAVAILABLE and self.details.startswith(_NEVER_SENT):
            return Outcome.NEVER_SENT
        if self._declined(write=write):
            return Outcome.DECLINED
        return Outcome.UNKNOWN if write else Outcome.NO_ANSWER

    def ends_doubt(self) -> bool:
        """Whether a refusal of a numbered write tells that no attempt before was applied.

        Those from the log do, and those of the request itself. Others, of a server at this moment
        or of somebody on the way, speak of this attempt only.
        """
        return self.details in BY_TEXT and self.code not in _FOR_NOW

    def _declined(self, *, write: bool) -> bool:
        if self.details in BY_TEXT:
            return True
        if self.details.startswith(_BROKEN_OFF):
            return False
        return self.code in _DECLINED if write else self.code not in _ELSEWHERE

    def said(self) -> str:
        """The failure in a few words."""
        if self.details == NOT_ACTIVE_TEXT:
            hint = self.hint()
            return f"a standby of {hint.address}" if hint else "a standby that knows no active"
        if self.details.startswith(_NEVER_SENT):
            # grpc tells its whole way down to the cause, which comes last.
            return "can't connect: " + self.details.rpartition(": ")[2].rstrip("]")
        if self.details.startswith(_GIVEN_UP):
            return self.details
        return f"{self.code.name}: {self.details}"

    def of_one(self, address: str) -> KvError:
        """The error of a read that only this endpoint could answer."""
        if self.outcome(write=False) is Outcome.DECLINED:
            return server_error(self.code.name, self.details)
        said = [(address, self.said())]
        if self.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("the node did not answer in time", said)
        return Unavailable("the node could not be asked: check that it runs", said)

    def hint(self) -> LeaderHint | None:
        """Where the active is, if the node said so in full."""
        address, term = self.trailers.get("kv-leader"), self.trailers.get("kv-term")
        if not isinstance(address, str) or not isinstance(term, str):
            return None
        if not term.isascii() or not term.isdecimal():
            return None
        return LeaderHint(address, int(term))


def failure_of(error: BaseException) -> Failure:
    """Read the status of an error that a call of either flavour of grpc has raised."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), repr(error)
    trailers = error.trailing_metadata() or ()
    return Failure(error.code(), error.details() or "", dict(trailers))


def given_up(hint: LeaderHint) -> Failure:
    """The status of a call that was ended here, since another node is the active by now."""
    details = f"{_GIVEN_UP}{hint.address} is the active by now, in term {hint.term}"
    return Failure(grpc.StatusCode.CANCELLED, details, {})


def not_connected() -> Failure:
    """The status of a call that was not begun, since there was no connection to it in time."""
    details = f"{_NEVER_SENT[0]}: not connected yet"
    return Failure(grpc.StatusCode.UNAVAILABLE, details, {})
