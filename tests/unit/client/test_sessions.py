"""Numbered writes: sent again until they are answered, always with the same number."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_node import Context, FakeNode, Step, answers, fails, not_active, put_response

from kvclient import Client, DeadlineExceeded, OutcomeUnknown
from kvclient._sessions import PLAIN_S_MIN, WRITE_ID, Numbered, Session
from kvclient.errors import (
    AnswerLost,
    Compacted,
    NoSpace,
    NotCapable,
    SessionNotFound,
    TooManyRequests,
)
from kvpb import rpc_pb2
from kvpb.session_pb2 import OpenSessionRequest, OpenSessionResponse, WriteId

Nodes = Callable[[int], list[FakeNode]]
Connect = Callable[..., Any]

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LOST = "etcdserver: request timed out, possibly due to previous leader failure"
lost = fails(UNAVAILABLE, LOST)
ended = fails(grpc.StatusCode.NOT_FOUND, SessionNotFound.text)
no_space = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, NoSpace.text)
too_old = fails(grpc.StatusCode.OUT_OF_RANGE, Compacted.text)


def opens(*sessions: int, window: int = 100) -> list[Step]:
    return [
        answers(OpenSessionResponse(session=each, ttl_s=60, window=window)) for each in sessions
    ]


class Log:
    """Which numbers the writes had that arrived, in order; scripts the answers."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, int, int]] = []

    def then(self, step: Step) -> Step:
        def play(request: Any, context: Context) -> Any:
            metadata = dict(context.invocation_metadata())
            sent = metadata.get(WRITE_ID, b"")
            assert isinstance(sent, bytes)
            write = WriteId.FromString(sent)
            self.numbers.append((write.session, write.sequence, write.done_to))
            return step(request, context)

        return play

    def answering(self, *steps: Step) -> list[Step]:
        return [self.then(step) for step in steps]


@pytest.fixture
def log() -> Log:
    return Log()


async def test_writes_have_numbers_and_tell_what_ended(
    nodes: Nodes, connect: Connect, log: Log
) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    for method, response in (
        ("Put", put_response()),
        ("DeleteRange", rpc_pb2.DeleteRangeResponse()),
    ):
        node.on(method, log.then(answers(response)))
    client = connect(node)
    await client.put("k", "v")
    await client.delete("k")
    await client.put("k", "v")
    assert log.numbers == [(7, 1, 0), (7, 2, 1), (7, 3, 2)]
    assert node.calls[0] == ("Open", OpenSessionRequest(ttl_s=60))
    assert node.asked("Open") == 1


async def test_a_write_without_an_answer_is_sent_again_with_its_number(
    nodes: Nodes, connect: Connect, log: Log
) -> None:
    one, other = nodes(2)
    one.on("Open", *opens(7))
    one.on("Put", *log.answering(put_response_step(), lost))
    other.on("Put", *log.answering(not_active(one.address, 5), put_response_step(9)))
    one.on("Put", *log.answering(put_response_step(), lost, lost))
    client = connect(one, other)
    await client.put("k", "v")
    result = await client.put("k", "v")
    assert result.revision == 9
    assert set(log.numbers[1:]) == {(7, 2, 1)}
    assert len(log.numbers) >= 4


def put_response_step(revision: int = 2) -> Step:
    return answers(put_response(revision=revision))


async def test_without_an_answer_until_the_end_the_outcome_is_unknown(
    nodes: Nodes, connect: Connect, log: Log
) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", log.then(put_response_step()))
    node.on("DeleteRange", log.then(not_active()))
    client = connect(node)
    await client.put("k", "v")
    node.on("Put", log.then(lost))
    with pytest.raises(OutcomeUnknown, match="the put may or may not be applied"):
        await client.put("k", "v", timeout_s=0.3)
    with pytest.raises(DeadlineExceeded, match="nothing was changed"):
        await client.delete("k", timeout_s=0.3)
    node.on("Put", log.then(put_response_step()))
    await client.put("k", "v")
    assert log.numbers[-1] == (7, 4, 3), "what was given up will never be sent again"


def proxy(code: grpc.StatusCode) -> Step:
    return fails(code, "said a proxy")


REFUSALS = {
    "space": no_space,
    "standby": not_active(),
    "unimplemented": proxy(grpc.StatusCode.UNIMPLEMENTED),
    "denied": proxy(grpc.StatusCode.PERMISSION_DENIED),
    "precondition": proxy(grpc.StatusCode.FAILED_PRECONDITION),
}


