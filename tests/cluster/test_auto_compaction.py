"""The active forgets what is older than the retention, and its successor goes on with it."""

import asyncio
from pathlib import Path

import pytest
from support.cluster import CALL_S_MAX, WAIT_S_MAX, crash

from kvbench.cluster import Cluster
from kvclient.errors import Compacted

pytestmark = pytest.mark.cluster


async def wait_compacted(cluster: Cluster, revision: int) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            try:
                await cluster.control.get("key", revision=revision, timeout_s=CALL_S_MAX)
            except Compacted:
                return
            await asyncio.sleep(0.05)


async def test_before_and_after_a_failover(tmp_path: Path) -> None:
    options = ("--auto-compaction-retention", "1s")
    async with Cluster(tmp_path, options=options) as cluster:
        for _ in range(2):
            put = await cluster.control.put("key", "old", timeout_s=CALL_S_MAX)
            new = await cluster.control.put("key", "new", timeout_s=CALL_S_MAX)
            await wait_compacted(cluster, put.revision)
            found = await cluster.control.get("key", timeout_s=CALL_S_MAX)
            assert found is not None
            assert (found.value, found.mod_revision) == (b"new", new.revision)
            active = await cluster.active()
            await crash(active)
            await cluster.active()
            active.start()
            await cluster.wait_in_step()
