"""Numbered writes: applied once, however often and wherever they come again."""

import ast
import inspect
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.applying import Replica, delete, put, txn

from kvpb.raft_pb2 import Command, ExpireLeases, SessionRow, SetFeatureLevel
from kvpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvserver import errors
from kvserver.mvcc import sessions
from kvserver.mvcc.leases import promised_ms
from kvserver.mvcc.sessions import KEPT_BYTES_MAX, SESSION_BYTES_MAX, WINDOW
from kvserver.storage.schema import SESSION

S = 77


def opened(ttl_s: int = 60) -> Replica:
    replica = Replica()
    apply(replica, open_(S, ttl_s))
    return replica


def apply(replica: Replica, *commands: Command, at_ms: int = 0) -> list[Any]:
    return list(replica.apply(*commands, at_ms=at_ms))


def open_(session: int = S, ttl_s: int = 60) -> Command:
    return Command(open_session=LeaseGrantRequest(ID=session, TTL=ttl_s))


def n(sequence: int, command: Command, done_to: int = 0, session: int = S) -> Command:
    """A write with a number."""
    numbered = Command(session=session, sequence=sequence, done_to=done_to)
    numbered.MergeFrom(command)
    return numbered


def kind_of(results: list[Any]) -> list[Any]:
    return [type(each) if isinstance(each, Exception) else each for each in results]


def kept(replica: Replica) -> int:
    replica.turn()
    return sum(len(row) for name, _, row in replica.rows() if name == SESSION.name)


