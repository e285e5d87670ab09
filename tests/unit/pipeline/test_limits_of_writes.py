"""What is committed is applied in bounded work and memory, alike by all members."""

import random
from collections.abc import Iterator

import pytest
from support.applying import Replica, delete, put

from kvpb.raft_pb2 import Command, SetFeatureLevel
from kvpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvserver.errors import AnswerTooLargeError, WriteTooExpensiveError
from kvserver.mvcc import store
from kvserver.mvcc.budget import STEP_ROWS
from kvserver.mvcc.sessions import KEPT_BYTES_MAX
from kvserver.pipeline.features import LIMITS_LEVEL

SESSION = 7
KEYS = 30


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "VISITED_ROWS_MAX", 40)
    monkeypatch.setattr(store, "ANSWER_BYTES_MAX", 1_000)


def replica(level: int = LIMITS_LEVEL, value: str = "v" * 10) -> Replica:
    """With KEYS keys below `k/`, and a session."""
    found = Replica()
    found.apply(Command(set_feature_level=SetFeatureLevel(level=level)))
    found.apply(*(put(f"k/{number:03}", value) for number in range(KEYS)))
    found.apply(Command(open_session=LeaseGrantRequest(ID=SESSION, TTL=60)))
    return found


def ranged(end: int = KEYS, **more: int | bool) -> RequestOp:
    hi = b"k/%03d" % end
    return RequestOp(request_range=RangeRequest(key=b"k/", range_end=hi, **more))  # type: ignore[arg-type]


def compared(end: int = KEYS) -> Compare:
    return Compare(
        key=b"k/", range_end=b"k/%03d" % end, target=Compare.VERSION, result=Compare.GREATER,
        version=0,
    )  # fmt: skip


def deletion(**more: bool) -> RequestOp:
    request = DeleteRangeRequest(key=b"k/", range_end=b"k0", **more)
    return RequestOp(request_delete_range=request)


PUT = RequestOp(request_put=PutRequest(key=b"changed", value=b"v"))

CHEAP = {
    "one range": TxnRequest(success=[PUT, ranged(KEYS)]),
    "just the rows": TxnRequest(compare=[compared(20)], success=[PUT, ranged(20)]),
    "counted": TxnRequest(success=[PUT, ranged(KEYS, count_only=True)]),
    "a deletion of many": TxnRequest(
        compare=[compared()], success=[deletion(), PUT, RequestOp(request_put=PutRequest(key=b"b"))]
    ),
}
EXPENSIVE = {
    "compares": TxnRequest(compare=[compared(), compared()], success=[PUT]),
    "ranges": TxnRequest(success=[PUT, ranged(), ranged()]),
    "ranges that count": TxnRequest(success=[PUT, *[ranged(count_only=True)] * 2]),
    "compares and ranges": TxnRequest(compare=[compared()], success=[PUT, ranged()]),
    "nested": TxnRequest(
        compare=[compared()],
        success=[PUT, RequestOp(request_txn=TxnRequest(compare=[compared()]))],
    ),
    "sorted": TxnRequest(success=[PUT, *[ranged(sort_order=2, limit=1)] * 2]),
    "of the past": TxnRequest(success=[PUT, *[ranged(revision=30)] * 2]),
    "deletions that answer": TxnRequest(success=[PUT, deletion(prev_kv=True), ranged()]),
}


@pytest.mark.parametrize("what", CHEAP)
def test_what_is_cheap_enough_is_done(what: str) -> None:
    (answer,) = replica().apply(Command(txn=CHEAP[what]))
    assert isinstance(answer, TxnResponse)
    assert answer.succeeded


@pytest.mark.parametrize("what", EXPENSIVE)
def test_what_is_too_expensive_changes_nothing(what: str) -> None:
    here = replica()
    before = here.rows()
    (answer,) = here.apply(Command(txn=EXPENSIVE[what]))
    assert isinstance(answer, WriteTooExpensiveError)
    assert here.rows() == before
    assert here.applier.revision == KEYS + 1


@pytest.mark.parametrize(
    "command",
    [
        Command(txn=TxnRequest(success=[PUT, ranged()])),
        Command(txn=TxnRequest(success=[PUT, ranged(sort_order=2, limit=1)])),
        Command(txn=TxnRequest(success=[PUT, deletion(prev_kv=True)])),
        Command(delete_range=deletion(prev_kv=True).request_delete_range),
    ],
    ids=["range", "sorted", "deletion within", "deletion"],
)
def test_what_would_answer_too_much_changes_nothing(command: Command) -> None:
    here = replica(value="v" * 50)
    before = here.rows()
    assert isinstance(here.apply(command)[0], WriteTooExpensiveError)
    assert here.rows() == before


def test_keys_alone_are_counted_without_their_values() -> None:
    here = replica(value="v" * 50)
    request = TxnRequest(success=[PUT, ranged(keys_only=True)])
    assert isinstance(here.apply(Command(txn=request))[0], TxnResponse)


