"""Idle clients that hold all files of a node keep others out, but do not end it."""

import asyncio
import resource
from pathlib import Path

import pytest
from support.cluster import address_of, wait_until

from kvbench.cluster import Cluster, Node
from kvserver.storage.open_files import RESERVED

pytestmark = pytest.mark.cluster

LEFT = 20
BIG = "x" * (1 << 20)


def files_of(node: Node) -> int:
    return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))


def leave_files(node: Node, count: int) -> int:
    """Let a node open so many more; returns the limit."""
    assert node.pid is not None
    limit = files_of(node) + count
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (limit, limit + RESERVED))
    return limit


async def test_a_node_without_files_goes_on_with_its_log(tmp_path: Path) -> None:
    async with Cluster(tmp_path, nodes=1) as cluster:
        (node,) = cluster.nodes
        await cluster.control.put("key", "before", timeout_s=10)
        limit = leave_files(node, LEFT)
        idle = [await asyncio.open_connection(*address_of(node.client)) for _ in range(2 * LEFT)]
        await wait_until(lambda: files_of(node) >= limit, "clients hold all files")
        for number in range(20):  # more than two segments
            await cluster.control.put(f"key {number}", BIG, timeout_s=10)
        segments = list(node.plan.data.glob("env-*/journal-*/*"))
        assert len(segments) > 2
        for _, writer in idle:
            writer.close()
        await wait_until(lambda: files_of(node) < limit, "clients are gone")
        assert await cluster.control.get("key", timeout_s=10) is not None
        assert node.log.read_text().count("node.ready") == 1
