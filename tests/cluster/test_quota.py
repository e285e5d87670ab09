"""Puts beyond the quota are refused everywhere, what makes room is done, and then puts go on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from support.cluster import crash, raw_call, wait_said

from kvbench.cluster import Cluster, Node
from kvclient import AsyncClient, Op
from kvclient.errors import NoSpace
from kvpb import rpc_pb2

pytestmark = pytest.mark.cluster

MIB = 1 << 20
QUOTA_BYTES = 8 * MIB
BLOCK = bytes(MIB // 8)
"""So small that the state is nearly full when one is refused, also after a deletion."""

ROOM = QUOTA_BYTES // len(BLOCK)
PAUSE_S = 0.06


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, options=["--quota-bytes", str(QUOTA_BYTES)]) as started:
        await started.wait_in_step()
        yield started


async def fill(client: AsyncClient) -> int:
    """Put until there is no room; how many blocks there was room for.

    Slowly: what was put a moment ago is not measured yet.
    """
    for number in range(100):
        await asyncio.sleep(PAUSE_S)
        try:
            await client.put("block", BLOCK, timeout_s=10)
        except NoSpace:
            return number
    raise AssertionError("there is no end of the room")


async def refused(client: AsyncClient) -> None:
    with pytest.raises(NoSpace):
        await client.put("small", b"")
    with pytest.raises(NoSpace):
        await client.txn([], [Op.delete("block")], [Op.put("small", b"")])


async def room_again(client: AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await client.put("small", b"")
            except NoSpace:
                await asyncio.sleep(0.05)
            else:
                return


async def compact(cluster: Cluster, node: Node) -> None:
    """Forget all history."""
    revision = (await cluster.control.status(node.client)).revision
    body = rpc_pb2.CompactionRequest(revision=revision).SerializeToString()
    code, text = await raw_call(node.client, "/etcdserverpb.KV/Compact", body)
    assert code is grpc.StatusCode.OK, text


async def test_the_quota_is_kept_and_room_is_made(cluster: Cluster) -> None:
    client = cluster.control
    assert ROOM * 0.8 <= await fill(client) <= ROOM
    await refused(client)
    active = await cluster.active()
    for node in cluster.nodes:
        await wait_said(node, "alarm.raised alarm=NOSPACE")
        status = await client.status(node.client)
        assert any("alarm:NOSPACE" in error for error in status.errors)
    await crash(active)  # its successor knows of the alarm
    await cluster.active()
    await refused(client)
    active.start()
    active = await cluster.wait_in_step()
    assert (await client.get("block")) is not None
    assert (await client.delete("block")).deleted == 1
    await refused(client)  # the history still has it
    await compact(cluster, active)
    await room_again(client)
    await cluster.wait_in_step()
    for node in cluster.nodes:
        await wait_said(node, "alarm.disarmed alarm=NOSPACE")
    assert await client.alarms() == ()
    assert await fill(client) >= ROOM * 0.8


async def test_a_standby_with_a_smaller_quota_is_heard(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        active = await cluster.wait_in_step()
        (small, _) = cluster.others(active)
        await crash(small)
        hurt = Node(small.plan, cluster.flavor, ["--quota-bytes", str(2 * MIB)], small.log)
        hurt.start()
        try:
            async with AsyncClient([active.client]) as client:
                with pytest.raises(NoSpace):
                    for _ in range(100):
                        await client.put("block", BLOCK, timeout_s=10)
                        await asyncio.sleep(0.02)
                await refused(client)
                me = (await client.status(hurt.client)).member_id
                assert [alarm.member_id for alarm in await client.alarms()] == [me]
                await crash(hurt)
                await room_again(client)  # it has no say while it is not there
        finally:
            hurt.end()
