"""Crashes, freezes and stops of nodes while many clients write: nothing acknowledged is lost."""

import asyncio
import os

import pytest
from support.cluster import crash, writing

from kvbench.cluster import Cluster
from kvbench.history import Fate, is_stale
from kvbench.probe import Probe
from kvclient import AsyncClient, OutcomeUnknown, PutResult

pytestmark = pytest.mark.cluster

PUTS = int(os.environ.get("PUTS", "5000"))
"""Of the long story; `PUTS=100000 pytest tests/cluster -k crashes_of_the_active` runs longer."""

CRASHES = 5
ELECTION_TIMEOUT_S_MAX = 0.6


@pytest.mark.timeout(120 + PUTS // 100)
async def test_crashes_of_the_active_lose_and_double_nothing(cluster: Cluster) -> None:
    async with writing(cluster) as writers:
        for number in range(1, CRASHES + 1):
            await writers.reach(number * PUTS // (CRASHES + 1))
            active = await cluster.active()
            await crash(active)
            await writers.flow()
            active.start()
            await cluster.wait_in_step()
        await writers.reach(PUTS)
    await writers.verify(cluster)


async def test_a_crash_of_all_nodes_at_once_loses_nothing(cluster: Cluster) -> None:
    async with writing(cluster, timeout_s=2) as writers:
        for _ in range(2):
            await writers.flow()
            for node in cluster.nodes:
                node.kill()
            for node in cluster.nodes:
                await node.wait_exit()
            for node in cluster.nodes:
                node.start()
            await cluster.wait_in_step()
        await writers.flow()
    await writers.verify(cluster)


async def test_a_frozen_active_answers_nothing_stale_when_it_wakes(cluster: Cluster) -> None:
    reads = 0
    async with writing(cluster, writers=4, timeout_s=0.5) as writers:
        for _ in range(3):
            await writers.flow()
            frozen = await cluster.active()
            probe = Probe(frozen.client, lambda: writers.one.newest)
            try:
                await probe.connect()
                frozen.stop()
                await asyncio.sleep(ELECTION_TIMEOUT_S_MAX)
                await writers.flow()
                assert await cluster.active() is not frozen
                probe.start()  # requests wait in its sockets until it wakes
                await asyncio.sleep(0.1)
                frozen.cont()
                await asyncio.sleep(0.5)
                await cluster.wait_in_step()
            finally:
                await probe.close()
            assert [read for read in probe.reads if is_stale(read)] == []
            reads += len(probe.reads) + probe.declined.total()
    assert reads > 0
    await writers.verify(cluster)


async def test_a_frozen_active_acknowledges_nothing_it_can_not_keep(cluster: Cluster) -> None:
    async with writing(cluster, writers=4, timeout_s=0.5) as writers:
        for turn in range(2):
            await writers.flow()
            frozen = await cluster.active()
            async with AsyncClient(frozen.client, timeout_s=10) as client:
                await client.put(f"before the freeze {turn}", "here")
                frozen.stop()
                await writers.flow()
                keys = [f"while frozen {turn} {number}" for number in range(50)]
                puts = [asyncio.create_task(client.put(key, "here")) for key in keys]
                await asyncio.sleep(0.1)
                frozen.cont()
                answers = await asyncio.gather(*puts, return_exceptions=True)
                await cluster.wait_in_step()
                for key, answer in zip(keys, answers, strict=True):
                    found = await cluster.control.get(key, timeout_s=10)
                    if isinstance(answer, PutResult):
                        assert found is not None
                        assert (found.version, found.mod_revision) == (1, answer.revision)
                    else:
                        assert isinstance(answer, OutcomeUnknown), answer
                        assert found is None or found.version == 1
    await writers.verify(cluster)


async def test_a_clean_stop_of_the_active_fails_no_write(cluster: Cluster) -> None:
    async with writing(cluster) as writers:
        for _ in range(3):
            await writers.flow()
            active = await cluster.active()
            active.term()
            assert await active.wait_exit() == 0
            await writers.flow()
            active.start()
            await cluster.wait_in_step()
    failed = [write for write in writers.writes if write.fate is not Fate.ACKNOWLEDGED]
    assert failed == []
    await writers.verify(cluster)
