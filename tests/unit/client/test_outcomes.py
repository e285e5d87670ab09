"""What a status means, for writes and for reads."""

import grpc
import pytest
from grpc import StatusCode as Code

from kvclient._outcomes import Failure, LeaderHint, Outcome, given_up, not_connected
from kvclient.errors import BY_TEXT, DeadlineExceeded, ServerError, Unavailable

NOT_ACTIVE = "there is no connection available"
REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
    "Failed to connect to remote host: Connection refused"
)
UNRESOLVED = (
    "errors resolving h:1: [field:hostname lookup error:"
    "address lookup failed for h:1: Domain name not found]"
)


def failure(
    code: grpc.StatusCode, details: str = "", trailers: dict[str, str | bytes] | None = None
) -> Failure:
    return Failure(code, details, trailers or {})


@pytest.mark.parametrize(
    ("code", "details", "of_write", "of_read"),
    [
        (Code.UNAVAILABLE, NOT_ACTIVE, Outcome.NOT_ACTIVE, Outcome.NOT_ACTIVE),
        (Code.UNAVAILABLE, REFUSED, Outcome.NEVER_SENT, Outcome.NEVER_SENT),
        (Code.UNAVAILABLE, UNRESOLVED, Outcome.NEVER_SENT, Outcome.NEVER_SENT),
        (Code.UNAVAILABLE, NOT_ACTIVE + ".", Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.UNAVAILABLE, "Socket closed", Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.UNAVAILABLE, "last: " + REFUSED, Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.UNAVAILABLE, "", Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.CANCELLED, NOT_ACTIVE, Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.INTERNAL, REFUSED, Outcome.UNKNOWN, Outcome.DECLINED),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.INTERNAL, "Stream removed (RST_STREAM)", Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.RESOURCE_EXHAUSTED, "Stream removed (x)", Outcome.UNKNOWN, Outcome.NO_ANSWER),
        (Code.ABORTED, "", Outcome.UNKNOWN, Outcome.DECLINED),
        (Code.DATA_LOSS, "", Outcome.UNKNOWN, Outcome.DECLINED),
        (Code.UNKNOWN, "Unexpected", Outcome.UNKNOWN, Outcome.DECLINED),
        (Code.UNKNOWN, "etcdserver: too many requests", Outcome.DECLINED, Outcome.DECLINED),
        (Code.INVALID_ARGUMENT, "etcdserver: new text", Outcome.DECLINED, Outcome.DECLINED),
        (Code.UNIMPLEMENTED, "unknown method", Outcome.DECLINED, Outcome.DECLINED),
    ],
)
def test_outcome(code: grpc.StatusCode, details: str, of_write: Outcome, of_read: Outcome) -> None:
    assert failure(code, details).outcome(write=True) is of_write
    assert failure(code, details).outcome(write=False) is of_read


def test_every_text_of_the_table_is_the_servers_no() -> None:
    for text in BY_TEXT:
        assert failure(Code.UNKNOWN, text).outcome(write=True) is Outcome.DECLINED


def test_only_two_outcomes_let_a_write_be_repeated() -> None:
    """Of all codes with an unknown text, none means for a write that it may be sent again."""
    for code in Code:
        assert failure(code, "?").outcome(write=True) in (Outcome.UNKNOWN, Outcome.DECLINED)


@pytest.mark.parametrize(
    ("trailers", "hint"),
    [
        ({"kv-leader": "h:1", "kv-term": "12"}, LeaderHint("h:1", 12)),
        ({"kv-leader": "h:1"}, None),
        ({"kv-term": "12"}, None),
        ({"kv-leader": "h:1", "kv-term": "-1"}, None),
        ({"kv-leader": "h:1", "kv-term": "²"}, None),
        ({"kv-leader": "h:1", "kv-term": ""}, None),
        ({"kv-leader": b"h:1", "kv-term": "1"}, None),
        ({}, None),
    ],
)
def test_a_hint_needs_address_and_term(
    trailers: dict[str, str | bytes], hint: LeaderHint | None
) -> None:
    assert failure(Code.UNAVAILABLE, NOT_ACTIVE, trailers).hint() == hint


def test_a_failure_is_told_in_few_words() -> None:
    hint: dict[str, str | bytes] = {"kv-leader": "h:1", "kv-term": "12"}
    said = [
        failure(Code.UNAVAILABLE, NOT_ACTIVE, hint).said(),
        failure(Code.UNAVAILABLE, NOT_ACTIVE).said(),
        failure(Code.UNAVAILABLE, REFUSED).said(),
        failure(Code.UNAVAILABLE, UNRESOLVED).said(),
        failure(Code.UNAVAILABLE, "Socket closed").said(),
    ]
    assert said == [
        "a standby of h:1",
        "a standby that knows no active",
        "can't connect: Connection refused",
        "can't connect: Domain name not found",
        "UNAVAILABLE: Socket closed",
    ]


def test_the_error_of_a_single_node() -> None:
    assert isinstance(failure(Code.UNAVAILABLE, REFUSED).of_one("h:1"), Unavailable)
    assert isinstance(failure(Code.DEADLINE_EXCEEDED, "x").of_one("h:1"), DeadlineExceeded)
    assert isinstance(failure(Code.INVALID_ARGUMENT, "x").of_one("h:1"), ServerError)


def test_a_call_that_was_given_up_may_have_been_done() -> None:
    failure = given_up(LeaderHint("h:1", 12))
    assert failure.outcome(write=True) is Outcome.UNKNOWN
    assert failure.outcome(write=False) is Outcome.NO_ANSWER
    assert failure.said() == "given up: h:1 is the active by now, in term 12"


def test_a_call_without_a_connection_was_not_sent() -> None:
    failure = not_connected()
    assert failure.outcome(write=True) is Outcome.NEVER_SENT
    assert failure.outcome(write=False) is Outcome.NEVER_SENT
    assert failure.said() == "can't connect: not connected yet"
