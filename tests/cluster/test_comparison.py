"""A node whose data differs is found, told apart and replaced, while the others serve."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from support.cluster import (
    CALL_S_MAX,
    START_S_MAX,
    crash,
    data_file,
    raw_call,
    wait_said,
    wait_until,
    writing,
)

from kvbench.cluster import Cluster, Node
from kvclient.errors import BadTransferee, CorruptCluster, KvError
from kvserver.mvcc.keyvalue import decode_row, encode_row
from kvserver.storage.env import LmdbStorage
from kvserver.storage.schema import KEY_HISTORY, KV, LEASE, SESSION, Database

pytestmark = pytest.mark.cluster

OFTEN = "--corrupt-check-interval-s=1"
NEVER = "--corrupt-check-interval-s=0"
MARK = "marked"


async def with_a_mark(cluster: Cluster) -> Node:
    """The active of a cluster that holds a key."""
    await cluster.control.put(MARK, "right", timeout_s=CALL_S_MAX)
    return await cluster.wait_in_step()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, options=[OFTEN]) as started:
        await with_a_mark(started)
        yield started


def spoil(node: Node) -> None:
    """Change a value of a stopped node behind its back; nothing about the row looks wrong."""
    storage = LmdbStorage(data_file(node).parent)
    txn = storage.writer()
    stored = txn.get(KV, MARK.encode())
    assert stored is not None
    wrong = decode_row(stored)._replace(value=b"wrong")
    txn.put(KV, MARK.encode(), encode_row(wrong))
    storage.commit()
    storage.close()


def lose(node: Node, db: Database) -> None:
    """Remove a row of a stopped node as if it had never been written."""
    storage = LmdbStorage(data_file(node).parent)
    txn = storage.writer()
    key, value = next(txn.scan(db))
    assert txn.delete_value(db, key, value) if db.many else txn.delete(db, key)
    storage.commit()
    storage.close()


async def serves_as_standby(node: Node) -> bool:
    """What its health service tells balancers."""
    asking = health_pb2.HealthCheckRequest(service="kv.standby").SerializeToString()
    async with grpc.aio.insecure_channel(node.client, (("grpc.enable_http_proxy", 0),)) as channel:
        call: Callable[..., Awaitable[bytes]] = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = health_pb2.HealthCheckResponse.FromString(await call(asking, timeout=CALL_S_MAX))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def alarms(cluster: Cluster) -> list[str]:
    """Names of the members with an alarm."""
    members = {each.id: each.name for each in await cluster.control.members(linearizable=False)}
    return [members[alarm.member_id] for alarm in await cluster.control.alarms()]


async def replace(node: Node, kept: Path) -> None:
    """As its log says."""
    node.term()
    await node.wait_exit()
    node.plan.data.rename(kept)
    node.start()
    await wait_said(node, "it joins as a new member")


async def test_a_standby_that_differs_is_told_apart_and_replaced(
    cluster: Cluster, tmp_path: Path
) -> None:
    active = await cluster.active()
    hurt, sound = cluster.others(active)
    async with writing(cluster, writers=4) as writers:
        await wait_said(active, "compare.done")
        assert await serves_as_standby(hurt)
        assert await alarms(cluster) == []
        await crash(hurt)
        spoil(hurt)
        hurt.start()
        await wait_said(hurt, "node.disqualified")
        await wait_said(active, "alarm.raised alarm=CORRUPT member=" + hurt.name)
        assert await alarms(cluster) == [hurt.name]
        assert not await serves_as_standby(hurt)
        assert await serves_as_standby(sound)
        status = await cluster.control.status(hurt.client)
        assert status.disqualified
        code, text = await raw_call(hurt.client, "/etcdserverpb.Maintenance/Snapshot", b"")
        assert (code, text) == (grpc.StatusCode.DATA_LOSS, "etcdserver: corrupt cluster")
        with pytest.raises(BadTransferee):
            await cluster.control.move_leader(status.member_id)
        await writers.flow()

        await crash(active)  # the two that are left need one another; one of them may lead
        await writers.flow()
        assert await cluster.active() is sound
        active.start()
        await cluster.wait_in_step()

        await replace(hurt, tmp_path / "kept")
        await cluster.wait_in_step()
        await wait_said(sound, "alarm.disarmed alarm=CORRUPT")
        await writers.flow()
    await writers.verify(cluster)
    assert await alarms(cluster) == []
    await cluster.wait_verified(hurt)
    assert await serves_as_standby(hurt)
    for node in cluster.nodes:
        assert "Traceback" not in node.log.read_text()


@pytest.mark.parametrize("db", [SESSION, LEASE, KEY_HISTORY], ids=lambda db: db.name.decode())
async def test_a_standby_that_lacks_a_row_that_nobody_reads_is_found(
    cluster: Cluster, db: Database
) -> None:
    """A lost session, for example, lets a write be applied twice, after a failover."""
    active = await cluster.active()
    hurt, sound = cluster.others(active)
    await wait_said(active, "compare.done")
    await crash(hurt)
    lose(hurt, db)
    hurt.start()
    await wait_said(hurt, "node.disqualified")
    told = active.log.read_text()
    assert f"database={db.name.decode()} nodes={hurt.name}" in told
    assert await alarms(cluster) == [hurt.name]
    assert await serves_as_standby(sound)


async def move_leader(cluster: Cluster, target: Node) -> None:
    """To one that has just started, as soon as its state is verified."""
    member = (await cluster.control.status(target.client)).member_id
    async with asyncio.timeout(START_S_MAX):
        while True:
            with contextlib.suppress(BadTransferee):
                await cluster.control.move_leader(member, timeout_s=CALL_S_MAX)
                return
            await asyncio.sleep(0.05)


async def test_an_active_that_differs_hands_over(tmp_path: Path) -> None:
    async with Cluster(tmp_path, options=[NEVER]) as cluster:
        active = await with_a_mark(cluster)
        hurt = cluster.others(active)[0]
        await crash(hurt)
        spoil(hurt)
        before, hurt = hurt, Node(hurt.plan, cluster.flavor, [OFTEN], hurt.log)
        cluster.nodes = tuple(hurt if node is before else node for node in cluster.nodes)
        hurt.start()
        await cluster.wait_in_step()
        async with writing(cluster, writers=4) as writers:
            await writers.flow()
            await move_leader(cluster, hurt)
            await wait_said(hurt, "node.disqualified")
            await wait_said(hurt, "its state must not be served: disqualified")
            await writers.flow()
        found = await cluster.control.get(MARK, timeout_s=CALL_S_MAX)
        assert found is not None
        assert found.value == b"right"
        assert (await cluster.active()) is not hurt


async def test_two_that_differ_serve_nothing_until_one_is_trusted(tmp_path: Path) -> None:
    async with Cluster(tmp_path, nodes=2, options=[OFTEN]) as cluster:
        active = await with_a_mark(cluster)
        (hurt,) = cluster.others(active)
        await crash(hurt)
        spoil(hurt)
        hurt.start()
        for node in cluster.nodes:
            await wait_said(node, "node.disqualified")
        async with asyncio.timeout(3 * CALL_S_MAX):
            while True:  # it may be between two leaders for a moment
                with pytest.raises(KvError) as refused:
                    await cluster.control.put("k", "v", timeout_s=CALL_S_MAX)
                if isinstance(refused.value, CorruptCluster):
                    break
        trusted = (await cluster.control.status(active.client)).member_id
        for alarm in await cluster.control.alarms():
            if alarm.member_id == trusted:
                await cluster.control.disarm(alarm, timeout_s=CALL_S_MAX)
        found = await cluster.control.get(MARK, timeout_s=CALL_S_MAX)
        assert found is not None
        assert found.value == b"right"
        await cluster.control.put("k", "v", timeout_s=CALL_S_MAX)
        assert await cluster.active() is active
        assert await alarms(cluster) == [hurt.name]
        code, _ = await raw_call(hurt.client, "/etcdserverpb.KV/Range", b"\x0a\x01k")
        assert code is grpc.StatusCode.UNAVAILABLE
        await wait_until(lambda: "compare.done" in active.log.read_text(), "it goes on comparing")
