"""Watch streams on a real etcd and on this server, side by side: the same responses."""

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from support.etcd import running_etcd
from support.node import CHANNEL_OPTIONS, running_node
from support.watch_streams import Side, Stream, back_by

from kvpb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from kvpb.rpc_pb2_grpc import WatchStub

pytestmark = pytest.mark.cluster


ETCD_PROGRESS = "--experimental-watch-progress-notify-interval=1s"
OUR_PROGRESS = "--watch-progress-interval-ms=1000"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Side]]:
    with (
        running_etcd(tmp_path_factory.mktemp("etcd"), options=[ETCD_PROGRESS]) as etcd,
        running_node(tmp_path_factory.mktemp("node"), options=[OUR_PROGRESS]) as node,
        grpc.insecure_channel(etcd.endpoint, options=CHANNEL_OPTIONS) as to_etcd,
        grpc.insecure_channel(node.endpoint, options=CHANNEL_OPTIONS) as to_node,
    ):
        yield [Side(to_etcd), Side(to_node)]


def told(sides: Sequence[Side], script: Sequence[object], *, responses: int) -> list[WatchResponse]:
    """Play a script on both; what both streams said, with revisions counted from the start.

    A dict is asked of the stream, and its answer awaited if it creates or cancels; anything else is
    done to the keys.
    """
    found = []
    for side in sides:
        start, stream, said = side.clear(), Stream(side.channel), []
        try:
            for step in script:
                if isinstance(step, dict):
                    stream.ask(**{name: shifted(each, start) for name, each in step.items()})
                    if "progress_request" not in step:
                        said.append(stream.next())
                else:
                    side.do(shifted(step, start))
            while len(said) < responses:
                said.append(stream.next())
        finally:
            stream.close()
        found.append([back_by(response, start) for response in said])
    # the order among the watchers of a stream is arbitrary
    theirs, ours = (sorted(said, key=lambda response: response.watch_id) for said in found)
    assert ours == theirs, f"\n--- etcd\n{theirs}\n--- kvserver\n{ours}"
    return found[1]


