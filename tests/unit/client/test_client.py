"""What both clients do when nodes answer, decline, refuse, hang, or break off."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from support.etcd import free_ports
from support.fake_node import (
    FakeNode,
    answers,
    broken_port,
    fails,
    not_active,
    put_response,
    range_response,
)

from kvclient import (
    Compare,
    DeadlineExceeded,
    KeyValue,
    Op,
    OutcomeUnknown,
    Unavailable,
)
from kvclient.errors import (
    Compacted,
    RequestTooLarge,
    ServerError,
)
from kvpb import kv_pb2, rpc_pb2

Nodes = Callable[[int], list[FakeNode]]
Connect = Callable[..., Any]

BROKEN = grpc.StatusCode.UNAVAILABLE
LOST = "etcdserver: request timed out, possibly due to previous leader failure"


def dead_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


async def test_put_sends_what_was_asked_and_tells_the_revision(
    nodes: Nodes, connect: Connect
) -> None:
    (node,) = nodes(1)
    node.on("Put", answers(put_response(revision=9)))
    result = await connect(node).put("schlüssel", b"\xff", lease=4, prev_kv=True)
    assert (result.revision, result.prev_kv) == (9, None)
    assert node.calls == [
        (
            "Put",
            rpc_pb2.PutRequest(key="schlüssel".encode(), value=b"\xff", lease=4, prev_kv=True),
        )
    ]


async def test_get_finds_one_key_or_none(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Range", answers(range_response(b"v")), answers(range_response()))
    client = connect(node)
    assert await client.get("k0", revision=5) == KeyValue(b"k0", b"v", 2, 3, 2, 0)
    assert await client.get("k0") is None
    assert node.calls[0][1] == rpc_pb2.RangeRequest(key=b"k0", revision=5)


async def test_range_sends_all_options(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Range", answers(range_response(b"a", b"b")))
    result = await connect(node).range(
        "k", prefix=True, limit=2, order="descend", sort_by="mod", keys_only=True, serializable=True
    )
    assert [kv.value for kv in result.kvs] == [b"a", b"b"]
    assert (result.revision, result.count, result.more) == (7, 2, False)
    assert node.calls[0][1] == rpc_pb2.RangeRequest(
        key=b"k",
        range_end=b"l",
        limit=2,
        sort_order=rpc_pb2.RangeRequest.DESCEND,
        sort_target=rpc_pb2.RangeRequest.MOD,
        keys_only=True,
        serializable=True,
    )


async def test_txn_returns_an_answer_per_operation(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    deleted = rpc_pb2.DeleteRangeResponse(deleted=1, prev_kvs=[kv_pb2.KeyValue(key=b"x")])
    inner = rpc_pb2.TxnResponse(succeeded=False)
    response = rpc_pb2.TxnResponse(
        header=rpc_pb2.ResponseHeader(revision=3),
        succeeded=True,
        responses=[
            rpc_pb2.ResponseOp(response_put=put_response(3)),
            rpc_pb2.ResponseOp(response_range=range_response(b"v")),
            rpc_pb2.ResponseOp(response_delete_range=deleted),
            rpc_pb2.ResponseOp(response_txn=inner),
        ],
    )
    node.on("Txn", answers(response))
    result = await connect(node).txn(
        [Compare.create_revision("k", "==", 0)],
        [Op.put("k", "v"), Op.range("k"), Op.delete("x", prev_kv=True), Op.txn([], [])],
    )
    put, read, delete, txn = result.responses
    assert (result.revision, result.succeeded, put.revision) == (3, True, 3)
    assert (read.kvs[0].value, delete.deleted, delete.prev_kvs[0].key) == (b"v", 1, b"x")
    assert (txn.succeeded, txn.responses) == (False, ())


async def test_a_write_follows_the_hint_of_a_standby(nodes: Nodes, connect: Connect) -> None:
    standby, other, active = nodes(3)
    standby.on("Put", not_active(active.address, 5))
    active.on("Put", answers(put_response(term=5)))
    client = connect(standby, other, active)
    await client.put("k", "1")
    await client.put("k", "2")
    assert [node.asked("Put") for node in (standby, other, active)] == [1, 0, 2]


async def test_a_hint_may_name_an_endpoint_that_was_not_given(
    nodes: Nodes, connect: Connect
) -> None:
    standby, active = nodes(2)
    standby.on("Put", not_active(active.address, 5))
    active.on("Put", answers(put_response(term=5)))
    client = connect(standby)
    assert (await client.put("k", "v")).revision == 2
    assert client.endpoints == (standby.address, active.address)


async def test_the_hint_of_an_older_term_is_not_followed(nodes: Nodes, connect: Connect) -> None:
    first, second, active, deposed = nodes(4)
    first.on("Put", not_active(active.address, 5))
    active.on("Put", not_active(), answers(put_response(term=6)))
    second.on("Put", not_active(deposed.address, 4))
    deposed.on("Put", answers(put_response(term=4)))
    client = connect(first, second, active, timeout_s=20)
    await client.put("k", "v")
    assert deposed.asked("Put") == 0
    assert active.asked("Put") == 2


async def test_standbys_without_a_leader_are_asked_in_rounds_until_one_serves(
    nodes: Nodes, connect: Connect
) -> None:
    one, two = nodes(2)
    one.on("Put", not_active())
    two.on("Put", *[not_active()] * 3, answers(put_response()))
    await connect(one, two, timeout_s=20).put("k", "v")
    assert two.asked("Put") == 4
    assert 3 <= one.asked("Put") <= 4


async def test_time_runs_out_on_standbys(nodes: Nodes, connect: Connect) -> None:
    one, two = nodes(2)
    for node in (one, two):
        node.on("Put", not_active())
    with pytest.raises(DeadlineExceeded, match="nothing was changed") as caught:
        await connect(one, two).put("k", "v", timeout_s=0.3)
    assert {address for address, _ in caught.value.said} == {one.address, two.address}
    assert one.asked("Put") < 40, "rounds are spaced by pauses"


async def test_a_dead_endpoint_is_skipped_by_a_write(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    await connect(dead_address(), node).put("k", "v")
    assert node.asked("Put") == 1


async def test_a_connection_that_ends_before_the_request_is_skipped_by_a_write(
    nodes: Nodes, connect: Connect
) -> None:
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    with broken_port(after_request=False) as address:
        await connect(address, node).put("k", "v")
    assert node.asked("Put") == 1


async def test_a_name_that_does_not_resolve_is_skipped_by_a_write(
    nodes: Nodes, connect: Connect
) -> None:
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    await connect("no-such-host.invalid:2379", node, timeout_s=20).put("k", "v")
    assert node.asked("Put") == 1


async def test_nobody_can_be_reached(connect: Connect) -> None:
    address = dead_address()
    with pytest.raises(Unavailable, match="Connection refused") as caught:
        await connect(address).put("k", "v", timeout_s=0.3)
    assert caught.value.said == ((address, "can't connect: Connection refused"),)


async def test_a_write_is_never_sent_twice_after_a_connection_broke(
    nodes: Nodes, connect: Connect
) -> None:
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    with broken_port(after_request=True) as address:
        client = connect(address, node, exactly_once=False)
        with pytest.raises(OutcomeUnknown, match=r"the put may or may not be applied") as caught:
            await client.put("k", "v")
        assert caught.value.endpoint == address
        assert node.asked("Put") == 0
        await client.put("k", "v")
    assert node.asked("Put") == 1, "the next call begins elsewhere"


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (BROKEN, LOST),
        (BROKEN, "etcdserver: server stopped"),
        (BROKEN, "there is no connection available, or so"),
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "context deadline exceeded"),
        (grpc.StatusCode.UNKNOWN, "there is no connection available"),
        (grpc.StatusCode.INTERNAL, "boom"),
    ],
)
async def test_any_doubt_about_a_write_is_told_at_once(
    nodes: Nodes, connect: Connect, code: grpc.StatusCode, details: str
) -> None:
    one, two = nodes(2)
    for node in (one, two):
        for method in ("Put", "DeleteRange", "Txn"):
            node.on(method, fails(code, details))
    client = connect(one)
    with pytest.raises(OutcomeUnknown, match="the put"):
        await client.put("k", "v")
    with pytest.raises(OutcomeUnknown, match="the delete"):
        await client.delete("k")
    with pytest.raises(OutcomeUnknown, match="the transaction"):
        await client.txn(success=[Op.put("k", "v")])
    # a slow machine makes it look around, but nothing is sent again
    assert [name for name, _ in one.calls if name != "Status"] == ["Put", "DeleteRange", "Txn"]
    assert not two.calls


async def test_a_write_that_hangs_ends_as_unknown_and_the_next_one_goes_elsewhere(
    nodes: Nodes, connect: Connect
) -> None:
    hung, node = nodes(2)
    hung.on("Put", hung.hangs)
    node.on("Put", answers(put_response()))
    client = connect(hung, node)
    with pytest.raises(OutcomeUnknown, match="DEADLINE_EXCEEDED"):
        await client.put("k", "v", timeout_s=0.3)
    assert node.asked("Put") == 0
    await client.put("k", "v")
    assert (hung.asked("Put"), node.asked("Put")) == (1, 1)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (BROKEN, LOST),
        (BROKEN, "etcdserver: no leader"),
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
    ],
)
async def test_a_read_moves_on_from_any_node_that_is_unwell(
    nodes: Nodes, connect: Connect, code: grpc.StatusCode, details: str
) -> None:
    sick, node = nodes(2)
    for method in ("Range", "Txn", "MemberList"):
        sick.on(method, fails(code, details))
    node.on("Range", answers(range_response(b"v")))
    node.on("Txn", answers(rpc_pb2.TxnResponse(succeeded=True)))
    node.on("MemberList", answers(rpc_pb2.MemberListResponse(members=[rpc_pb2.Member(ID=7)])))
    found = await connect(sick, node).get("k")
    assert found.value == b"v"
    assert (await connect(sick, node).txn(success=[Op.range("k")])).succeeded
    (member,) = await connect(sick, node).members()
    assert member.id == 7
    assert len(sick.calls) == 3


async def test_a_read_moves_on_from_a_broken_connection(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Range", answers(range_response(b"v")))
    with broken_port(after_request=True) as address:
        assert (await connect(address, node).get("k")).value == b"v"


async def test_a_read_does_not_spend_all_its_time_on_a_node_that_hangs(
    nodes: Nodes, connect: Connect
) -> None:
    hung, node = nodes(2)
    hung.on("Range", hung.hangs)
    node.on("Range", answers(range_response(b"v")))
    found = await connect(hung, node).get("k", timeout_s=4.0)
    assert found.value == b"v"
    assert hung.asked("Range") == 1


async def test_a_read_that_only_hangs_runs_out_of_time(nodes: Nodes, connect: Connect) -> None:
    (hung,) = nodes(1)
    hung.on("Range", hung.hangs)
    with pytest.raises(DeadlineExceeded, match="DEADLINE_EXCEEDED"):
        await connect(hung).get("k", timeout_s=0.2)


async def test_what_the_server_declines_is_not_repeated(nodes: Nodes, connect: Connect) -> None:
    one, two = nodes(2)
    one.on("Range", fails(grpc.StatusCode.OUT_OF_RANGE, Compacted.text))
    one.on("Put", fails(grpc.StatusCode.PERMISSION_DENIED, "not you"))
    client = connect(one, two)
    with pytest.raises(Compacted):
        await client.get("k", revision=1)
    with pytest.raises(ServerError, match="PERMISSION_DENIED: not you") as caught:
        await client.put("k", "v")
    assert type(caught.value) is ServerError
    assert not two.calls


async def test_a_request_that_grpc_finds_too_large_was_not_sent(
    nodes: Nodes, connect: Connect
) -> None:
    (node,) = nodes(1)
    with pytest.raises(RequestTooLarge):
        await connect(node).put("k", b"x" * (3 * 1024 * 1024))
    assert not node.calls


async def test_an_answer_may_be_large(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Range", answers(range_response(b"x" * (6 * 1024 * 1024))))
    assert len((await connect(node).get("k")).value) == 6 * 1024 * 1024


async def test_status_and_hash_ask_one_node_once(nodes: Nodes, connect: Connect) -> None:
    one, two = nodes(2)
    header = rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=8, raft_term=3)
    two.on(
        "Status",
        answers(
            rpc_pb2.StatusResponse(
                header=header, version="v", dbSize=10, dbSizeInUse=9, leader=2, raftIndex=6,
                raftTerm=3, raftAppliedIndex=5, errors=["e"],
            )
        ),
    )  # fmt: skip
    two.on("HashKV", answers(rpc_pb2.HashKVResponse(header=header, hash=4, compact_revision=1)))
    one.on("Status", fails(BROKEN, "etcdserver: server stopped"))
    client = connect(one)
    status = await client.status(f"http://{two.address}")
    assert (status.member_id, status.leader, status.active, status.term) == (2, 2, True, 3)
    assert (status.index, status.applied_index, status.revision) == (6, 5, 8)
    assert (status.db_size_bytes, status.db_size_in_use_bytes, status.errors) == (10, 9, ("e",))
    hashed = await client.hash_kv(two.address, revision=0)
    assert (hashed.hash, hashed.revision, hashed.compact_revision) == (4, 8, 1)
    with pytest.raises(Unavailable, match="server stopped"):
        await client.status(one.address)
    with pytest.raises(ServerError, match="UNIMPLEMENTED"):
        await client.hash_kv(one.address)
    assert (one.asked("Status"), client.endpoints) == (1, (one.address,))


async def test_status_of_a_node_that_hangs_or_is_dead(nodes: Nodes, connect: Connect) -> None:
    (hung,) = nodes(1)
    hung.on("Status", hung.hangs)
    client = connect(hung)
    with pytest.raises(DeadlineExceeded):
        await client.status(hung.address, timeout_s=0.2)
    with pytest.raises(Unavailable, match="Connection refused"):
        await client.status(dead_address(), timeout_s=20)


async def test_a_node_that_comes_back_is_found_again(nodes: Nodes, connect: Connect) -> None:
    port = free_ports(1)[0]
    client = connect(f"127.0.0.1:{port}")
    with pytest.raises(Unavailable):
        await client.put("k", "v", timeout_s=0.2)
    node = FakeNode(port)
    try:
        node.on("Put", answers(put_response()))
        await client.put("k", "v", timeout_s=20)
    finally:
        node.stop()


async def test_the_first_call_connects_all_endpoints(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(20)
        await connect(node, f"127.0.0.1:{other.getsockname()[1]}").put("k", "v")
        connection, _ = await asyncio.to_thread(other.accept)
        connection.close()


async def test_concurrent_calls_share_what_is_learned(nodes: Nodes, connect: Connect) -> None:
    standby, active = nodes(2)
    standby.on("Put", not_active(active.address, 5))
    active.on("Put", answers(put_response(term=5)))
    client = connect(standby, active)
    await asyncio.gather(*(client.put("k", "v") for _ in range(20)))
    assert active.asked("Put") == 20
    await asyncio.gather(*(client.put("k", "v") for _ in range(20)))
    assert standby.asked("Put") <= 20


async def test_learned_endpoints_are_bounded_and_their_channels_closed(
    nodes: Nodes, connect: Connect
) -> None:
    (standby,) = nodes(1)
    names = [f"127.0.0.1:{port}" for port in free_ports(20)]
    hints = [not_active(name, term) for term, name in enumerate(names, 1)]
    standby.on("Put", *hints, answers(put_response(term=99)))
    client = connect(standby, timeout_s=30)
    await client.put("k", "v")
    assert client.endpoints == (standby.address, *names[-16:])
    assert set(vars(client).get("client", client)._links) <= set(client.endpoints)


async def test_a_closed_client_says_so(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    node.on("Put", answers(put_response()))
    client = connect(node)
    await client.put("k", "v")
    await client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        await client.put("k", "v")


async def test_no_time_means_no_attempt(nodes: Nodes, connect: Connect) -> None:
    (node,) = nodes(1)
    with pytest.raises(DeadlineExceeded):
        await connect(node).put("k", "v", timeout_s=0)
    assert not node.calls
