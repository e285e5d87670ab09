"""Calls that take long: given up when another node is active by now, and only then."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from support.fake_node import (
    FakeNode,
    answers,
    put_response,
    range_response,
    slow_way,
    status_response,
)

from kvclient import AsyncClient, OutcomeUnknown, Unavailable
from kvpb import rpc_pb2

Nodes = Callable[[int], list[FakeNode]]
Connect = Callable[..., Any]


async def hung_and_successor(nodes: Nodes, connect: Connect, **options: Any) -> tuple[Any, ...]:
    """A client of an active in term 5 that hangs from now on, while the other is so in term 6."""
    hung, successor = nodes(2)
    hung.on("Put", answers(put_response(term=5)), hung.hangs)
    hung.on("Range", hung.hangs)
    successor.on("Put", answers(put_response(term=6)))
    successor.on("Range", answers(range_response(b"v", term=6)))
    successor.on("Status", answers(status_response(2, 2, 6)))
    client = connect(hung, successor, timeout_s=60, **options)
    await client.put("k", "v")
    return client, hung, successor


async def test_a_write_at_a_node_that_hangs_is_given_up_when_another_is_active(
    nodes: Nodes, connect: Connect
) -> None:
    client, hung, successor = await hung_and_successor(nodes, connect)
    async with asyncio.timeout(20):
        with pytest.raises(OutcomeUnknown, match="is the active by now, in term 6") as caught:
            await client.put("k", "v")
        assert caught.value.endpoint == hung.address
        await client.put("k", "v")
    assert (hung.asked("Put"), successor.asked("Put")) == (2, 1)


async def test_a_read_at_a_node_that_hangs_moves_on_when_another_is_active(
    nodes: Nodes, connect: Connect
) -> None:
    client, hung, successor = await hung_and_successor(nodes, connect)
    async with asyncio.timeout(20):
        assert (await client.get("k")).value == b"v"
    assert (hung.asked("Range"), successor.asked("Range")) == (1, 1)


@pytest.mark.parametrize("term", [0, 6])
async def test_a_node_that_is_silent_is_left_in_the_same_term_too(
    nodes: Nodes, connect: Connect, term: int
) -> None:
    """A frozen standby, asked first; the client may never have heard of a term."""
    _, hung, successor = await hung_and_successor(nodes, connect)
    hung.on("Put", answers(put_response(term=term)), hung.hangs)
    hung.on("Status", hung.hangs)
    async with asyncio.timeout(20):
        fresh = connect(hung, successor, timeout_s=60)
        await fresh.put("k", "v")
        with pytest.raises(OutcomeUnknown, match="is the active by now"):
            await fresh.put("k", "v")
        await fresh.put("k", "v")


async def test_many_slow_calls_look_around_together(nodes: Nodes, connect: Connect) -> None:
    client, _, successor = await hung_and_successor(nodes, connect)
    successor.on("Status", answers(status_response(2, 1, 5)))
    calls = [asyncio.create_task(client.put("k", "v")) for _ in range(4)]
    async with asyncio.timeout(20):
        # on a busy machine the calls may be given up before, since their node answers nothing
        while successor.asked("Status") < 3 and not all(call.done() for call in calls):
            await asyncio.sleep(0.01)
        successor.on("Status", answers(status_response(2, 2, 6)))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, OutcomeUnknown) for outcome in outcomes)
    assert successor.asked("Status") < 4 * 3


@pytest.mark.parametrize(
    "status",
    [
        status_response(2, 2, 5),  # the leader all along: a follower of etcd's is slow
        status_response(2, 1, 6),
        status_response(2, 0, 7),
    ],
    ids=str,
)
async def test_a_slow_call_is_not_given_up_without_another_active(
    nodes: Nodes, connect: Connect, status: rpc_pb2.StatusResponse
) -> None:
    slow, other = nodes(2)

    def after_two_looks(request: Any, context: grpc.ServicerContext) -> rpc_pb2.PutResponse:
        while other.asked("Status") < 5:
            assert not slow.released.wait(0.01)
        return put_response(revision=9, term=5)

    slow.on("Put", answers(put_response(term=5)), after_two_looks)
    other.on("Status", answers(status))
    client = connect(slow, other, timeout_s=60)
    await client.put("k", "v")
    assert (await client.put("k", "v")).revision == 9
    assert not other.asked("Put")


async def test_a_call_that_is_answered_soon_asks_nobody_else(
    nodes: Nodes, connect: Connect
) -> None:
    one, two = nodes(2)
    one.on("Put", answers(put_response()))
    client = connect(one, two)
    for _ in range(20):
        await client.put("k", "v")
    assert not two.calls
    assert {method for method, _ in one.calls} == {"Put"}


async def test_a_long_way_is_no_obstacle(nodes: Nodes, connect: Connect) -> None:
    """Connecting takes longer than a call waits for it, and than the pause between attempts."""
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    with slow_way(node.address, 0.5) as address:
        await connect(address, timeout_s=30).put("k", "v")
    assert node.asked("Put") == 1


async def test_an_endpoint_that_accepts_and_says_nothing_is_skipped_soon(
    nodes: Nodes, connect: Connect
) -> None:
    """As a stopped process does to who connects only now; a write too moves on."""
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with asyncio.timeout(4):  # an attempt to connect may take 5 s
            await connect(address, node, timeout_s=60).put("k", "v")
        with pytest.raises(Unavailable, match="not connected yet"):
            await connect(address).put("k", "v", timeout_s=0.5)


async def test_a_task_that_is_cancelled_cancels_its_call(nodes: Nodes) -> None:
    (hung,) = nodes(1)
    hung.on("Put", hung.hangs)
    async with AsyncClient(hung.address) as client:
        task = asyncio.create_task(client.put("k", "v"))
        while not hung.asked("Put"):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
