"""Whatever comes in at the client port, the node answers what it should and goes on."""

import asyncio
import contextlib
import secrets
from collections import Counter
from pathlib import Path

import grpc
import pytest
from support.cluster import (
    CALL_S_MAX,
    address_of,
    closed_by_peer,
    crash,
    make_active,
    memory_bytes,
    raw_call,
    writing,
)

from kvbench.cluster import Cluster
from kvclient.errors import RequestTooLarge
from kvpb.rpc_pb2 import RangeRequest
from kvpb.rpc_pb2_grpc import KVStub

pytestmark = pytest.mark.cluster

GROWTH_BYTES_MAX = 96 << 20
IDLE = 200
CROWD = 6_000
CROWD_S_MAX = 60.0
SENT_S = 2.0
DIRECT = (("grpc.enable_http_proxy", 0),)
BAGGAGE_BYTES = 64 << 10
LADEN = 20


@pytest.mark.parametrize("method", ["Put", "Range", "DeleteRange", "Txn"])
async def test_bytes_that_are_no_message(cluster: Cluster, method: str) -> None:
    active = await cluster.active()
    for body in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", secrets.token_bytes(4096)):
        code, _ = await raw_call(active.client, f"/etcdserverpb.KV/{method}", b"\x0f" + body)
        assert code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    async with writing(cluster) as writers:
        await writers.flow()
    await writers.verify(cluster)


async def test_unknown_methods_and_services(cluster: Cluster) -> None:
    active = await cluster.active()
    for method in ("/etcdserverpb.KV/Steal", "/nobody.Knows/It", "/etcdserverpb.Auth/Nothing"):
        code, _ = await raw_call(active.client, method, b"")
        assert code is grpc.StatusCode.UNIMPLEMENTED
    assert await raw_call(active.client, "/etcdserverpb.Maintenance/Downgrade", b"") == (
        grpc.StatusCode.UNIMPLEMENTED,
        "unknown method Downgrade for service etcdserverpb.Maintenance",
    )
    await cluster.control.put("key", "value", timeout_s=10)


async def test_requests_above_the_limits(cluster: Cluster) -> None:
    active = await cluster.active()
    client = cluster.control
    limit = 1_572_864
    await client.put("large", b"x" * (limit - 1000), timeout_s=10)
    with pytest.raises(RequestTooLarge) as refused:
        await client.put("large", b"y" * (limit + 1000), timeout_s=10)
    assert (refused.value.code, refused.value.details) == (
        "INVALID_ARGUMENT", "etcdserver: request is too large",
    )  # fmt: skip
    code, text = await raw_call(active.client, "/etcdserverpb.KV/Put", b"\0" * (3 << 20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in text
    found = await client.get("large", timeout_s=10)
    assert found is not None
    assert found.version == 1
    assert await cluster.wait_in_step() is active


async def test_many_huge_requests_do_not_fill_the_memory(cluster: Cluster) -> None:
    active = await cluster.active()
    before = memory_bytes(active)
    for _ in range(4):
        codes = await asyncio.gather(
            *(raw_call(active.client, "/etcdserverpb.KV/Put", bytes(4 << 20)) for _ in range(8))
        )
        assert {code for code, _ in codes} <= {
            grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE,
        }  # fmt: skip
    assert memory_bytes(active) < before + GROWTH_BYTES_MAX
    await cluster.control.put("key", "value", timeout_s=10)


async def test_requests_that_come_all_at_once_are_answered(tmp_path: Path) -> None:
    """The node stands still while they come; gRPC cancels what waits beyond its own limit."""
    async with (
        Cluster(tmp_path, nodes=1) as cluster,
        grpc.aio.insecure_channel(cluster.endpoints[0], DIRECT) as channel,
    ):
        (node,), kv, request = cluster.nodes, KVStub(channel), RangeRequest(key=b"key")
        await kv.Range(request, timeout=CALL_S_MAX)
        node.stop()
        calls = [kv.Range(request, timeout=CROWD_S_MAX) for _ in range(CROWD)]
        await asyncio.sleep(SENT_S)
        node.cont()
        codes = Counter(await asyncio.gather(*(call.code() for call in calls)))
        assert codes == {grpc.StatusCode.OK: CROWD}


async def test_large_metadata_is_taken_within_bounds(cluster: Cluster) -> None:
    active = await cluster.active()
    async with grpc.aio.insecure_channel(active.client, DIRECT) as channel:
        kv, request = KVStub(channel), RangeRequest(key=b"key")

        async def carry(size: int) -> None:
            await kv.Range(request, metadata=(("baggage", "x" * size),), timeout=CALL_S_MAX)

        for _ in range(LADEN):
            await carry(BAGGAGE_BYTES)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await carry(2 * BAGGAGE_BYTES)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await kv.Range(request, timeout=CALL_S_MAX)


async def test_idle_connections_and_garbage_on_both_ports(cluster: Cluster) -> None:
    active = await cluster.active()
    before = memory_bytes(active)
    async with contextlib.AsyncExitStack() as stack, writing(cluster, writers=4) as writers:
        for address in (active.client, active.plan.peer):
            for number in range(IDLE):
                reader, writer = await asyncio.open_connection(*address_of(address))
                stack.callback(writer.close)
                if number % 4 == 0:
                    writer.write(secrets.token_bytes(1000))
                    await closed_by_peer(reader)
        await writers.flow()
        standby = cluster.others(active)[0]
        await crash(standby)
        standby.start()
        await cluster.wait_in_step()
        await writers.flow()
        assert memory_bytes(active) < before + GROWTH_BYTES_MAX
    await writers.verify(cluster)
    await make_active(cluster, standby)  # nothing is left that would keep it from moving