RANGE, PUT = RangeRequest(key=b"k"), PutRequest(key=b"k")
READ_AND_PUT = [RequestOp(request_range=RANGE), RequestOp(request_put=PUT)]
WRITES = {
    "put": put("k"),
    "put with the previous": put("k", prev_kv=True),
    "delete": delete("k"),
    "delete with the previous": Command(delete_range=DeleteRangeRequest(key=b"k", prev_kv=True)),
    "txn": txn("k", "l"),
    "txn that reads": Command(txn=TxnRequest(success=READ_AND_PUT)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("together", [True, False])
def test_a_write_that_comes_again_gets_its_first_answer(write: Command, together: bool) -> None:
    replica = opened()
    apply(replica, put("k", "before"))
    first, second = n(1, write), n(1, write)
    if together:
        answers = apply(replica, first, put("k", "between"), second)
        assert answers[0] == answers[2]
    else:
        answers = apply(replica, first)
        replica.turn()
        replica = replica.restarted()
        revision = replica.applier.revision
        assert apply(replica, second) == answers
        assert replica.applier.revision == revision


def test_numbers_may_come_in_any_order() -> None:
    replica = opened()
    apply(replica, n(3, put("k", "c")), n(1, put("k", "a")))
    apply(replica, n(2, put("k", "b")), n(1, put("k", "a")), n(3, put("k", "c")))
    (got,) = apply(replica, put("k", "end", prev_kv=True))
    assert got.prev_kv.value == b"b"
    assert got.prev_kv.version == 3


def test_an_error_is_repeated_too() -> None:
    """Else the first attempt, arriving late, could do what its client was told is not done."""
    replica = opened()
    missing = n(1, Command(put=PutRequest(key=b"k", ignore_value=True)))
    assert kind_of(apply(replica, missing)) == [errors.KeyNotFoundError]
    apply(replica, put("k"))
    assert kind_of(apply(replica, missing)) == [errors.KeyNotFoundError]
    assert replica.applier.revision == 2


def test_errors_are_kept_as_all_members_read_them() -> None:
    """By name until the entry that raises the level, by number from its place on."""
    replica = opened()
    missing = Command(put=PutRequest(key=b"none", ignore_value=True))
    raised = Command(set_feature_level=SetFeatureLevel(level=3))
    apply(replica, n(1, missing))
    apply(replica, n(2, missing), raised, n(3, missing))
    replica.turn()
    ((_, _, row),) = (each for each in replica.rows() if each[0] == SESSION.name)
    answers = SessionRow.FromString(row).answers
    assert [each.WhichOneof("answer") for each in answers] == ["error", "error", "error_number"]
    assert [each.error for each in answers] == ["KeyNotFoundError", "KeyNotFoundError", ""]
    for each in (replica, replica.restarted()):
        again = apply(each, *(n(number, missing) for number in (1, 2, 3)))
        assert kind_of(again) == [errors.KeyNotFoundError] * 3


def test_every_error_that_applying_can_raise_has_a_number() -> None:
    raised = set()
    for path in Path(sessions.__file__).parent.glob("*.py"):
        if path.name != "sessions.py":  # what those are about is never kept as an answer
            raised |= set(_raised_in(path.read_text()))
    found = {vars(errors)[name] for name in raised if name in vars(errors)}
    assert errors.KeyNotFoundError in found
    assert found <= set(errors.ERROR_NUMBERS.values())


def _raised_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            yield ast.unparse(raised)


def test_error_numbers_are_given_once() -> None:
    """Which error a number was given to is in the golden record."""
    kinds = list(errors.ERROR_NUMBERS.values())
    assert len(set(kinds)) == len(kinds)
    assert min(errors.ERROR_NUMBERS) > 0, "0 is no number: a message does not tell it from none"
    source = inspect.getsource(errors)
    numbers = re.findall(r"^    (\d+): \w+Error,$", source, re.MULTILINE)
    assert list(map(int, numbers)) == list(errors.ERROR_NUMBERS), "a dict would hide a double one"


def test_what_the_client_is_done_with_is_dropped_and_never_applied() -> None:
    replica = opened()
    apply(replica, n(1, put("a")), n(3, put("c")))
    before = kept(replica)
    apply(replica, n(4, put("d"), done_to=3))
    assert kept(replica) < before
    late = apply(replica, n(1, put("a")), n(2, put("b")), n(3, put("c")))
    assert kind_of(late) == [errors.WriteForgottenError] * 3
    assert replica.applier.revision == 4


def test_what_it_is_done_with_stays_so() -> None:
    replica = opened()
    apply(replica, n(5, put("a"), done_to=4))
    assert kind_of(apply(replica, n(3, put("b"), done_to=1))) == [errors.WriteForgottenError]


def test_a_write_tells_of_others_even_if_it_is_refused() -> None:
    replica = opened()
    apply(replica, n(1, put("a")))
    apply(replica, n(1, put("a"), done_to=1))
    replica.turn()
    replica = replica.restarted()
    assert kind_of(apply(replica, n(1, put("a")))) == [errors.WriteForgottenError]


def test_so_many_answers_are_kept_and_no_more() -> None:
    replica = opened()
    apply(replica, *[n(each + 1, put("k")) for each in range(WINDOW)])
    assert kind_of(apply(replica, n(WINDOW + 1, put("k")))) == [errors.WindowFullError]
    assert replica.applier.revision == 1 + WINDOW
    assert apply(replica, n(WINDOW + 1, put("k"), done_to=1))[0].header.revision == 2 + WINDOW


def test_an_answer_too_large_to_keep_says_that_the_write_was_applied() -> None:
    replica = opened()
    apply(replica, put("k", "v" * KEPT_BYTES_MAX))
    large = n(1, Command(delete_range=DeleteRangeRequest(key=b"k", prev_kv=True)))
    (answer,) = apply(replica, large)
    assert len(answer.prev_kvs) == 1
    assert kind_of(apply(replica, large)) == [errors.AnswerTooLargeError]
    assert kept(replica) < 200


def test_a_number_is_of_one_write() -> None:
    replica = opened()
    apply(replica, n(1, put("k")))
    for other in (delete("k"), put("k", "w"), put("l"), put("k", prev_kv=True)):
        assert kind_of(apply(replica, n(1, other))) == [errors.WriteIdReusedError]
    assert replica.applier.revision == 2


def test_the_answers_of_a_session_stay_within_bounds() -> None:
    """All rows of a batch are read and written whole: else a small entry could take very long."""
    replica = opened()
    apply(replica, put("k", "v" * (KEPT_BYTES_MAX - 100)))
    read = RequestOp(request_range=RANGE)
    reading = Command(txn=TxnRequest(success=[read, RequestOp(request_put=PutRequest(key=b"l"))]))
    for number in range(1, 40):
        apply(replica, n(number, reading))
    assert SESSION_BYTES_MAX / 2 < kept(replica) < SESSION_BYTES_MAX + 2_000
    again = kind_of(apply(replica, n(1, reading), n(39, reading)))
    assert isinstance(again[0], TxnResponse)
    assert again[1] is errors.AnswerTooLargeError
    apply(replica, n(40, put("x"), 30))
    assert kept(replica) < SESSION_BYTES_MAX / 8, "what is done with makes room"
    assert isinstance(apply(replica, n(41, reading), n(41, reading))[1], TxnResponse)


def test_an_unknown_session_is_refused_and_not_begun() -> None:
    replica = Replica()
    apply(replica, Command(lease_grant=LeaseGrantRequest(ID=S, TTL=60)))
    assert kind_of(apply(replica, n(1, put("k")), n(1, put("k"), session=S + 1))) == [
        errors.SessionNotFoundError, errors.SessionNotFoundError,
    ]  # fmt: skip
    assert replica.applier.revision == 1
    assert kept(replica) == 0


@pytest.mark.parametrize(
    "end",
    [
        Command(lease_revoke=LeaseRevokeRequest(ID=S)),
        Command(expire_leases=ExpireLeases(term=1, ids=[S])),
    ],
    ids=["revoked", "expired"],
)
def test_a_session_ends_with_its_lease(end: Command) -> None:
    replica = opened()
    apply(replica, n(1, put("k")))
    assert kept(replica)
    results = apply(replica, n(2, put("k")), end, n(2, put("k")))
    assert kind_of(results)[2] is errors.SessionNotFoundError
    assert kept(replica) == 0
    replica.turn()
    assert kind_of(apply(replica.restarted(), n(1, put("k")))) == [errors.SessionNotFoundError]
    assert kind_of(apply(replica, open_(), n(1, put("k"))))[1] != errors.SessionNotFoundError


def test_a_session_that_is_used_is_promised_to_live_on() -> None:
    replica = opened(ttl_s=10)
    apply(replica, n(1, put("k")), at_ms=1_000)
    assert len(replica.leases) == 1, "half of the slack is still there"
    apply(replica, n(2, put("k")), n(3, put("k")), at_ms=30_000)
    assert replica.leases[1].row is not None
    assert replica.leases[1].row.deadline_ms == promised_ms(10, 30_000)
    assert len(replica.leases) == 2


def test_an_exists_error_of_a_session_leaves_the_old_one() -> None:
    replica = opened()
    apply(replica, n(1, put("k")))
    assert kind_of(apply(replica, open_())) == [errors.LeaseExistsError]
    (again,) = apply(replica, n(1, put("k")))
    assert again.header.revision == 2


@given(st.randoms(use_true_random=False))
def test_however_often_and_in_whatever_batches_each_is_applied_once(rng: random.Random) -> None:
    """Against a model: a counter per key, the number of different writes to it."""
    replica, twin = opened(), opened()
    sent: list[int] = []
    first: dict[int, object] = {}
    done_to, newest = 0, 0
    for _ in range(rng.randrange(1, 12)):
        batch = []
        for _ in range(rng.randrange(1, 6)):
            if sent and rng.random() < 0.5:
                number = rng.choice(sent)
            else:
                newest += 1
                number = newest
                sent.append(number)
            batch.append(number)
        if rng.random() < 0.3:
            done_to = rng.randint(done_to, newest)
        commands = [n(each, put("k", str(each)), done_to) for each in batch]
        results = apply(replica, *commands)
        for command in commands:
            apply(twin, command)
        for number, result in zip(batch, kind_of(results), strict=True):
            if result is errors.WriteForgottenError:
                assert number <= done_to
            else:
                assert first.setdefault(number, result) == result
        if rng.random() < 0.3:
            replica.turn()
            replica = replica.restarted()
    assert replica.applier.revision == twin.applier.revision == 1 + len(first)
    replica.turn()
    twin.turn()
    sessions = [row for row in replica.rows() if row[0] == SESSION.name]
    assert sessions == [row for row in twin.rows() if row[0] == SESSION.name]