@pytest.mark.parametrize("for_now", REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_for_now_tells_nothing_of_an_attempt_before(
    nodes: Nodes, connect: Connect, for_now: Step
) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", lost, for_now, put_response_step(9))
    client = connect(node)
    assert (await client.put("k", "v")).revision == 9
    node.on("Put", lost, for_now)
    with pytest.raises(OutcomeUnknown):
        await client.put("k", "v", timeout_s=0.3)


async def test_a_refusal_from_the_log_ends_the_doubt(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", lost, too_old)
    with pytest.raises(Compacted):
        await connect(node).put("k", "v")


async def test_a_refusal_of_the_first_attempt_is_told_at_once(
    nodes: Nodes, connect: Connect
) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", no_space)
    with pytest.raises(NoSpace):
        await connect(node).put("k", "v")
    assert node.asked("Put") == 1


async def test_another_session_is_opened_when_one_has_ended(
    nodes: Nodes, connect: Connect, log: Log
) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7, 8))
    node.on("Put", *log.answering(ended, put_response_step()))
    await connect(node).put("k", "v")
    assert log.numbers == [(7, 1, 0), (8, 1, 0)]


async def test_the_end_of_a_session_leaves_an_earlier_attempt_in_doubt(
    nodes: Nodes, connect: Connect, log: Log
) -> None:
    """It may have been applied before: another number could apply it again."""
    (node,) = nodes(1)
    node.on("Open", *opens(7, 8))
    node.on("Put", *log.answering(lost, ended))
    with pytest.raises(OutcomeUnknown):
        await connect(node).put("k", "v")
    assert log.numbers == [(7, 1, 0), (7, 1, 0)]


async def test_an_answer_that_was_too_large_to_keep(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", lost, fails(grpc.StatusCode.FAILED_PRECONDITION, AnswerLost.text))
    with pytest.raises(AnswerLost, match="was applied, once"):
        await connect(node).put("k", "v")


@pytest.mark.parametrize(
    "refusal", [fails(grpc.StatusCode.UNIMPLEMENTED, ""), no_space], ids=["etcd", "space"]
)
async def test_without_sessions_a_write_is_sent_once(
    nodes: Nodes, connect: Connect, log: Log, refusal: Step
) -> None:
    (node,) = nodes(1)
    node.on("Open", refusal)
    node.on("Put", *log.answering(put_response_step(), lost))
    client = connect(node)
    await client.put("k", "v")
    with pytest.raises(OutcomeUnknown):
        await client.put("k", "v")
    assert log.numbers == [(0, 0, 0)] * 2
    assert node.asked("Open") == 1, "it is not asked before each write"


async def test_a_busy_server_opens_no_session_and_that_is_no_reason_to_write_without(
    nodes: Nodes, connect: Connect, log: Log
) -> None:
    (node,) = nodes(1)
    busy = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, TooManyRequests.text)
    node.on("Open", busy, *opens(7))
    node.on("Put", log.then(put_response_step()))
    client = connect(node)
    with pytest.raises(TooManyRequests):
        await client.put("k", "v")
    await client.put("k", "v")
    assert log.numbers == [(7, 1, 0)]


async def test_members_that_are_not_able_yet_are_asked_again_soon(
    nodes: Nodes, connect: Connect, log: Log
) -> None:
    (node,) = nodes(1)
    node.on("Open", fails(grpc.StatusCode.FAILED_PRECONDITION, NotCapable.text), *opens(7))
    node.on("Put", log.then(put_response_step()))
    client = connect(node)
    await client.put("k", "v")
    await asyncio.sleep(PLAIN_S_MIN + 0.05)
    await client.put("k", "v")
    assert log.numbers == [(0, 0, 0), (7, 1, 0)]


async def test_an_answer_that_takes_long_is_waited_for(nodes: Nodes, connect: Connect) -> None:
    """Else a numbered write would be sent again and again to whoever is slow already."""
    one, other = nodes(2)
    one.on("Open", *opens(7))
    other.on("Open", not_active(one.address, 5))
    other.on("Put", not_active(one.address, 5))

    def slow(request: Any, context: Context) -> Any:
        one.released.wait(1.5)
        return put_response(9)

    one.on("Put", slow)
    assert (await connect(one, other).put("k", "v", timeout_s=2.5)).revision == 9
    assert one.asked("Put") == 1


async def test_a_client_that_is_closed_leaves_a_write_in_doubt(nodes: Nodes) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", node.hangs)
    client = Client(node.address)
    put = asyncio.create_task(asyncio.to_thread(client.put, "k", "v"))
    while not node.asked("Put"):
        await asyncio.sleep(0.01)
    await asyncio.to_thread(client.close)
    with pytest.raises(OutcomeUnknown):
        await put