def shifted(message: Any, start: int) -> Any:
    """Revisions of a request from the start of the script: 1 is the first change in it."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field, value in message.ListFields():
        if field.name in {"start_revision", "revision"} and value > 0:
            setattr(copy, field.name, value + start)
    return copy


def create(key: bytes, range_end: bytes = b"", **more: Any) -> dict[str, WatchCreateRequest]:
    return {"create_request": WatchCreateRequest(key=key, range_end=range_end, **more)}


def put(key: bytes, value: bytes = b"v") -> PutRequest:
    return PutRequest(key=key, value=value)


TXN = TxnRequest(
    success=[
        RequestOp(request_put=put(b"a")),
        RequestOp(request_delete_range=DeleteRangeRequest(key=b"b")),
        RequestOp(request_put=put(b"c")),
    ]
)
NOPUT, NODELETE = WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE


def test_live_events_of_a_key_and_a_range(sides: list[Side]) -> None:
    said = told(
        sides,
        [create(b"a"), create(b"a", b"c"), put(b"a"), put(b"b"), put(b"c"), put(b"a", b"2")],
        responses=2 + 5,
    )
    assert [response.created for response in said[:2]] == [True, True]


def test_all_changes_of_a_transaction_come_together(sides: list[Side]) -> None:
    said = told(sides, [put(b"b"), create(b"\0", b"\0"), TXN], responses=2)
    assert len(said[1].events) == 3


def test_the_past_is_told_first(sides: list[Side]) -> None:
    script = [put(b"a"), put(b"b"), TXN, DeleteRangeRequest(key=b"a")]
    sides_said = told(sides, [*script, create(b"a", start_revision=1, prev_kv=True)], responses=2)
    assert [len(response.events) for response in sides_said] == [0, 3]


@pytest.mark.parametrize("prev_kv", [False, True])
@pytest.mark.parametrize("filters", [[], [NOPUT], [NODELETE]])
def test_filters_and_previous_values(sides: list[Side], prev_kv: bool, filters: list[Any]) -> None:
    script = [
        create(b"a", filters=filters, prev_kv=prev_kv), put(b"a", b"1"), put(b"a", b"2"),
        DeleteRangeRequest(key=b"a"), put(b"a", b"3"),
    ]  # fmt: skip
    told(sides, script, responses=1 + {0: 4, 1: 1, 2: 3}[bool(filters) + (filters == [NODELETE])])


def test_a_client_that_asks_for_no_more_goes_on_being_served(sides: list[Side]) -> None:
    for side in sides:
        for _ in range(20):
            start = side.revision()
            create = WatchCreateRequest(key=b"a", start_revision=start + 1)
            side.do(put(b"a"))
            requests = iter([WatchRequest(create_request=create)])
            call = WatchStub(side.channel).Watch(requests, timeout=20)
            revisions = []
            for response in call:
                revisions += [event.kv.mod_revision for event in response.events]
                if revisions == [start + 1]:
                    side.do(put(b"a"))
                elif len(revisions) == 2:
                    break
            call.cancel()
            assert revisions == [start + 1, start + 2]


def test_a_future_revision(sides: list[Side]) -> None:
    told(sides, [create(b"a", start_revision=3), put(b"a"), put(b"a"), put(b"a")], responses=2)


def test_ids_are_the_clients_or_the_servers(sides: list[Side]) -> None:
    said = told(
        sides,
        [create(b"a", watch_id=1), create(b"a"), create(b"a"), create(b"a", watch_id=1), put(b"a")],
        responses=4 + 3,
    )
    assert [response.watch_id for response in said[:4]] == [1, 0, 2, -1]


def test_cancel(sides: list[Side]) -> None:
    cancel = {"cancel_request": WatchCancelRequest(watch_id=0)}
    said = told(sides, [create(b"a"), cancel, put(b"a"), create(b"a", watch_id=5)], responses=3)
    assert said[1].canceled


@pytest.mark.parametrize(
    "refused",
    [create(b"b", b"a"), create(b"b", b"b")],
    ids=["backwards", "empty"],
)
def test_refused_creations(sides: list[Side], refused: dict[str, Any]) -> None:
    told(sides, [refused, create(b"a"), put(b"a")], responses=3)


def test_an_empty_key_is_the_first_one(sides: list[Side]) -> None:
    told(sides, [create(b"", b"\0"), put(b"\0"), put(b"z")], responses=3)


def test_what_is_compacted_is_said(sides: list[Side]) -> None:
    script = [
        put(b"a"), put(b"a"), put(b"a"), CompactionRequest(revision=3),
        create(b"a", start_revision=1), create(b"a", start_revision=3),
    ]  # fmt: skip
    for side in sides:
        start, stream = side.clear(), Stream(side.channel)
        for step in script[:4]:
            side.do(shifted(step, start))
        for step in script[4:]:
            assert isinstance(step, dict)
            stream.ask(create_request=shifted(step["create_request"], start))
        said = {
            (r.watch_id, r.created, r.canceled, r.compact_revision and r.compact_revision - start,
             len(r.events))
            for r in (stream.next() for _ in range(4))
        }  # fmt: skip
        stream.close()
        assert said == {
            (0, True, False, 0, 0), (1, True, False, 0, 0), (0, False, True, 3, 0),
            (1, False, False, 0, 1),
        }  # fmt: skip


def test_progress_on_request(sides: list[Side]) -> None:
    progress = {"progress_request": WatchProgressRequest()}
    said = told(sides, [create(b"a"), put(b"b"), put(b"c"), progress], responses=2)
    assert (said[1].watch_id, said[1].header.revision) == (-1, 2)


def test_progress_while_nothing_happens(sides: list[Side]) -> None:
    """Told of the one watcher that asked for it, again and again, beside one that has events."""
    for side in sides:
        start, stream = side.clear(), Stream(side.channel)
        for step in (create(b"a"), create(b"b", progress_notify=True)):
            stream.ask(**step)
            assert stream.next().created
        side.do(put(b"c"))
        seen: list[WatchResponse] = []
        while len(seen) < 2:
            side.do(put(b"a"))
            response = stream.next()
            if not response.events:
                seen.append(response)
        stream.close()
        assert {response.watch_id for response in seen} == {1}
        assert start + 1 < seen[0].header.revision < seen[1].header.revision


def test_an_id_is_taken_until_its_watcher_is_cancelled(sides: list[Side]) -> None:
    """Even if a compaction has ended it."""
    for side in sides:
        start, stream = side.clear(), Stream(side.channel)
        for _ in range(3):
            side.do(put(b"a"))
        side.do(CompactionRequest(revision=start + 3))
        again = create(b"a", watch_id=7, start_revision=start + 1)
        cancel = {"cancel_request": WatchCancelRequest(watch_id=7)}
        said = []
        for step, answers in ((again, 2), (again, 1), (cancel, 1), (cancel, 0), (create(b"a"), 1)):
            stream.ask(**step)
            said += [stream.next() for _ in range(answers)]
        stream.close()
        kinds = [(response.watch_id, response.created, response.canceled) for response in said]
        assert kinds == [
            (7, True, False), (7, False, True), (-1, True, True), (7, False, True), (0, True, False)
        ]  # fmt: skip


def big(key: bytes) -> PutRequest:
    return put(key, b"x" * 400_000)


def test_fragments(sides: list[Side]) -> None:
    """A response above the limit comes in parts, to who asked for it: live, and of the past."""
    txn = TxnRequest(success=[RequestOp(request_put=big(key)) for key in (b"a", b"b", b"c")])
    script = [
        create(b"a", b"z", prev_kv=True, fragment=True), create(b"a", b"z", prev_kv=True), txn, txn,
        txn,
    ]  # fmt: skip
    said = told(sides, script, responses=2 + 2 * 2 + 1 + 3)
    assert [(len(each.events), each.fragment) for each in said if each.watch_id == 0][2:] == [
        (2, True), (1, False), (2, True), (1, False)
    ]  # fmt: skip


def test_fragments_of_the_past(sides: list[Side]) -> None:
    """One revision each: how many revisions of the past come at a time is the server's choice."""
    txn = TxnRequest(success=[RequestOp(request_put=big(key)) for key in (b"a", b"b", b"c")])
    watch = create(b"a", b"z", start_revision=2, prev_kv=True, fragment=True)
    said = told(sides, [txn, txn, watch], responses=1 + 2)
    assert [response.fragment for response in said] == [False, True, False]


def test_a_slow_watcher_is_told_everything(sides: list[Side]) -> None:
    """More than fits in any buffer is written before the client reads on."""
    for side in sides:
        start, stream = side.clear(), Stream(side.channel)
        stream.ask(**create(b"a"))
        assert stream.next().created
        slow = Stream(side.channel)
        slow.ask(**create(b"a", start_revision=start + 1))
        for _ in range(60):
            side.do(big(b"a"))
            assert stream.next().events
        told_late = 0
        while told_late < 60:
            for event in slow.next().events:
                told_late += 1
                assert event.kv.mod_revision == start + told_late
        stream.close()
        slow.close()