def test_a_deletion_without_an_answer_has_no_limit() -> None:
    here = replica(value="v" * 50)
    (answer,) = here.apply(Command(delete_range=deletion().request_delete_range))
    assert isinstance(answer, DeleteRangeResponse)
    assert answer.deleted == KEYS


@pytest.mark.parametrize(
    "ops",
    [
        [RequestOp(request_put=PutRequest(key=b"k/%03d" % n, prev_kv=True)) for n in range(25)],
        [
            RequestOp(request_put=PutRequest(key=b"k/%03d" % n, ignore_value=True))
            for n in range(25)
        ],
        [
            RequestOp(request_delete_range=DeleteRangeRequest(key=b"k/%03d" % n, prev_kv=True))
            for n in range(25)
        ],
        [RequestOp(request_put=PutRequest(key=b"new", value=b"v" * 100))]
        + [RequestOp(request_range=RangeRequest(key=b"new"))] * 12,
    ],
    ids=["prev_kv", "ignore_value", "deletions", "what it puts itself"],
)
def test_values_that_a_request_does_not_bring_along_count(ops: list[RequestOp]) -> None:
    here = replica(value="v" * 50)
    before = here.rows()
    assert isinstance(here.apply(Command(txn=TxnRequest(success=ops)))[0], WriteTooExpensiveError)
    assert here.rows() == before