async def test_a_forked_process_leaves_the_session_to_its_parent(
    nodes: Nodes, connect: Connect, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers for other writes one of the two would be told what is not so."""
    (node,) = nodes(1)
    node.on("Open", *opens(7, 8))
    node.on("Put", log.then(put_response_step()))
    node.on("LeaseRevoke", answers(rpc_pb2.LeaseRevokeResponse()))
    first, second = connect(node), connect(node)
    await first.put("k", "v")
    monkeypatch.setattr("kvclient._sessions.os.getpid", lambda: -1)
    await first.put("k", "v")
    assert log.numbers == [(7, 1, 0), (8, 1, 0)]
    monkeypatch.undo()
    node.on("Open", *opens(9))
    await second.put("k", "v")
    monkeypatch.setattr("kvclient._sessions.os.getpid", lambda: -1)
    await second.close()
    assert node.asked("LeaseRevoke") == 0


async def test_who_wants_no_numbers_gets_none(nodes: Nodes, connect: Connect, log: Log) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", log.then(put_response_step()))
    await connect(node, exactly_once=False).put("k", "v")
    assert log.numbers == [(0, 0, 0)]
    assert node.asked("Open") == 0


async def test_reads_have_no_numbers(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Txn", answers(rpc_pb2.TxnResponse()))
    await connect(node).txn()
    assert node.asked("Open") == 0


async def test_many_at_once_share_a_session(nodes: Nodes, connect: Connect, log: Log) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7, 8))
    node.on("Put", log.then(put_response_step()))
    client = connect(node)
    await asyncio.gather(*(client.put("k", "v") for _ in range(12)))
    assert sorted(number for _, number, _ in log.numbers) == list(range(1, 13))
    assert node.asked("Open") == 1


async def test_the_session_is_closed_with_the_client(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Open", *opens(7))
    node.on("Put", put_response_step())
    node.on("LeaseRevoke", answers(rpc_pb2.LeaseRevokeResponse()))
    client = connect(node)
    await client.put("k", "v")
    await client.close()
    assert node.calls[-1] == ("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=7))
    await client.close()
    assert node.asked("LeaseRevoke") == 1


# ---------------------------------------------------------------------- the numbers


def session(window: int = 3, ttl_s: int = 60) -> Session:
    return Session(OpenSessionResponse(session=7, ttl_s=ttl_s, window=window), asked_at=100.0)


def parts(numbered: Numbered | None) -> tuple[int, int] | None:
    if numbered is None:
        return None
    ((name, value),) = numbered.metadata
    assert name == WRITE_ID
    write = WriteId.FromString(value)
    assert write.session == 7
    return write.sequence, write.done_to


def test_done_is_only_what_is_older_than_all_that_is_under_way() -> None:
    one = session()
    first, second = one.begin(100), one.begin(100)
    assert first is not None
    assert second is not None
    assert (parts(first), parts(second)) == ((1, 0), (2, 0))
    second.end(answered=True)
    assert parts(one.begin(100)) == (3, 0)
    assert one.begin(100) is None, "the first still takes its room"
    first.end(answered=False)
    assert parts(one.begin(100)) == (4, 2)


def test_a_session_may_be_over_so_long_after_its_newest_answer() -> None:
    one = session()
    numbered = one.begin(159)
    assert numbered is not None
    assert one.begin(161) is None
    numbered.end(answered=True)
    assert one.begin(161) is not None
    assert one.begin(220) is None


@given(st.lists(st.integers(0, 5)), st.integers(1, 6))
def test_no_number_is_given_twice_nor_done_too_early(steps: list[int], room: int) -> None:
    one, under_way, given_out = session(room), list[Numbered](), set[int]()

    def oldest() -> Iterator[int]:
        yield from (each.sequence for each in under_way)

    for step in steps:
        if step < 3:
            numbered = one.begin(100)
            waits = min(oldest(), default=None)
            if numbered is None:
                assert waits is not None
                assert max(given_out) - waits + 1 == room
                continue
            sequence, done_to = parts(numbered) or (0, 0)
            assert sequence == numbered.sequence == len(given_out) + 1
            assert done_to == (sequence if waits is None else waits) - 1
            given_out.add(sequence)
            under_way.append(numbered)
        elif under_way:
            under_way.pop(step % len(under_way)).end(answered=step == 3)
