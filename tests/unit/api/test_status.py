"""The error catalogue against etcd's table: clients match on the texts."""

import asyncio
from collections.abc import Iterator
from typing import NoReturn

import pytest
from grpc import StatusCode
from support.etcd_errors import CODES, COUNT, ELSEWHERE, NEVER

from kvserver import errors
from kvserver.api.door import Door
from kvserver.api.session import FROM_THE_LOG
from kvserver.api.status import CATALOGUE, NOT_ACTIVE_TEXT, status_of

OURS_ALONE = {
    errors.NotActiveError: "there is no connection available",
    errors.KeyTooLongError: "kvserver: key is longer than 480 bytes",
    errors.DefragmentFailedError: (
        "kvserver: not defragmented, all is as before: the log of the node says why"
    ),
    errors.SnapshotFailedError: (
        "kvserver: the snapshot could not be made: the log of the node says why"
    ),
    errors.UnverifiedError: (
        "kvserver: this node has not verified its data yet; ask another one, or again in a while"
    ),
    errors.WriteIdError: "kvserver: kv-write-id-bin is no valid write id",
    errors.SessionNotFoundError: "kvserver: session not found",
    errors.WriteForgottenError: "kvserver: the client is done with this write",
    errors.WindowFullError: "kvserver: too many writes of the session are under way",
    errors.WriteIdReusedError: "kvserver: another write of the session has this number",
    errors.WriteTooExpensiveError: (
        "kvserver: a write may look at 20000 keys in its compares, ranges and deletions with "
        "prev_kv, and answer with 16 MiB: read before it, or name fewer keys"
    ),
    errors.ResponseTooLargeError: (
        "kvserver: the answer would be larger than 64 MiB: set a limit, go on from the last key"
    ),
    errors.AnswerTooLargeError: (
        "kvserver: the write was applied, but its answer was too large to be kept"
    ),
}

BY_MEANING = {
    errors.OutcomeUnknownError: "request timed out, possibly due to previous leader failure",
    errors.TooManyRequestsError: "too many requests",
    errors.NoSpaceError: "mvcc: database space exceeded",
    errors.CorruptClusterError: "corrupt cluster",
    errors.EmptyKeyError: "key is not provided",
    errors.KeyNotFoundError: "key not found",
    errors.ValueProvidedError: "value is provided",
    errors.LeaseProvidedError: "lease is provided",
    errors.LeaseNotFoundError: "requested lease not found",
    errors.TooManyOpsError: "too many operations in txn request",
    errors.DuplicateKeyError: "duplicate key given in txn request",
    errors.InvalidSortOptionError: "invalid sort option",
    errors.RequestTooLargeError: "request is too large",
    errors.CompactedError: "mvcc: required revision has been compacted",
    errors.FutureRevisionError: "mvcc: required revision is a future revision",
}


def below(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("kvserver."):
            yield child
            yield from below(child)


def test_every_request_error_is_in_the_catalogue_and_nothing_else() -> None:
    assert set(CATALOGUE) == set(below(errors.RequestError))


def test_each_text_of_etcds_has_one_meaning_here_or_a_reason_to_be_missing() -> None:
    caught = [status.text for kind, status in CATALOGUE.items() if kind not in OURS_ALONE]
    others = [f"etcdserver: {text}" for texts in (*NEVER.values(), ELSEWHERE) for text in texts]
    assert sorted([*caught, *others]) == sorted(CODES)
    assert len(CODES) == COUNT


def test_no_two_errors_share_a_text() -> None:
    texts = [status.text for status in CATALOGUE.values()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("kind", CATALOGUE)
def test_texts_and_codes_are_etcds(kind: type[errors.RequestError]) -> None:
    code, text = CATALOGUE[kind]
    if kind in OURS_ALONE:
        assert text == OURS_ALONE[kind]
        assert text not in CODES
    else:
        assert CODES[text] == code


@pytest.mark.parametrize("kind", BY_MEANING)
def test_each_error_has_the_text_that_means_it(kind: type[errors.RequestError]) -> None:
    assert status_of(kind()).text == f"etcdserver: {BY_MEANING[kind]}"


def test_official_clients_go_elsewhere_on_this_text_only() -> None:
    assert status_of(errors.NotActiveError()) == (StatusCode.UNAVAILABLE, NOT_ACTIVE_TEXT)


def test_an_error_that_is_not_in_the_catalogue_is_a_programmers() -> None:
    class ForgottenError(errors.RequestError): ...

    with pytest.raises(KeyError):
        status_of(ForgottenError())


@pytest.mark.parametrize("kind", sorted(below(errors.NodeError), key=str))
def test_the_nodes_own_troubles_are_never_answered(kind: type[Exception]) -> None:
    assert not issubclass(kind, errors.RequestError)
    assert kind not in CATALOGUE


# ---------------------------------------------------------------------------- how an error leaves


class AbortedError(Exception):
    """What gRPC raises to end a call."""


class Context:
    """Notes how a call was ended."""

    ended: tuple[object, ...] = ()

    async def abort(self, *how: object) -> NoReturn:
        self.ended = how
        raise AbortedError


class HintingDoor(Door):
    """Nothing but the door's way with errors."""

    def __init__(self) -> None: ...

    def hint(self) -> tuple[tuple[str, str], ...]:
        return (("kv-leader", "127.0.0.1:1"), ("kv-term", "7"))


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("kind", CATALOGUE)
async def test_only_a_refusal_by_a_standby_carries_the_hint(
    kind: type[errors.RequestError],
) -> None:
    context = Context()
    with pytest.raises(AbortedError):
        await HintingDoor().answer(context, fail(kind()))  # type: ignore[arg-type]
    code, text, trailers = context.ended
    assert (code, text) == CATALOGUE[kind]
    assert bool(trailers) is (kind is errors.NotActiveError)


class FailingDoor(HintingDoor):
    """Notes what ends the node."""

    def __init__(self) -> None:
        object.__setattr__(self, "failures", [])
        object.__setattr__(self, "on_failure", self.failures.append)

    failures: list[errors.NodeError]


async def test_a_damaged_row_ends_the_node_and_is_no_answer() -> None:
    context, door, damage = Context(), FailingDoor(), errors.DataDirError("a row is damaged")
    with pytest.raises(AbortedError):
        await door.answer(context, fail(damage))  # type: ignore[arg-type]
    assert context.ended == (StatusCode.UNAVAILABLE, "etcdserver: server stopped")
    assert door.failures == [damage]


async def test_anything_else_passes_the_door_untouched() -> None:
    context = Context()
    with pytest.raises(ZeroDivisionError):
        await HintingDoor().answer(context, fail(ZeroDivisionError()))  # type: ignore[arg-type]
    assert context.ended == ()


def test_whatever_the_log_answers_keeps_a_session_alive() -> None:
    """Its write was committed, whatever came of it; only leases are begun without a session."""
    assert set(errors.ERROR_NUMBERS.values()) - {errors.LeaseExistsError} <= set(FROM_THE_LOG)