@pytest.mark.parametrize("moments", [(), (0,), (0, 1, 2)])
def test_what_is_removed_at_leisure_does_not_count(
    moments: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member removes what is compacted at its own pace; they must not differ by that."""
    here = replica()
    gone = [f"k/{number:03}a" for number in range(KEYS)]
    here.apply(*(put(key) for key in gone))
    here.apply(*(delete(key) for key in gone))
    revision = here.applier.revision
    here.apply(put("later"), Command(compact=CompactionRequest(revision=revision)), put("latest"))
    monkeypatch.setattr("kvserver.pipeline.applier.COMPACTED_PER_TURN", 20)
    for _ in moments:
        here.applier.work()
    request = TxnRequest(success=[PUT, ranged(revision=revision, count_only=True)])
    (answer,) = here.apply(Command(txn=request))
    assert isinstance(answer, TxnResponse)
    assert answer.responses[1].response_range.count == KEYS


@pytest.mark.parametrize("what", EXPENSIVE)
def test_below_the_level_nothing_is_refused(what: str) -> None:
    """A member of an older version would do it, and members must not differ."""
    (answer,) = replica(LIMITS_LEVEL - 1).apply(Command(txn=EXPENSIVE[what]))
    assert isinstance(answer, TxnResponse)


def test_the_level_counts_as_of_the_command() -> None:
    here = replica(LIMITS_LEVEL - 1)
    expensive = Command(txn=EXPENSIVE["ranges"])
    raised = Command(set_feature_level=SetFeatureLevel(level=LIMITS_LEVEL))
    first, _, last = here.apply(expensive, raised, expensive)
    assert isinstance(first, TxnResponse)
    assert isinstance(last, WriteTooExpensiveError)


def test_an_error_of_a_numbered_write_is_kept() -> None:
    here = replica()
    write = Command(txn=EXPENSIVE["ranges"], session=SESSION, sequence=1)
    for replay in (here, here.restarted()) if here.turn() else ():
        assert isinstance(replay.apply(write)[0], WriteTooExpensiveError)


# ---------------------------------------------------------------------------- answers nobody wants


def commands(seed: int) -> Iterator[Command]:
    """Transactions and deletions of every kind, numbered ones among them."""
    rng = random.Random(seed)
    for sequence in range(1, 40):
        ops = [
            rng.choice([
                PUT, ranged(rng.randrange(KEYS)), ranged(KEYS, revision=rng.randrange(1, 90)),
                deletion(prev_kv=rng.random() < 0.5), ranged(KEYS, sort_order=2),
                RequestOp(request_put=PutRequest(
                    key=b"k/%03d" % rng.randrange(KEYS), value=bytes(rng.randrange(400)),
                    prev_kv=True,
                )),
            ])
            for _ in range(rng.randrange(1, 6))
        ]  # fmt: skip
        nested = RequestOp(request_txn=TxnRequest(success=[ops[0]]))
        command = Command(txn=TxnRequest(success=[PUT, *ops, nested]))
        if rng.random() < 0.2:
            command = Command(delete_range=deletion(prev_kv=True).request_delete_range)
        if rng.random() < 0.6:
            command.session, command.sequence = SESSION, sequence
        yield command


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("level", [LIMITS_LEVEL - 1, LIMITS_LEVEL])
def test_members_are_the_same_whether_or_not_somebody_waits(
    seed: int, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "VISITED_ROWS_MAX", 150)
    monkeypatch.setattr(store, "ANSWER_BYTES_MAX", 20_000)
    active, standby = replica(level, "v" * 300), replica(level, "v" * 300)
    standby.applier.awaited = lambda _: False
    rng = random.Random(seed)
    for command in commands(seed):
        active.apply(command)
        standby.apply(command)
        if rng.random() < 0.3:  # one of them removes what is compacted, the other takes its time
            compaction = Command(compact=CompactionRequest(revision=active.applier.revision - 2))
            for each in (active, standby):
                each.apply(compaction)
            active.applier.work()
        for each in (active, standby):
            each.apply(put("k/001", "v" * 300), put("k/002", "w" * 300))
    for each in (active, standby):
        while each.applier.work():
            pass
    assert active.rows() == standby.rows()


def test_an_answer_that_nobody_waits_for_is_not_built() -> None:
    here = replica(LIMITS_LEVEL - 1, "v" * 1_000)
    here.applier.awaited = lambda _: False
    request = TxnRequest(success=[PUT, *[ranged()] * 100, deletion(prev_kv=True)])
    (plain,) = here.apply(Command(txn=request))
    assert isinstance(plain, TxnResponse)
    assert plain.ByteSize() < 3_000
    assert here.applier.revision == KEYS + 2, "it is done all the same"


def test_of_a_numbered_write_no_more_is_built_than_is_kept() -> None:
    here = replica(LIMITS_LEVEL - 1, "v" * 1_000)
    here.applier.awaited = lambda _: False
    request = TxnRequest(success=[PUT, *[ranged()] * 100])
    write = Command(txn=request, session=SESSION, sequence=1)
    (answer,) = here.apply(write)
    assert isinstance(answer, TxnResponse)
    assert answer.ByteSize() < KEYS * 1_200 + KEPT_BYTES_MAX
    assert isinstance(here.apply(write)[0], AnswerTooLargeError)


def test_of_a_numbered_deletion_no_more_is_built_than_is_kept() -> None:
    here = replica(LIMITS_LEVEL - 1, "v" * 1_000)
    here.applier.awaited = lambda _: False
    gone = deletion(prev_kv=True).request_delete_range
    (answer,) = here.apply(Command(delete_range=gone, session=SESSION, sequence=1))
    assert isinstance(answer, DeleteRangeResponse)
    assert answer.deleted == KEYS
    assert KEPT_BYTES_MAX < answer.ByteSize() < KEPT_BYTES_MAX + 2_000


@pytest.mark.parametrize(
    "request_",
    [
        TxnRequest(compare=[compared()], success=[PUT]),
        TxnRequest(success=[PUT, ranged(keys_only=True)]),
        TxnRequest(success=[PUT, ranged(revision=30, keys_only=True)]),
    ],
    ids=["compare", "keys alone", "of the past"],
)
def test_values_that_are_read_count_though_nobody_answers_with_them(
    request_: TxnRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replica(value="v" * 30)
    monkeypatch.setattr(store, "READ_BYTES_MAX", 500)
    assert isinstance(here.apply(Command(txn=request_))[0], WriteTooExpensiveError)
    monkeypatch.setattr(store, "READ_BYTES_MAX", 5_000)
    assert isinstance(here.apply(Command(txn=request_))[0], TxnResponse)


def test_what_is_cut_is_too_large_wherever_it_is_whole() -> None:
    """And it says nothing of the next command of the entry."""
    rows = []
    for awaited in (True, False):
        here = replica(LIMITS_LEVEL - 1, "v" * 400)
        here.applier.awaited = lambda _, awaited=awaited: awaited  # type: ignore[misc]
        large = Command(txn=TxnRequest(success=[PUT, ranged()]), session=SESSION, sequence=1)
        small = Command(put=PutRequest(key=b"small", value=b"v"), session=SESSION, sequence=2)
        here.apply(large, small)
        assert isinstance(here.apply(large)[0], AnswerTooLargeError)
        assert not isinstance(here.apply(small)[0], AnswerTooLargeError)
        rows.append(here.rows())
    assert rows[0] == rows[1]


def test_whoever_watches_sees_that_it_goes_on() -> None:
    """Else it is taken for stuck: reads and compares of many rows count, too."""
    here = replica(LIMITS_LEVEL - 1)
    here.apply(*(put(f"k/{number:05}") for number in range(3 * STEP_ROWS)))
    for ops in ([ranged(99_999)], [ranged(99_999, count_only=True)]):
        before = here.applier.pace.steps
        hi = b"k0"
        for op in ops:
            op.request_range.range_end = hi
        here.apply(Command(txn=TxnRequest(success=[PUT, *ops])))
        assert here.applier.pace.steps >= before + 3
    before = here.applier.pace.steps
    every = compared()
    every.range_end = b"k0"
    here.apply(Command(txn=TxnRequest(compare=[every], success=[PUT])))
    assert here.applier.pace.steps >= before + 3
