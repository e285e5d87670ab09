"""Real nodes cut off from one another, every call recorded and judged: nothing stale, nothing lost.

`ROUNDS=20 pytest tests/cluster/test_partitions.py` tells each story more often.
"""

import asyncio
import contextlib
import os
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.cluster import Writers, crash, wait_said, writing
from support.real_clients import RealClients, recording

from kvbench.cluster import Cluster, Node
from kvclient import KvError, Status

pytestmark = pytest.mark.cluster

ROUNDS = int(os.environ.get("ROUNDS", "1"))
LIMIT_S = 100 + 30 * ROUNDS

COPY_MIB = 16
BREAKS = 6

ELECTION_TIMEOUT_S_MAX = 0.6
DEAD_PEER_S = 1.5
"""After that a silent connection is given up, on both sides."""


OPTIONS = ("--check-quorum-ms", "1500", "--log-keep-entries", "50")
"""A deposed active believes in itself for a second: only read rounds keep it from stale answers.
Who was away for long is sent a copy of the state."""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Up and in step, its wires in our hands."""
    async with Cluster(tmp_path, wires=True, options=OPTIONS) as started:
        yield started


@dataclass(frozen=True)
class Load:
    """What a cluster is busy with while it is hurt."""

    cluster: Cluster
    clients: RealClients
    """Recorded calls on few keys."""
    writers: Writers
    """Of many keys."""

    async def succeeded(self, old: Node) -> Node:
        """Wait until another node serves everybody."""
        async with asyncio.timeout(30):
            while (new := await self.cluster.active()) is old:
                await asyncio.sleep(0.02)
        await self.writers.flow()
        return new

    async def settle(self) -> Node:
        """All is well again; the active."""
        self.cluster.wires.mend()
        active = await self.cluster.wait_in_step()
        await self.writers.flow()
        return active


@contextlib.asynccontextmanager
async def under_load(cluster: Cluster) -> AsyncIterator[Load]:
    """Until the end of the block, where everything is judged."""
    async with recording(cluster) as clients, writing(cluster, writers=4) as writers:
        load = Load(cluster, clients, writers)
        await load.settle()
        yield load
        await load.settle()
    await writers.verify(cluster)
    assert clients.record.reads > 0
    assert clients.record.writes > 0


async def status_of(cluster: Cluster, node: Node) -> Status:
    found = await cluster.status(node)
    assert found is not None
    return found


@pytest.mark.timeout(LIMIT_S)
async def test_an_active_that_only_clients_reach_is_followed_by_another(cluster: Cluster) -> None:
    async with under_load(cluster) as load:
        for _ in range(ROUNDS):
            old = await load.settle()
            before = await status_of(cluster, old)
            load.clients.stay_with(old.client)
            cluster.wires.isolate(old.name)
            new = await load.succeeded(old)
            await wait_said(old, "lost touch with a quorum")
            assert not (await status_of(cluster, old)).active
            assert (await status_of(cluster, new)).term > before.term
            await asyncio.sleep(DEAD_PEER_S)


@pytest.mark.timeout(LIMIT_S)
async def test_a_standby_that_was_cut_off_disturbs_nobody_when_it_returns(cluster: Cluster) -> None:
    async with under_load(cluster) as load:
        active = await load.settle()
        before = await status_of(cluster, active)
        for number in range(2 * ROUNDS):
            guest = cluster.others(active)[number % 2]
            load.clients.stay_with(guest.client)
            cluster.wires.isolate(guest.name)
            await asyncio.sleep(ELECTION_TIMEOUT_S_MAX + number % 2 * DEAD_PEER_S)
            await load.settle()
            after = await status_of(cluster, active)
            assert (after.active, after.term) == (True, before.term), guest.tail()


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("heard", [True, False])
async def test_an_active_whose_wires_carry_one_way_only_is_replaced(
    cluster: Cluster, heard: bool
) -> None:
    """It is heard and hears nobody, or the reverse."""
    async with under_load(cluster) as load:
        for _ in range(ROUNDS):
            old = await load.settle()
            load.clients.stay_with(old.client)
            for other in cluster.others(old):
                ends = (other.name, old.name) if heard else (old.name, other.name)
                cluster.wires.cut(*ends)
            await load.succeeded(old)
            await asyncio.sleep(DEAD_PEER_S)


@pytest.mark.timeout(LIMIT_S)
async def test_a_hand_over_into_a_partition_leaves_an_active(cluster: Cluster) -> None:
    rng = random.Random(1)
    async with under_load(cluster) as load:
        for _ in range(3 * ROUNDS):
            old = await load.settle()
            target = rng.choice(cluster.others(old))
            load.clients.stay_with(old.client)
            asked = asyncio.create_task(hand_over(cluster, target))
            await asyncio.sleep(rng.uniform(0, 0.01))
            cluster.wires.isolate(target.name)
            await load.writers.flow()
            await asked


async def hand_over(cluster: Cluster, target: Node) -> None:
    member = (await status_of(cluster, target)).member_id
    with contextlib.suppress(KvError):  # it may fail, within its time
        async with asyncio.timeout(15), cluster.connect(10) as client:
            await client.move_leader(member)


@pytest.mark.timeout(LIMIT_S)
async def test_broken_connections_alone_change_nothing(tmp_path: Path) -> None:
    """Each tells one standby that the active has died, and wrongly. Silence would be another."""
    rng = random.Random(1)
    patient = ["--election-timeout-ms-min", "5000", "--election-timeout-ms-max", "8000"]
    patient += ["--check-quorum-ms", "8000", "--dead-peer-ms", "9000"]
    async with (
        Cluster(tmp_path, wires=True, options=patient) as cluster,
        under_load(cluster) as load,
    ):
        active = await load.settle()
        before = await status_of(cluster, active)
        for _ in range(10 * ROUNDS):
            other = rng.choice(cluster.others(active))
            before_that = meetings(active, other) + meetings(other, active)
            cluster.wires.reset(active.name, other.name)
            while meetings(active, other) + meetings(other, active) < before_that + 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(rng.uniform(0, 0.1))
        await load.writers.flow()
        after = await status_of(cluster, active)
        assert (after.active, after.term) == (True, before.term)


def meetings(node: Node, other: Node) -> int:
    """How often a node was connected to another."""
    return node.log.read_text().count(f"peer.up peer={other.name}\n")


@pytest.mark.timeout(LIMIT_S)
async def test_wires_that_come_and_go(cluster: Cluster) -> None:
    rng = random.Random(1)
    names = [node.name for node in cluster.nodes]
    wires = cluster.wires
    async with under_load(cluster):
        for _ in range(30 * ROUNDS):
            one, other = rng.sample(names, 2)
            match rng.choice(["part", "cut", "isolate", "reset", "delay", "mend", "mend"]):
                case "part":
                    wires.part(one, other)
                case "cut":
                    wires.cut(one, other)
                case "isolate":
                    wires.isolate(one)
                case "reset":
                    wires.reset(one, other)
                case "delay":
                    wires.delay(rng.choice([0.001, 0.01, 0.05]))
                case _:
                    wires.mend()
            await asyncio.sleep(rng.expovariate(1 / 0.15))


@pytest.mark.timeout(LIMIT_S)
async def test_a_copy_of_the_state_arrives_over_wires_that_break(cluster: Cluster) -> None:
    """It is large, and no connection stands until all of it is there."""
    rng = random.Random(1)
    async with under_load(cluster) as load:
        for number in range(COPY_MIB):
            await cluster.control.put(f"large {number}", rng.randbytes(1 << 20), timeout_s=10)
        for _ in range(ROUNDS):
            active = await load.settle()
            standby = cluster.others(active)[0]
            told = len(standby.log.read_text())
            await crash(standby)
            await asyncio.to_thread(shutil.rmtree, standby.plan.data)
            standby.start()
            breaks = 0
            async with asyncio.timeout(60):
                while "snapshot.adopted" not in (said := standby.log.read_text()[told:]):
                    if "snapshot.receive" in said and breaks < BREAKS:
                        breaks += 1
                        if breaks % 2:
                            cluster.wires.reset(active.name, standby.name)
                        else:
                            cluster.wires.part(active.name, standby.name)
                        await asyncio.sleep(0.1)
                        cluster.wires.mend()
                    await asyncio.sleep(0.1)
            assert breaks
            await load.settle()


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_crashes_of_some_nodes_at_once(cluster: Cluster, count: int) -> None:
    rng = random.Random(count)
    async with under_load(cluster) as load:
        for _ in range(ROUNDS):
            active = await load.settle()
            victims = [active, *rng.sample(cluster.others(active), count - 1)]
            for node in victims:
                node.kill()
            for node in victims:
                await node.wait_exit()
            if count == 1:
                await load.writers.flow()
            await asyncio.sleep(rng.uniform(0, 0.5))
            for node in victims:
                node.start()


@pytest.mark.timeout(LIMIT_S)
async def test_a_pause_of_the_active_and_a_crash_of_its_successor(cluster: Cluster) -> None:
    """The one that slept is needed for a quorum when it wakes, and knows less than it thinks."""
    async with under_load(cluster) as load:
        for _ in range(ROUNDS):
            old = await load.settle()
            load.clients.stay_with(old.client)
            old.stop()
            await asyncio.sleep(ELECTION_TIMEOUT_S_MAX)
            new = await load.succeeded(old)
            await crash(new)
            old.cont()
            await load.writers.flow()
            new.start()
